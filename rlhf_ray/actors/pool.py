"""Replicas of one stateless actor behind one queue: bounded requests in flight, deadlines, restart of what died.

A call ends in one of three ways: a value, an error of the actor's own code (raised here, it would fail again
elsewhere), or the loss of the actor (it is restarted, the call goes back into the queue).
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rlhf_ray.actors.calls import describe_health, result
from rlhf_ray.errors import InfrastructureError

IN_FLIGHT = 2  # per actor: one running, one waiting, so that it never idles between two calls


@dataclass
class _Call:
    key: Any
    arguments: tuple[Any, ...]
    actor: int = -1
    handle: ActorHandle | None = None  # the actor's life that the call went to
    results: tuple[ray.ObjectRef, ...] = ()
    started: float = 0.0


@dataclass(frozen=True)
class Done:
    """A finished call: its key, its small last result by value, and references to the results before that."""

    key: Any
    value: Any
    refs: tuple[ray.ObjectRef, ...]


class ActorPool:
    """`size` actors of one kind, started by `start(index)`; `method` is called with the arguments of `submit`.

    The method returns `returns` objects; all but the last stay in the object store and are handed on as references.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[int], ActorHandle],
        size: int,
        method: str,
        *,
        returns: int = 1,
        deadline_s: float,
        restarts: int = 3,
    ) -> None:
        self.name, self._start, self._method, self._returns = name, start, method, returns
        self._deadline_s, self._restarts = deadline_s, restarts
        self.actors = [start(index) for index in range(size)]
        self._load = [0] * size
        self._waiting: deque[_Call] = deque()
        self._running: dict[ray.ObjectRef, _Call] = {}

    def submit(self, key: Any, *arguments: Any) -> None:
        """Queue a call; `key` comes back with its result."""
        self._waiting.append(_Call(key, arguments))
        self._dispatch()

    def pending(self) -> list[ray.ObjectRef]:
        """What to wait for: the last result of every call in flight."""
        return list(self._running)

    @property
    def unfinished(self) -> int:
        """Calls not yet answered."""
        return len(self._running) + len(self._waiting)

    def take(self, ref: ray.ObjectRef) -> Done | None:
        """The finished call behind a reference that is ready; None when its actor was lost and the call runs again."""
        call = self._running.pop(ref)
        self._load[call.actor] -= 1
        try:
            value = result(ref, f"{self.name}/{call.actor}")
        except InfrastructureError as error:
            if not isinstance(error.__cause__, RayActorError):
                raise
            self._replace(call, error)
            self._waiting.appendleft(call)
            self._dispatch()
            return None
        self._restart_clocks(call.actor)
        self._dispatch()
        return Done(call.key, value, call.results[:-1])

    def check_deadlines(self) -> None:
        """Raise for a call that has run too long, naming the actor and what it is doing."""
        for call in self._running.values():
            waited = time.monotonic() - call.started
            if waited > self._deadline_s:
                raise InfrastructureError(
                    f"{self.name}/{call.actor} has not answered `{self._method}` for {waited:.0f} s "
                    f"(limit {self._deadline_s:g} s); it is {describe_health(self.actors[call.actor])}"
                )

    def _dispatch(self) -> None:
        while self._waiting:
            actor = min(range(len(self.actors)), key=lambda i: self._load[i])
            if self._load[actor] >= IN_FLIGHT:
                return
            call = self._waiting.popleft()
            call.actor, call.handle, call.started = actor, self.actors[actor], time.monotonic()
            method = getattr(self.actors[actor], self._method).options(num_returns=self._returns)
            results = method.remote(*call.arguments)
            call.results = tuple(results) if self._returns > 1 else (results,)
            self._running[call.results[-1]] = call
            self._load[actor] += 1

    def _replace(self, call: _Call, error: Exception) -> None:
        """Start the lost actor again, unless another of the calls that it took along has done so."""
        if self.actors[call.actor] is not call.handle:
            return
        if self._restarts <= 0:
            raise InfrastructureError(f"{self.name}/{call.actor} died too often: {error}") from error
        self._restarts -= 1
        ray.kill(call.handle, no_restart=True)
        self.actors[call.actor] = self._start(call.actor)

    def _restart_clocks(self, actor: int) -> None:
        """An actor that has just answered is not silent: the time of its next call counts from here."""
        for call in self._running.values():
            if call.actor == actor:
                call.started = time.monotonic()
