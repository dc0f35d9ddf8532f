"""One thread owns an inference engine: it adds requests, steps, and runs whatever needs the engine to stand still.

Other threads hand it work through a queue and never touch the engine, so an actor answers health probes while it
generates. The engine is anything with vLLM's `LLMEngine` methods `add_request`, `abort_request`, `step` and
`has_unfinished_requests`; this file does not import vLLM.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlhf_ray.actors import memory
from rlhf_ray.errors import ActorLost, ConfigError, RLHFRayError

T = TypeVar("T")
Work = tuple[Callable[[Any], Any], Future]
#: seconds without a finished engine step after which waiting is given up (a first step may compile kernels)
STALL_S = 600.0


@dataclass
class Stream:
    """Finished outputs of one batch of requests, in the order in which they finish, as (position, output)."""

    size: int
    admitted: Any = None  # what `admit` returned
    outputs: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    request_ids: list[str] = field(default_factory=list)


class EngineThread:
    """Runs `build()` and then the engine loop on its own daemon thread."""

    def __init__(self, build: Callable[[], Any], name: str = "engine") -> None:
        self._inbox: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._streams: dict[str, tuple[Stream, int]] = {}
        self._batches = itertools.count()
        self._failure: BaseException | None = None
        self._progress = time.monotonic()
        self._state, self._state_since = "loading", time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(build,), name=name, daemon=True)
        self._thread.start()

    # ---- called from other threads

    def call(self, work: Callable[[Any], T], timeout_s: float = STALL_S) -> T:
        """Run `work(engine)` on the engine's thread, between two steps, and return what it returns.

        Raises:
            ActorLost: the engine failed, or did not get to it within `timeout_s`.
        """
        future: Future = Future()
        self._inbox.put((work, future))
        self._check()
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            raise ActorLost(
                f"The engine did not answer within {timeout_s:g} s; it is {self._state} since "
                f"{time.monotonic() - self._state_since:.0f} s with {len(self._streams)} requests running."
            ) from None

    def submit(
        self,
        requests: Sequence[tuple[Any, Any]],
        admit: Callable[[], Any],
        options: Callable[[], Mapping[str, Any]] = dict,
    ) -> Stream:
        """Queue (prompt, sampling parameters) pairs, with further `options` of `add_request` for all of them.

        `admit` runs first, on the engine's thread, and may raise; then `options`.
        """
        stream, batch = Stream(len(requests)), next(self._batches)

        def add(engine: Any) -> None:
            stream.admitted = admit()
            further = options()
            try:
                for position, (prompt, params) in enumerate(requests):
                    request_id = f"{batch}-{position}"
                    engine.add_request(request_id, prompt, params, **further)
                    stream.request_ids.append(request_id)
                    self._streams[request_id] = (stream, position)
            except Exception:
                self._abort(engine, stream)
                raise

        self.call(add)
        return stream

    def drain(self, stream: Stream) -> Iterator[tuple[int, Any]]:
        """(position in the batch, output) as requests finish; requests still running when left early are aborted."""
        received = 0
        try:
            while received < stream.size:
                yield self._next(stream)
                received += 1
        finally:
            if received < stream.size:
                self._inbox.put((lambda engine: self._abort(engine, stream), Future()))

    def status(self) -> dict[str, Any]:
        """{"state", "since_s", "running"}: answered at any time, whatever the engine does."""
        return {"state": self._state, "since_s": time.monotonic() - self._state_since, "running": len(self._streams)}

    # ---- called on the engine's thread only

    def finish_running(self, engine: Any) -> None:
        """Step until no request is running: what must not mix two policies calls this first."""
        while engine.has_unfinished_requests():
            self._step(engine)

    def _run(self, build: Callable[[], Any]) -> None:
        try:
            engine = build()
            while True:
                busy = engine.has_unfinished_requests()
                self._enter("generating" if busy else "idle")
                while not busy or not self._inbox.empty():
                    self._work(engine)
                    busy = engine.has_unfinished_requests()
                self._enter("generating")
                self._step(engine)
        except BaseException as exc:  # the engine is lost: every waiter learns why
            self._failure = exc
            self._enter("failed")
            self._fail_waiters()

    def _work(self, engine: Any) -> None:
        work, future = self._inbox.get()
        self._enter("working")
        try:
            future.set_result(work(engine))
        except Exception as exc:  # belongs to the caller, who gets it from the future
            future.set_exception(exc)
        self._progress = time.monotonic()
        self._enter("idle")

    def _step(self, engine: Any) -> None:
        for output in engine.step():
            if output.finished and output.request_id in self._streams:  # an aborted request is no longer there
                stream, position = self._streams.pop(output.request_id)
                stream.outputs.put((position, output))
        self._progress = time.monotonic()

    def _abort(self, engine: Any, stream: Stream) -> None:
        running = [request_id for request_id in stream.request_ids if self._streams.pop(request_id, None)]
        engine.abort_request(running)

    def _enter(self, state: str) -> None:
        if state != self._state:
            self._state, self._state_since = state, time.monotonic()

    # ---- failures

    def _next(self, stream: Stream) -> tuple[int, Any]:
        while True:
            try:
                return stream.outputs.get(timeout=1.0)
            except queue.Empty:
                self._check()
                silent = time.monotonic() - self._progress
                if silent > STALL_S:
                    raise ActorLost(f"The engine finished no step for {silent:.0f} s.") from None

    def _check(self) -> None:
        if self._failure is not None:
            self._fail_waiters()
            raise self._error() from self._failure

    def _fail_waiters(self) -> None:
        while True:
            try:
                _, future = self._inbox.get_nowait()
            except queue.Empty:
                return
            future.set_exception(self._error())

    def _error(self) -> RLHFRayError:
        """What waiters are told: a configuration that the engine refused is no lost engine."""
        if isinstance(self._failure, ConfigError):
            return ConfigError(str(self._failure))
        if self._failure is not None and memory.ran_out(self._failure):
            return memory.explained(self._failure, "running the engine")
        return ActorLost(f"The engine failed: {self._failure!r}")
