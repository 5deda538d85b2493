// Between the host and change.js, which holds what you want to edit.
import log from 'log';
import { change } from './change.js';

export function transform(context, payload) {
  const facts = {
    eventId: context.eventId,
    eventType: context.eventType,
    webhookId: context.webhookId,
    createdAt: new Date(Number(context.createdAtMs)),
    config: Object.fromEntries(context.config),
    log,
  };
  let outcome;
  try {
    outcome = change(facts, JSON.parse(new TextDecoder().decode(payload)));
  } catch (error) {
    // The host takes text as the reason of a failure.
    throw String(error?.message ?? error);
  }
  return lowered(outcome);
}

// change() gives back nothing, { drop }, { payload } or { body, contentType, headers }.
function lowered(outcome) {
  const bytes = (value) => new TextEncoder().encode(typeof value === 'string' ? value : JSON.stringify(value));
  if (outcome === undefined) return { tag: 'unchanged' };
  if ('drop' in outcome) return { tag: 'drop', val: String(outcome.drop) };
  if ('payload' in outcome) return { tag: 'payload', val: new TextEncoder().encode(JSON.stringify(outcome.payload)) };
  return {
    tag: 'body',
    val: {
      contentType: outcome.contentType ?? 'application/json',
      bytes: bytes(outcome.body),
      headers: Object.entries(outcome.headers ?? {}),
    },
  };
}
