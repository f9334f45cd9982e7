"""A real HTTP server on loopback that speaks the OpenAI protocol, and breaks it in every way, by the address's first
part.

http://127.0.0.1:PORT/<fault>/v1 is the base URL of a profile; the faults are the methods of `Faults`.
"""

from __future__ import annotations

import gzip
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai.types.chat import ChatCompletion

GOOD = {
    "reasoning": "The circle is missing.",
    "refined_prompt": "a clearly visible red circle moves left",
    "negative_prompt": "empty frame, text",
}

BOMB = gzip.compress(b" " * 20_000_000)


def completion(content: Any, **message: Any) -> bytes:
    """A chat completion as OpenAI's own package types it."""
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 800, "completion_tokens": 50, "total_tokens": 850},
    }  # fmt: skip
    if isinstance(content, str) or content is None:
        ChatCompletion.model_validate(body, strict=True)
    return json.dumps(body).encode()


class Faults:
    """Each method answers one POST; `handler.server.seen` holds all requests."""

    def good(self, handler):
        handler.reply(completion(json.dumps(GOOD)))

    def answers(self, handler):
        """Whatever the test has put into server.content."""
        handler.reply(completion(handler.server.content))

    def raw(self, handler):
        handler.reply(handler.server.content)

    def fenced(self, handler):
        handler.reply(completion(f"Here it is:\n```json\n{json.dumps(GOOD, indent=1)}\n```\nEnjoy!"))

    def parts(self, handler):
        handler.reply(completion([{"type": "text", "text": json.dumps(GOOD)}]))

    def cut_answer(self, handler):
        handler.reply(completion(json.dumps(GOOD)[:-9]))

    def no_schema(self, handler):
        if "response_format" in handler.server.seen[-1]["body"]:
            return handler.reply(b'{"error": "unknown response_format"}', 400)
        self.fenced(handler)

    def soon(self, handler):
        if len(handler.server.seen) < 2:
            return handler.reply(b"{}", 429, {"Retry-After": "0.2"})
        self.good(handler)

    def soon_by_date(self, handler):
        if len(handler.server.seen) < 2:
            return handler.reply(b"{}", 429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        self.good(handler)

    def later(self, handler):
        handler.reply(b"{}", 429, {"Retry-After": "3600"})

    def busy(self, handler):
        handler.reply(b"{}", 429)

    def once_500(self, handler):
        if len(handler.server.seen) < 2:
            return handler.reply(b"oops", 500)
        self.good(handler)

    def always_500(self, handler):
        handler.reply(b"oops", 500)

    def unauthorised(self, handler):
        handler.reply(json.dumps({"error": {"message": handler.headers.get("Authorization")}}).encode(), 401)

    def unknown(self, handler):
        handler.reply(b"{}", 404)

    def hang(self, handler):
        time.sleep(handler.server.patience)

    def drip(self, handler):
        handler.head(200, {"Content-Length": "100000"})
        handler.feed(b" ")

    def drip_headers(self, handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        handler.feed(b"a")

    def endless(self, handler):
        handler.head(200, {"Transfer-Encoding": "chunked"})
        handler.feed(b"10000\r\n" + b"a" * 65536 + b"\r\n", 0)

    def endless_error(self, handler):
        handler.head(500, {"Transfer-Encoding": "chunked"})
        handler.feed(b"10000\r\n" + b"a" * 65536 + b"\r\n", 0)

    def endless_redirect(self, handler):
        handler.head(307, {"Transfer-Encoding": "chunked", "Location": handler.server.elsewhere})
        handler.feed(b"10000\r\n" + b"a" * 65536 + b"\r\n", 0)

    def long(self, handler):
        handler.reply(completion(json.dumps(GOOD) + " " * 10_000_000))

    def bomb(self, handler):
        handler.reply(BOMB, headers={"Content-Encoding": "gzip"})

    def redirect(self, handler):
        handler.reply(b"", 307, {"Location": handler.server.elsewhere})

    def redirect_home(self, handler):
        handler.reply(b"", 301, {"Location": "/good/v1/chat/completions"})

    def short(self, handler):
        body = completion(json.dumps(GOOD))
        handler.head(200, {"Content-Length": str(len(body) + 10)})
        handler.wfile.write(body)
        handler.close_connection = True

    def hang_up(self, handler):
        handler.close_connection = True

    def not_http(self, handler):
        handler.wfile.write(b"\x00\xff\x00" * 100)
        handler.close_connection = True

    def continues(self, handler):
        handler.feed(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), "body": json.loads(body),
                                 "bytes": len(body)})  # fmt: skip
        try:
            getattr(Faults(), self.path.split("/")[1])(self)
        except OSError:
            self.server.cut_off.set()  # the client has gone: what is expected after it gave up

    def do_GET(self):
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), "body": None, "bytes": 0})
        self.reply(b"{}")

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def feed(self, piece: bytes, pause: float = 0.05) -> None:
        """Piece after piece, until the client goes away or the server's patience ends."""
        until = time.monotonic() + self.server.patience
        while time.monotonic() < until:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(pause)

    def log_message(self, *_):
        pass


class OpenAIServer(ThreadingHTTPServer):
    """seen: all requests. patience: seconds that the slow faults go on. cut_off: set once a client left too early."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https" if context else "http"
        self.seen: list[dict[str, Any]] = []
        self.content: Any = ""
        self.patience = 20.0
        self.cut_off = threading.Event()
        self.elsewhere = "http://127.0.0.1:9/"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def url(self, fault: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{fault}/v1"

    def handle_error(self, request, client_address):  # a refused handshake, a client that has gone
        self.cut_off.set()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
