// What the transform does. Plain JavaScript: `npm test` runs it in Node.

// Lets orders of at least `min` through, and sends less of them.
export function change({ eventType, config, log }, order) {
  const min = Number(config.min ?? 0);
  if (typeof order.amount !== 'number') throw new Error('the payload has no amount');
  if (order.amount < min) return { drop: `amount ${order.amount} is below ${min}` };
  log('debug', `amount ${order.amount} of ${eventType}`);
  return { payload: { order: order.orderId, total: { amount: order.amount, currency: config.currency ?? 'EUR' } } };
}
