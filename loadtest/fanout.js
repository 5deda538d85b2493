// One account with many webhooks: every event goes to each. Asks: does every webhook get every event, once?

import { begin, env, honest, register, send, settle, summary, trend } from './lib/eventpulse.js';

const webhooks = Number(env('WEBHOOKS', 20));

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate: Number(env('RATE', 100)),
      timeUnit: '1s',
      duration: env('DURATION', '20s'),
      preAllocatedVUs: 50,
      maxVUs: 400,
    },
  },
  thresholds: { ...honest, refused: ['count==0'], 'http_req_duration{name:send-event}': ['p(99)<500'] },
  summaryTrendStats: trend,
  setupTimeout: '60s',
};

export function setup() {
  const key = register('fan0');
  for (let i = 1; i < webhooks; i += 1) register(`fan${i}`, '', key);
  return { key, before: begin() };
}

export default ({ key }) => send(key);
export const teardown = ({ before }) => settle(before, { copies: webhooks, seconds: 120 });
export const handleSummary = summary;
