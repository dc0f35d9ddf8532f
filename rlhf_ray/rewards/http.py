"""JSON over HTTP as rewards need it: retries with growing waits, one deadline, and errors sorted by whose they are.

A request is tried again after a lost connection, a 429 and a 5xx, up to `retries` times, after `backoff_s`, twice that,
four times that, ..., each with jitter, or what the server asks for in Retry-After; never past its deadline. Everything
else is final: an answer that says the address or the token is wrong (3xx, 401, 403, 404, 405) is a ConfigError, any
other 4xx and an attempt that takes longer than `timeout_s` is a failure of the samples in the request.
"""

import asyncio
import json
import os
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf_ray.config.rewards import HTTPOptions
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.outcome import CallFailure, FailureKind

_KEEP_ALIVE_S = 2.0  # less than any common server's: a connection that both sides may close at once gets lost
_EXCERPT = 600  # characters of a body that errors show


class RequestFailed(Exception):
    """A request that gave no usable answer. `message` reads on after "it"."""

    def __init__(self, kind: FailureKind, message: str, *, answered: bool = False) -> None:
        """`answered`: the server refused this very content, so that a part of it may fare better."""
        super().__init__(message)
        self.kind, self.message, self.answered = kind, message, answered

    def failure(self) -> CallFailure:
        return CallFailure(self.kind, self.message)


class _TryAgain(RequestFailed):
    """A failure that may pass by itself; `wait_s`: how long the server asks to leave it alone."""

    def __init__(self, kind: FailureKind, message: str, *, answered: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(kind, message, answered=answered)
        self.wait_s = wait_s


class NotThere(ConfigError):
    """The endpoint knows no such address."""


class JSONClient:
    """Talks JSON to the endpoint of one component; on one event loop from the first request to `close`."""

    def __init__(self, where: str, section: HTTPOptions) -> None:
        """`where`: the component's key, `rewards.<name>`. Raises ConfigError when the token's variable is not set."""
        self._where, self._section = where, section
        self._headers = {"Accept": "application/json", **_authorization(where, section.token_env)}
        self._random = random.Random()
        self._client: httpx.AsyncClient | None = None

    async def post(self, url: str, payload: object, deadline: float) -> Any:
        """The decoded answer to `payload`; `deadline` is a time of the running loop. Raises RequestFailed."""
        body = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        return await self._request("POST", url, body, deadline)

    async def get(self, url: str, deadline: float) -> Any:
        """The decoded answer. Raises RequestFailed."""
        return await self._request("GET", url, None, deadline)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _request(self, method: str, url: str, body: bytes | None, deadline: float) -> Any:
        last: _TryAgain | None = None
        for attempt in range(self._section.retries + 1):
            if last is not None:
                await self._back_off(last, attempt, deadline)
            try:
                return await self._attempt(method, url, body, deadline)
            except _TryAgain as trouble:
                last = trouble
        assert last is not None
        attempts = f" ({attempt + 1} attempts)" if attempt else ""
        raise RequestFailed(last.kind, last.message + attempts, answered=last.answered)

    async def _back_off(self, last: _TryAgain, retry: int, deadline: float) -> None:
        """Wait before the first, second, ... `retry`. Raises RequestFailed when that would pass the deadline."""
        wait_s = max(last.wait_s, self._section.backoff_s * 2 ** (retry - 1) * self._random.uniform(0.5, 1.5))
        if asyncio.get_running_loop().time() + wait_s >= deadline:
            asked = f", and asks to wait {last.wait_s:g} s" if last.wait_s else ""
            late = f"{last.message}{asked}; the next attempt would pass deadline_s ({self._section.deadline_s:g})"
            raise RequestFailed("timeout", late)
        await asyncio.sleep(wait_s)

    async def _attempt(self, method: str, url: str, body: bytes | None, deadline: float) -> Any:
        client = self._open()  # before the clock is read: the first time loads certificates
        left_s = deadline - asyncio.get_running_loop().time()
        limit_s = min(self._section.timeout_s, left_s)
        try:
            async with asyncio.timeout(limit_s):  # over all of it; httpx alone would bound the gaps between bytes
                response = await client.request(method, url, content=body)
        except TimeoutError:
            named = "timeout_s" if limit_s < left_s else "what deadline_s left"
            raise RequestFailed("timeout", f"got no answer from {url} within {limit_s:.3g} s ({named})") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"{self._where}: {url} is no address to send a request to: {error}") from None
        except httpx.RequestError as error:
            cause = str(error) or type(error).__name__
            raise _TryAgain("died", f"lost the connection to {url}: {cause}") from None
        return self._decode(url, response)

    def _decode(self, url: str, response: httpx.Response) -> Any:
        """The JSON of a good answer, or whose error it is."""
        status = response.status_code
        if status < 300:
            try:
                return response.json()
            except ValueError as error:
                message = f"got an answer from {url} that is no JSON ({error}): {excerpt(response.text)}"
                raise RequestFailed("wrong_type", message, answered=True) from None
        said = f"{url} answered {status} {response.reason_phrase}: {excerpt(response.text)}"
        if status < 400:
            target = response.headers.get("Location", "nowhere")
            raise ConfigError(f"{self._where}: {url} redirects to {target}; configure the final address.")
        if status in _WHAT_TO_DO:
            kind = NotThere if status in (404, 405) else ConfigError
            raise kind(f"{self._where}: {said}\n{_WHAT_TO_DO[status]}")
        message = f"was refused: {said}"
        if status == 429 or status >= 500:
            raise _TryAgain("raised", message, answered=status == 500, wait_s=_retry_after_s(response))
        raise RequestFailed("raised", message, answered=True)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_S)
            headers = {**self._headers, "Content-Type": "application/json"}
            self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)
        return self._client


_WHAT_TO_DO = {
    401: "Name the environment variable that holds the token in `token_env`, and check the token.",
    403: "Check the token (`token_env`) and what it may do.",
    404: "Check the address, and for a judge the model's name.",
    405: "Check the address: there is something, but it takes no such request.",
}


def excerpt(text: str) -> str:
    """`text` on one line, cut to what an error can show."""
    flat = " ".join(text.split()) or "(empty)"
    return flat if len(flat) <= _EXCERPT else f"{flat[:_EXCERPT]} ... ({len(flat)} characters)"


def _authorization(where: str, token_env: str | None) -> dict[str, str]:
    if token_env is None:
        return {}
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise ConfigError(
            f"{where}.token_env: the environment variable {token_env} is not set where this component runs. "
            "Export it before `ray start` or before the run, or remove token_env."
        )
    return {"Authorization": f"Bearer {token}"}


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that a Retry-After header asks for, written as such or as a date; 0 without one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # absent or malformed; a date without a zone
        return 0.0
