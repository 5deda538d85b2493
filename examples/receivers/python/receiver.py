"""A webhook receiver with nothing but Python's standard library (3.8 or newer).

    SECRET=whsec_... PORT=8090 python3 receiver.py

EventPulse also sends X-EventPulse-Signature: sha256=<hex>, an HMAC-SHA256 over the raw body alone, keyed with the
whole secret string, "whsec_" included. One of the two is enough; this one covers the id and the time as well.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_BYTES_MAX = 1024 * 1024
AGE_SECONDS_MAX = 5 * 60
REMEMBERED_MAX = 10_000


def process(event):
    """Your work goes here. Raise, and the sender tries again later."""
    if not isinstance(event["type"], str):
        raise ValueError("the event has no type")


class Seen:
    """The ids of the last processed events, and of those being processed right now.

    This memory ends with the process and is not shared. With several processes, or where a repeat would cost money,
    insert the id under a unique key in your database, in the same transaction as the event's effect.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._done = {}  # a dict keeps the order of insertion, so the first key is the oldest
        self._busy = set()

    def begin(self, event_id):
        with self._lock:
            if event_id in self._done:
                return "duplicate"
            if event_id in self._busy:
                return "busy"
            self._busy.add(event_id)
            return "new"

    def end(self, event_id, succeeded):
        with self._lock:
            self._busy.discard(event_id)
            if succeeded:
                self._done[event_id] = None
                if len(self._done) > REMEMBERED_MAX:
                    del self._done[next(iter(self._done))]


def decode_secret(secret):
    try:
        key = base64.b64decode(secret[len("whsec_"):], validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith("whsec_") or len(key) < 16:
        print("SECRET must read whsec_<base64>, as it was shown when the webhook was registered", file=sys.stderr)
        sys.exit(64)
    return key


def is_signed(key, event_id, timestamp, body, signatures):
    message = f"{event_id}.{timestamp}.".encode("latin-1") + body
    expected = b"v1," + base64.b64encode(hmac.new(key, message, hashlib.sha256).digest())
    # Several signatures stand side by side while a secret is being rotated; each is compared in constant time.
    return any(hmac.compare_digest(one.encode("latin-1"), expected) for one in signatures.split(" "))


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds without a byte, after which a connection and its thread are given up

    def do_POST(self):
        body = self.read_body()
        if body is None:
            return

        event_id = self.headers.get("webhook-id")
        timestamp = self.headers.get("webhook-timestamp")
        signatures = self.headers.get("webhook-signature")
        if not event_id or not timestamp or not signatures:
            return self.answer(400, "missing header")
        if not re.fullmatch("[0-9]{1,12}", timestamp):
            return self.answer(400, "bad timestamp")
        if not is_signed(self.server.key, event_id, timestamp, body, signatures):
            return self.answer(401, "bad signature")
        # The window stops the replay of a recorded request after its id has been forgotten.
        if abs(time.time() - int(timestamp)) > AGE_SECONDS_MAX:
            return self.answer(401, "bad time")

        # Ids are looked at only now: a stranger must not be able to mark one as seen.
        state = self.server.seen.begin(event_id)
        if state == "duplicate":
            print(f"duplicate id={event_id}", flush=True)
            return self.answer(200, "duplicate")
        if state == "busy":
            # The first copy may still fail, so the second is not told that all is well; it is sent again.
            return self.answer(503, "in progress", {"Retry-After": "5"})

        succeeded = False
        try:
            event = json.loads(body.decode("utf-8"))
            process(event)
            succeeded = True
        except Exception as error:  # whatever went wrong, the sender has to hear of it
            # Its type alone: the text of some errors repeats the whole body.
            print(f"failed id={event_id} {type(error).__name__}", flush=True)
        finally:
            self.server.seen.end(event_id, succeeded)
        if not succeeded:
            return self.answer(500, "processing failed")
        print(f"received id={event_id} type={json.dumps(event['type'])} bytes={len(body)}", flush=True)
        return self.answer(200, "ok")

    def do_GET(self):
        self.close_connection = True
        self.answer(405, "POST only")

    def read_body(self):
        """The body's bytes as they came: parse them and print them again, and the signature no longer matches."""
        length = self.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,12}", length):
            # http.server does not decode chunks; EventPulse always says how long a body is.
            self.close_connection = True
            return self.answer(411, "length required")
        if int(length) > BODY_BYTES_MAX:
            # What follows an unread body cannot be understood, so this connection ends.
            self.close_connection = True
            return self.answer(413, "body too large")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True  # the sender went away half way; it will come again
            return None
        return body

    def answer(self, status, text, headers=None):
        content = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code="-", size="-"):
        pass  # one line per event is enough


def main():
    key = decode_secret(os.environ.get("SECRET", ""))
    address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8090")))
    with ThreadingHTTPServer(address, Receiver) as server:
        server.key = key
        server.seen = Seen()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("listening on {}:{}".format(*server.server_address), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
