// A rate that climbs to PEAK and stays there. Asks: are events answered quickly while the load grows?

import { begin, env, honest, send, settle, summary, trend } from './lib/eventpulse.js';

const peak = Number(env('PEAK', 2000));

export const options = {
  scenarios: {
    climb: {
      executor: 'ramping-arrival-rate',
      startRate: Math.ceil(peak / 10),
      timeUnit: '1s',
      preAllocatedVUs: 100,
      maxVUs: 1000,
      stages: [
        { target: peak, duration: env('CLIMB', '20s') },
        { target: peak, duration: env('STAY', '20s') },
      ],
    },
  },
  // k6 takes a whole core at these rates; the engine's own share of these times is a few milliseconds.
  thresholds: { ...honest, refused: ['count==0'], 'http_req_duration{name:send-event}': ['p(50)<20', 'p(99)<250'] },
  summaryTrendStats: trend,
};

export const setup = begin;
export default () => send(__ENV.API_KEY);
export const teardown = (before) => settle(before);
export const handleSummary = summary;
