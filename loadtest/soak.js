// The same rate for a long time. Asks: does anything grow, or get slower, that did not at first? scripts/load shows the
// engine's memory before and after.

import { begin, env, honest, send, settle, summary, trend } from './lib/eventpulse.js';

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate: Number(env('RATE', 1000)),
      timeUnit: '1s',
      duration: env('DURATION', '180s'),
      preAllocatedVUs: 100,
      maxVUs: 600,
    },
  },
  thresholds: { ...honest, refused: ['count==0'], 'http_req_duration{name:send-event}': ['p(50)<20', 'p(99)<250'] },
  summaryTrendStats: trend,
};

export const setup = begin;
export default () => send(__ENV.API_KEY);
export const teardown = (before) => settle(before, { seconds: 120 });
export const handleSummary = summary;
