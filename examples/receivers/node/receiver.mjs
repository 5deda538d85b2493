// A webhook receiver with nothing but Node's standard library (18 or newer).
//
//   SECRET=whsec_... PORT=8090 node receiver.mjs
//
// EventPulse also sends X-EventPulse-Signature: sha256=<hex>, an HMAC-SHA256 over the raw body alone, keyed with
// the whole secret string, "whsec_" included. One of the two is enough; this one covers the id and the time as well.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';

const BODY_BYTES_MAX = 1024 * 1024;
const AGE_SECONDS_MAX = 5 * 60;
const REMEMBERED_MAX = 10_000;

const key = decodeSecret(process.env.SECRET ?? '');
const done = new Set(); // ids of processed events; a Set keeps the order of insertion, so the first is the oldest
const busy = new Set(); // ids being processed right now

// Your work goes here. Throw, and the sender tries again later.
async function processEvent(event) {
  if (typeof event.type !== 'string') throw new Error('the event has no type');
}

async function receive(request, response) {
  if (request.method !== 'POST') return answer(response, 405, 'POST only');

  const body = await readBody(request);
  if (body === null) return answer(response, 413, 'body too large');

  const { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures } = request.headers;
  if (!id || !timestamp || !signatures) return answer(response, 400, 'missing header');
  if (!/^[0-9]{1,12}$/.test(timestamp)) return answer(response, 400, 'bad timestamp');
  if (!signed(id, timestamp, body, signatures)) return answer(response, 401, 'bad signature');
  // The window stops the replay of a recorded request after its id has been forgotten.
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > AGE_SECONDS_MAX) return answer(response, 401, 'bad time');

  // Ids are looked at only now: a stranger must not be able to mark one as seen.
  if (done.has(id)) {
    console.log(`duplicate id=${id}`);
    return answer(response, 200, 'duplicate');
  }
  // The first copy may still fail, so the second is not told that all is well; it is sent again.
  if (busy.has(id)) return answer(response, 503, 'in progress', { 'Retry-After': '5' });

  busy.add(id);
  try {
    const event = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body));
    await processEvent(event);
    remember(id);
    console.log(`received id=${id} type=${JSON.stringify(event.type)} bytes=${body.length}`);
    answer(response, 200, 'ok');
  } catch (error) {
    console.log(`failed id=${id} ${JSON.stringify(error.message)}`);
    answer(response, 500, 'processing failed');
  } finally {
    busy.delete(id);
  }
}

function signed(id, timestamp, body, signatures) {
  const expected = createHmac('sha256', key).update(`${id}.${timestamp}.`, 'latin1').update(body).digest();
  // Several signatures stand side by side while a secret is being rotated; unknown versions are passed over.
  return signatures.split(' ').some((one) => {
    if (!one.startsWith('v1,')) return false;
    const given = Buffer.from(one.slice(3), 'base64');
    return given.length === expected.length && timingSafeEqual(given, expected);
  });
}

// This memory ends with the process and is not shared. With several processes, or where a repeat would cost money,
// insert the id under a unique key in your database, in the same transaction as the event's effect.
function remember(id) {
  done.add(id);
  if (done.size > REMEMBERED_MAX) done.delete(done.values().next().value);
}

// The signature is over bytes: parse the body and print it again, and it no longer matches.
async function readBody(request) {
  if (Number(request.headers['content-length']) > BODY_BYTES_MAX) return null;
  const chunks = [];
  let size = 0;
  // Leaving the loop early must not destroy the socket, or the answer is lost with it.
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    size += chunk.length;
    if (size > BODY_BYTES_MAX) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function answer(response, status, text, headers = {}) {
  // What follows an unread body cannot be understood, so that connection ends.
  if (status === 413 || status === 405) headers = { ...headers, Connection: 'close' };
  const content = Buffer.from(`${text}\n`);
  response.writeHead(status, { 'Content-Type': 'text/plain', 'Content-Length': content.length, ...headers });
  response.end(content);
}

function decodeSecret(secret) {
  const decoded = Buffer.from(secret.replace(/^whsec_/, ''), 'base64');
  if (!secret.startsWith('whsec_') || decoded.length < 16) {
    console.error('SECRET must read whsec_<base64>, as it was shown when the webhook was registered');
    process.exit(64);
  }
  return decoded;
}

const server = createServer((request, response) => {
  receive(request, response).catch((error) => {
    console.error(`request failed: ${error.message}`); // the sender went away half way; it will come again
    response.destroy();
  });
});
server.headersTimeout = 10_000;
server.requestTimeout = 30_000;
server.listen(Number(process.env.PORT ?? 8090), process.env.HOST ?? '127.0.0.1', () => {
  const { address, port } = server.address();
  console.log(`listening on ${address}:${port}`);
});
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => server.close());
