import assert from 'node:assert';
import { test } from 'node:test';
import { change } from './change.js';

const facts = (config) => ({ eventType: 'order.paid', config, log: () => {} });

test('large orders are reshaped', () => {
  const outcome = change(facts({ min: '100' }), { orderId: 'A-7', amount: 100, secret: 1 });
  assert.deepEqual(outcome, { payload: { order: 'A-7', total: { amount: 100, currency: 'EUR' } } });
});

test('small orders are dropped', () => {
  assert.deepEqual(change(facts({ min: '100' }), { amount: 99.5 }), { drop: 'amount 99.5 is below 100' });
});

test('what is no order is an error', () => {
  assert.throws(() => change(facts({}), {}), /no amount/);
});
