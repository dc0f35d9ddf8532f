"""A server for the protocol of `rlhf_ray.rewards.remote`: any component, computed where the server runs.

One address, POST /score. Requests are scored one after the other; waiting ones are held. Meant for loopback or a
private network: plain HTTP, with a bearer token if one is given.
"""

import hmac
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa

from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.schema import KEY, REWARD_PREFIX

PATH = "/score"
MAX_BODY_BYTES = 256 * 2**20

#: A scorer's answer to a table: its columns beside the keys, and the failures.
Score = Callable[[pa.Table], tuple[pa.Table, list[RewardFailure]]]


class RewardServer(ThreadingHTTPServer):
    """Serves one component: `serve_forever`, until `shutdown`."""

    daemon_threads = True
    request_queue_size = 128  # the default of 5 makes bursts of connections wait a second

    def __init__(self, address: tuple[str, int], name: str, score: Score, columns: Sequence[str], token: str | None):
        """Binds `address` (port 0: any free one). `columns`: what samples bring besides prompt and response."""
        self._score, self._token = score, token
        self._reward, self._columns = REWARD_PREFIX + name, ("prompt", "response", *columns)
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}{PATH}"

    def allows(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is the bearer token, where there is one."""
        return self._token is None or hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is its own affair."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, request: Any) -> dict[str, Any]:
        """The response to a decoded request. Raises Refused."""
        samples = request.get("samples") if isinstance(request, dict) else None
        if not isinstance(samples, list):
            raise Refused(HTTPStatus.BAD_REQUEST, 'send {"samples": [{"prompt": "...", "response": "..."}, ...]}')
        if not samples:
            return {"rewards": []}
        scored, failures = self._score(_table(samples, self._columns))
        rewards: list[Any] = scored.column(self._reward).to_pylist()
        under = f"{self._reward}/"
        columns = {name.removeprefix(under): name for name in scored.column_names if name.startswith(under)}
        if columns:
            parts = scored.select(list(columns.values())).rename_columns(list(columns)).to_pylist()
            rewards = [{"reward": reward, "parts": part} for reward, part in zip(rewards, parts, strict=True)]
        for failure in failures:
            rewards[failure.prompt_id] = {"error": f"it {failure.message}", "traceback": failure.traceback}
        return {"rewards": rewards}


class Refused(Exception):
    """A request that is answered with an error status; the text says why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def _table(samples: list[Any], columns: Sequence[str]) -> pa.Table:
    """The samples with a key each: prompt_id is the position. Raises Refused for one that cannot be scored."""
    for position, sample in enumerate(samples):
        missing = [name for name in columns if not isinstance(sample, dict) or name not in sample]
        if missing:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"samples[{position}] has no {', '.join(missing)}")
        if not (isinstance(sample["prompt"], str) and isinstance(sample["response"], str)):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"samples[{position}]: prompt and response must be strings")
    keys = [pa.array(range(len(samples)), KEY[0].type), pa.array([0] * len(samples), KEY[1].type)]
    cells = []
    for name in columns:
        try:
            cells.append(pa.array([sample[name] for sample in samples]))
        except pa.ArrowException as error:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"column {name} holds values of several types: {error}"
            ) from None
    return pa.table([*keys, *cells], names=[*(field.name for field in KEY), *columns])


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an idle connection is kept
    disable_nagle_algorithm = True  # or the body waits 40 ms for the header's acknowledgement

    def do_POST(self) -> None:
        try:
            status, content = HTTPStatus.OK, self.server.answer(self._read())
        except Refused as refused:
            status, content = refused.status, {"error": str(refused)}
        except Exception as error:  # a bug or a lost device: the client hears of it, and the next request is served
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}
        self._send(status, content)

    def do_GET(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"POST to {PATH}"})

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Successes are many and quiet."""

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _read(self) -> Any:
        """The decoded body. Raises Refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True  # what follows the header cannot be told from a next request
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(length))
        if not self.server.allows(self.headers.get("Authorization", "")):
            raise Refused(HTTPStatus.UNAUTHORIZED, "send the bearer token")
        if self.path != PATH:
            raise Refused(HTTPStatus.NOT_FOUND, f"POST to {PATH}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from None
