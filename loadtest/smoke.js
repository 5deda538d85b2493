// 20 seconds at 200 events a second: does the whole way work? No threshold on time, so a busy machine cannot fail it.

import { begin, env, honest, send, settle, summary, trend } from './lib/eventpulse.js';

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate',
      rate: Number(env('RATE', 200)),
      timeUnit: '1s',
      duration: env('DURATION', '20s'),
      preAllocatedVUs: 50,
      maxVUs: 400,
    },
  },
  thresholds: { ...honest, refused: ['count==0'] },
  summaryTrendStats: trend,
};

export const setup = begin;
export default () => send(__ENV.API_KEY);
export const teardown = (before) => settle(before);
export const handleSummary = summary;
