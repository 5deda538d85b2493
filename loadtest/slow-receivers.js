// Accounts whose endpoints hang, are slow or fail, beside one whose endpoint is well. Asks: does the healthy one notice?
//
// Only the healthy account's events are waited for: what the others are owed is retried for hours.

import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';
import { check, sleep } from 'k6';
import { begin, committedSince, duplicates, env, finished, honest, ledger, lost, register, send, summary, trend, unsigned } from './lib/eventpulse.js';

const healthy = new Counter('healthy_accepted');
// From the last healthy event sent until the receiver had all of them.
const drain = new Trend('healthy_drain_ms');

const rate = Number(env('RATE', 300));
const duration = env('DURATION', '30s');

const steady = (exec) => ({
  executor: 'constant-arrival-rate',
  exec,
  rate,
  timeUnit: '1s',
  duration,
  preAllocatedVUs: 50,
  maxVUs: 400,
});

export const options = {
  scenarios: { well: steady('well'), ill: steady('ill') },
  thresholds: {
    ...honest,
    'http_req_duration{name:send-event}': ['p(99)<500'],
    // Its endpoint answers at once; a neighbour's time-out is 15 seconds.
    healthy_drain_ms: ['max<5000'],
  },
  summaryTrendStats: trend,
};

export function setup() {
  const before = begin();
  const ill = [register('hangs', '?hang=true'), register('slow', '?delay_ms=3000'), register('fails', '?status=500')];
  return { before, ill, well: register('well') };
}

export function well({ well: key }) {
  if (send(key).status === 201) healthy.add(1);
}

export function ill({ ill: keys }) {
  send(keys[Math.floor(Math.random() * keys.length)]);
}

export function teardown({ before, well: key }) {
  committedSince(before);
  const start = Date.now();
  // The engine knows how many of this account it took; k6's own count is not to be had here.
  const sent = count(key);
  const arrived = () => (ledger().hooks.well || { unique: 0 }).unique;
  while (arrived() < sent && Date.now() - start < 60000) sleep(0.2);
  drain.add(Date.now() - start);
  sleep(1);
  const now = ledger();
  const missing = sent - now.hooks.well.unique;
  lost.add(Math.abs(missing));
  duplicates.add(now.duplicates - before.ledger.duplicates);
  unsigned.add(now.badSignatures - before.ledger.badSignatures);
  check(now, { 'all of the healthy account arrived': () => missing === 0 });
  finished.add(1);
}

// The account's events, page by page.
function count(key) {
  let [n, cursor] = [0, ''];
  for (;;) {
    const page = http.get(`${__ENV.GATEWAY}/events?limit=100${cursor}`, { headers: { 'x-api-key': key } }).json().events;
    n += page.length;
    if (page.length === 0) return n;
    cursor = `&before=${page[page.length - 1].id}`;
  }
}

export const handleSummary = summary;
