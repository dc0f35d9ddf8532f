"""What scorers behind an HTTP endpoint share: samples in requests, so many at a time, an outcome for every row.

Runs on an event loop in a thread of its own, so that it works in an actor, a script and a notebook (whose thread runs a
loop already).
"""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from rlhf_ray.config.rewards import HTTPOptions
from rlhf_ray.errors import ConfigError, InfrastructureError
from rlhf_ray.rewards.http import JSONClient, RequestFailed
from rlhf_ray.rewards.outcome import Outcome

T = TypeVar("T")
Rows = Sequence[int]
#: Asks for the rewards of some rows until a deadline (a time of the running loop). May raise RequestFailed.
Ask = Callable[[Rows, float], Awaitable[list[Outcome]]]


class Endpoint:
    """The endpoint of one component. One call of `run` or `outcomes` at a time."""

    def __init__(self, where: str, section: HTTPOptions) -> None:
        """`where`: the component's key, `rewards.<name>`. Raises ConfigError when the token's variable is not set."""
        self._where, self._section = where, section
        self.client = JSONClient(where, section)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the endpoint's loop; exceptions pass through."""
        future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def probe(self, ask: Callable[[float], Awaitable[T]]) -> T:
        """A first request, before any sample depends on it.

        Raises ConfigError where it is refused, and InfrastructureError where nothing answers in time.
        """

        async def first() -> T:
            return await ask(asyncio.get_running_loop().time() + self._section.deadline_s)

        try:
            return self.run(first())
        except RequestFailed as failed:
            kind = ConfigError if failed.answered else InfrastructureError
            raise kind(
                f"{self._where}: the first request, to see whether the endpoint works, {failed.message}. "
                "Start the server, or correct the address."
            ) from None

    def outcomes(self, rows: int, per_request: int, ask: Ask) -> list[Outcome]:
        """The outcome of every row, asked for in requests of `per_request` rows, `concurrency` at a time.

        A request that the server refuses for its content is halved until only the culprits fail; its parts share its
        deadline. Under `on_failure: fail` the rows still open at the first failure are left without a value: the run
        stops there, and need not wait for more.
        """
        return self.run(self._outcomes(rows, per_request, ask))

    def close(self) -> None:
        """Close the connections and end the loop's thread."""
        if self._loop is not None:
            self.run(self.client.close())
            self._stop()
            self._loop = None

    async def _outcomes(self, rows: int, per_request: int, ask: Ask) -> list[Outcome]:
        found = [Outcome()] * rows
        open_requests = iter([range(rows)[start : start + per_request] for start in range(0, rows, per_request)])
        workers = min(self._section.concurrency, -(-rows // per_request))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(open_requests, ask, found))
        except ExceptionGroup as errors:
            others = [error for error in errors.exceptions if not isinstance(error, _FirstFailure)]
            if others:
                raise others[0] from None
        return found

    async def _work(self, open_requests: Iterator[range], ask: Ask, found: list[Outcome]) -> None:
        for request in open_requests:
            deadline = asyncio.get_running_loop().time() + self._section.deadline_s
            outcomes = await _ask_in_parts(request, ask, deadline)
            found[request.start : request.stop] = outcomes
            if self._section.on_failure == "fail" and any(outcome.failure for outcome in outcomes):
                raise _FirstFailure

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            self._stop = weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
            threading.Thread(target=_serve, args=(loop,), name=f"{self._where} http", daemon=True).start()
        return self._loop


class _FirstFailure(Exception):
    """Ends the requests in flight; the failure itself is among the outcomes."""


async def _ask_in_parts(rows: Rows, ask: Ask, deadline: float) -> list[Outcome]:
    clock = asyncio.get_running_loop().time
    started = clock()
    try:
        return await ask(rows, deadline)
    except RequestFailed as failed:
        if failed.answered and len(rows) > 1 and clock() < deadline:
            half = len(rows) // 2
            first = await _ask_in_parts(rows[:half], ask, deadline)
            return first + await _ask_in_parts(rows[half:], ask, deadline)
        return [Outcome(failure=failed.failure(), seconds=clock() - started)] * len(rows)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
