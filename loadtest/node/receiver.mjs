// A receiver with the settings that Node's server has by itself. Prints where it listens; `GET /seen` says what came.
import { createServer } from "node:http";

const seen = { requests: 0, connections: 0, latest: 0 };

const server = createServer((request, response) => {
  if (request.url === "/seen") {
    response.end(JSON.stringify(seen));
    return;
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    seen.requests += 1;
    // Microseconds since 1970 at which the event was due.
    const due = JSON.parse(Buffer.concat(pieces)).payload.at / 1000;
    seen.latest = Math.max(seen.latest, Math.round((Date.now() - due) * 10) / 10);
    response.end();
  });
});
server.on("connection", () => (seen.connections += 1));
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
