// What all scenarios share: sending events, and asking at the end what became of them.
//
// How accepted events are counted exactly. Virtual users share no memory, so no script can add them up. k6 itself counts
// every 201 in the counter `accepted`; the engine counts every committed event in eventpulse_ingest_events_total. setup()
// reads the engine's count before, teardown() after, and waits until the receiver's ledger has as many events. k6 shows its
// own count in the summary, and scripts/load compares it with the engine's: a request whose answer never came would be in
// one and not in the other.

import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Rate } from 'k6/metrics';

export const accepted = new Counter('accepted');
export const refused = new Counter('refused');
// Whether an answer was one of the contract's: 201, or a refusal that says when to come again.
export const answered = new Rate('answered');
// Each a threshold: a run in which one of them is not 0 has failed.
export const lost = new Counter('lost');
export const duplicates = new Counter('duplicates');
export const unsigned = new Counter('unsigned');
// Raised last by teardown(): a counter without samples counts as 0, so a teardown that broke would look like a good one.
export const finished = new Counter('finished');
// What the engine counted, for scripts/load to compare with `accepted`.
export const committed = new Counter('committed');

const gateway = __ENV.GATEWAY;
const receiver = __ENV.RECEIVER;

// The same for every scenario; thresholds on time are each scenario's own.
export const honest = {
  answered: ['rate==1'],
  lost: ['count==0'],
  duplicates: ['count==0'],
  unsigned: ['count==0'],
  finished: ['count==1'],
};

export function env(name, otherwise) {
  return __ENV[name] === undefined || __ENV[name] === '' ? otherwise : __ENV[name];
}

const pad = 'k'.repeat(220);
const body = JSON.stringify({ type: 'order.created', payload: { orderId: '123', pad } });

// Registers a webhook at the receiver's hook `name`, for a new account or for that of `key`, and tells the receiver its
// secret. Returns the account's key.
export function register(name, query = '', key = null) {
  const headers = { 'Content-Type': 'application/json' };
  if (key) headers['x-api-key'] = key;
  const url = `${receiver}/hook/${name}${query}`;
  const response = http.post(`${gateway}/register-webhook`, JSON.stringify({ name, url }), { headers });
  if (response.status !== 201) throw new Error(`register-webhook: ${response.status} ${response.body}`);
  const answer = response.json();
  http.put(`${receiver}/secrets/${name}`, answer.webhook.secret);
  return key || answer.apiKey;
}

// Sends one event. A refusal is an answer too, as long as it says when to come again.
export function send(key) {
  const headers = { 'Content-Type': 'application/json', 'x-api-key': key };
  const response = http.post(`${gateway}/send-event`, body, { headers, tags: { name: 'send-event' } });
  if (response.status === 201) {
    accepted.add(1);
  } else {
    refused.add(1);
  }
  const busy = (response.status === 503 || response.status === 429) && response.headers['Retry-After'] !== undefined;
  answered.add(response.status === 201 || busy);
  return response;
}

function committedSoFar() {
  const lines = http.get(`${gateway}/metrics`).body.split('\n');
  const line = lines.find((l) => l.startsWith('eventpulse_ingest_events_total '));
  return line ? Number(line.split(' ')[1]) : 0;
}

export function ledger() {
  return http.get(`${receiver}/ledger`).json();
}

// Tells k6 how many events the engine took since `before`, and returns it.
export function committedSince(before) {
  const count = committedSoFar() - before.committed;
  committed.add(count);
  return count;
}

// For setup(): what was there before.
export function begin() {
  return { committed: committedSoFar(), ledger: ledger() };
}

// For teardown(): waits until what was accepted has arrived `copies` times, or seconds are over, and counts what is wrong.
export function settle(before, { copies = 1, seconds = 60, hook = null } = {}) {
  const count = committedSince(before);
  const of = (l) => (hook ? l.hooks[hook] || { unique: 0 } : l);
  const arrived = () => of(ledger()).unique - of(before.ledger).unique;
  for (let waited = 0; waited < seconds && arrived() < count * copies; waited += 0.5) sleep(0.5);
  // Long enough for a repeat to show itself.
  sleep(1);
  const now = ledger();
  const missing = count * copies - (of(now).unique - of(before.ledger).unique);
  lost.add(Math.abs(missing));
  duplicates.add(now.duplicates - before.ledger.duplicates);
  unsigned.add(now.badSignatures - before.ledger.badSignatures + (now.unsigned - before.ledger.unsigned));
  check(now, {
    'everything accepted was delivered, and nothing else': () => missing === 0,
    'nothing twice': () => now.duplicates === before.ledger.duplicates,
    'all signed': () => now.badSignatures === 0 && now.unsigned === 0,
    'the ledger did not overflow': () => !now.overflow,
  });
  finished.add(1);
}

// One table, and all of it as JSON.
export function summary(data) {
  const value = (name, field) => (data.metrics[name] ? data.metrics[name].values[field] : undefined);
  const round = (x) => (x === undefined ? '-' : Math.round(x * 100) / 100);
  const time = data.metrics.http_req_duration.values;
  const failed = Object.entries(data.metrics)
    .flatMap(([name, m]) => Object.entries(m.thresholds || {}).map(([rule, t]) => [name, rule, t.ok]))
    .filter(([, , ok]) => !ok)
    .map(([name, rule]) => `${name}: ${rule}`);
  const rows = [
    ['accepted', value('accepted', 'count') || 0],
    ['committed, says the engine', value('committed', 'count') || 0],
    ['refused (429, 503)', value('refused', 'count') || 0],
    ['not sent, no user was free', value('dropped_iterations', 'count') || 0],
    ['accepted a second', round(value('accepted', 'rate'))],
    ['answer p50 / p95 / p99 ms', `${round(time['p(50)'])} / ${round(time['p(95)'])} / ${round(time['p(99)'])}`],
    ['lost', value('lost', 'count') || 0],
    ['duplicates', value('duplicates', 'count') || 0],
    ['not or wrongly signed', value('unsigned', 'count') || 0],
    ['thresholds', failed.length === 0 ? 'all held' : `FAILED: ${failed.join('; ')}`],
  ];
  const out = { stdout: `${rows.map(([name, v]) => `${name.padEnd(30)}${v}`).join('\n')}\n` };
  if (__ENV.SUMMARY) out[__ENV.SUMMARY] = JSON.stringify(data, null, 2);
  return out;
}

export const trend = ['avg', 'min', 'p(50)', 'p(90)', 'p(95)', 'p(99)', 'max'];
