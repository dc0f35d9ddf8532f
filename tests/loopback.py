"""A real HTTP server on loopback whose answers a test writes as a function."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    time: float  # seconds, monotonic


@dataclass(frozen=True)
class Reply:
    body: Any = None  # JSON, or bytes as they are
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    byte_every_s: float | None = None  # trickle the body
    hang_up: bool = False  # close the connection without an answer


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[Request] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(answer: Callable[[Request], Reply]) -> Iterator[Loopback]:
    """A server for the length of a `with` block."""
    server = Loopback(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(content) if content else None
        request = Request(self.command, self.path, dict(self.headers), body, time.monotonic())
        with server.lock:
            server.requests.append(request)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        reply = server.answer(request)
        time.sleep(reply.after_s)
        with server.lock:
            server.at_once -= 1
        self.close_connection = reply.hang_up
        if not reply.hang_up:
            self._send(reply)

    do_GET = do_POST

    def _send(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        pieces = [body] if reply.byte_every_s is None else [bytes([byte]) for byte in body]
        try:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(reply.byte_every_s or 0.0)
        except OSError:  # the client gave up, as some tests want
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
