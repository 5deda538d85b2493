// Quiet, then suddenly BURST events a second for a few seconds, three times. Asks: is a burst absorbed, and does
// everything of it arrive?

import { begin, env, honest, send, settle, summary, trend } from './lib/eventpulse.js';

const burst = Number(env('BURST', 3000));
const quiet = Number(env('QUIET', 50));

const bursts = [];
for (let i = 0; i < 3; i += 1) {
  bursts.push(
    { target: quiet, duration: '4s' },
    { target: burst, duration: '0s' },
    { target: burst, duration: env('LENGTH', '4s') },
    { target: quiet, duration: '0s' },
  );
}

export const options = {
  scenarios: {
    bursts: {
      executor: 'ramping-arrival-rate',
      startRate: quiet,
      timeUnit: '1s',
      preAllocatedVUs: 400,
      maxVUs: 1500,
      stages: bursts,
    },
  },
  thresholds: { ...honest, 'http_req_duration{name:send-event}': ['p(99)<1000'] },
  summaryTrendStats: trend,
};

export const setup = begin;
export default () => send(__ENV.API_KEY);
export const teardown = (before) => settle(before);
export const handleSummary = summary;
