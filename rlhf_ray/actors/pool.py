"""Replicas of one kind of actor behind one queue: bounded calls in flight, deadlines, and no call lost with its actor.

A call is answered once, or by a stream of answers. It ends in one of three ways: with its answers, with an error of the
actor's own code (raised here, it would fail again elsewhere), or lost with its actor. Then one that is answered once
goes back into the queue; of a stream some answers are there already, and the caller asks for the rest.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.actor import ActorHandle

from rlhf_ray.actors.calls import describe_health, result, wait_ready
from rlhf_ray.actors.replicas import TICK_S, Replicas, State
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.errors import ActorLost, ObjectLost

IN_FLIGHT = 2  # per actor: one running, one waiting, so that it never idles between two calls


@dataclass(frozen=True)
class Done:
    """A call's answer, or the next one of its stream: a small value, and references to what came before it."""

    key: Any
    value: Any
    refs: tuple[ray.ObjectRef, ...]


@dataclass(frozen=True)
class Lost:
    """A stream ended with its actor, or an object that the call was given is gone with its node."""

    key: Any


@dataclass
class _Call:
    key: Any
    arguments: tuple[Any, ...]
    actor: int = -1
    life: int = 0  # of the actor that the call went to
    results: Any = None  # references, or the stream
    held: ray.ObjectRef | None = None  # of a stream: the object whose small companion comes next
    heard: float = 0.0


class ActorPool:
    """`size` actors started by `start(index)`; `method` is called with the arguments of `submit`.

    The method returns `returns` objects, all but the last of which stay in the object store; or it is a generator that
    yields such a large object and a small one in turn ("streaming"). An actor that owes an answer and is silent for
    `deadline_s`, default resources.call_timeout_s, is killed and started again. `weights`: see `Replicas`.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[int], ActorHandle],
        size: int,
        method: str,
        *,
        returns: int | Literal["streaming"] = 1,
        deadline_s: float | None = None,
        supervision: Supervision | None = None,
        weights: bool = False,
    ) -> None:
        self.name, self._method, self._returns = name, method, returns
        supervision = supervision or Supervision()
        self._deadline_s = deadline_s or supervision.resources.call_timeout_s
        self.replicas = Replicas(name, start, size, supervision, weights)
        self._waiting: deque[_Call] = deque()
        self._running: dict[Any, _Call] = {}  # what to wait for -> its call
        self._events: list[Done | Lost] = []

    @property
    def actors(self) -> list[ActorHandle]:
        """The actors of today."""
        return self.replicas.handles

    @property
    def unfinished(self) -> int:
        """Calls that are not answered in full."""
        return len(self._running) + len(self._waiting)

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until all actors have loaded. See `Replicas.wait_ready`."""
        self.replicas.wait_ready(deadline_s)

    def submit(self, key: Any, *arguments: Any) -> None:
        """Queue a call; `key` comes back with its answers."""
        self._waiting.append(_Call(key, arguments))
        self._dispatch()

    def pending(self) -> list[Any]:
        """What to wait for before the next `step`."""
        return [*self._running, *self.replicas.pending()]

    def step(self, ready: Iterable[Any]) -> list[Done | Lost]:
        """Take what is ready, look after the actors and hand out calls; what has come of all calls since last time.

        Raises:
            InfrastructureError: actors of this kind died too often.
            Exception: what an actor's own code raised.
        """
        for item in ready:
            if item in self._running:
                self._take(item)
        self._end_silent()
        self.replicas.tend(busy=(call.actor for call in self._running.values()))
        self._take_back()
        self._dispatch()
        events, self._events = self._events, []
        return events

    def abandon(self) -> None:
        """Forget all calls: what the actors still answer goes nowhere."""
        self._waiting.clear()
        self._running.clear()
        self._events.clear()

    # -- calls -------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """To the least loaded first; one that is behind catches up before another gets its second call."""
        while self._waiting:
            load = Counter(call.actor for call in self._running.values())
            actor = min(self.replicas.those(State.SERVING), key=lambda index: load[index], default=None)
            behind = self.replicas.those(State.BEHIND)
            if behind and (actor is None or load[actor]):
                self.replicas.catch_up(behind[0])
            elif actor is None or load[actor] >= IN_FLIGHT:
                return
            else:
                self._send(self._waiting.popleft(), actor)

    def _send(self, call: _Call, actor: int) -> None:
        call.actor, call.life, call.held, call.heard = actor, self.replicas.life(actor), None, time.monotonic()
        method = getattr(self.actors[actor], self._method).options(num_returns=self._returns)
        call.results = method.remote(*call.arguments)
        self._running[call.results[-1] if isinstance(call.results, list) else call.results] = call

    def _take(self, item: Any) -> None:
        call = self._running.pop(item)
        try:
            if self._returns == "streaming":
                self._take_next(call)
            else:
                value = result(item, self._who(call))
                refs = call.results[:-1] if isinstance(call.results, list) else ()
                self._events.append(Done(call.key, value, tuple(refs)))
        except ActorLost as error:
            self._running[item] = call  # until it is taken back, with whatever else the actor had in hand
            self.replicas.lose(call.actor, call.life, error, self._method)
        except ObjectLost:
            self._events.append(Lost(call.key))
        else:
            self._restart_clocks(call)

    def _take_next(self, call: _Call) -> None:
        """A stream yields an object and its small companion in turn, and ends."""
        try:
            ref = next(call.results)
        except StopIteration:
            if call.held is not None:  # the task failed: its error came in the place of an object
                result(call.held, self._who(call))
            return
        if call.held is None:
            call.held = ref
        else:
            self._events.append(Done(call.key, result(ref, self._who(call)), (call.held,)))
            call.held = None
        self._running[call.results] = call

    def _who(self, call: _Call) -> str:
        return f"{self.name}/{call.actor}"

    # -- losses ------------------------------------------------------------------------------------------------------

    def _end_silent(self) -> None:
        """An actor that has owed an answer for too long hangs: it is as good as lost."""
        for item, call in self._running.items():
            silent = time.monotonic() - call.heard
            if silent <= self._deadline_s or wait_ready([item], 0):  # an answer may wait while others were looked after
                continue
            if self.replicas.life(call.actor) == call.life:
                cause = (
                    f"has not answered for {silent:.0f} s (limit {self._deadline_s:g} s); it is "
                    f"{describe_health(self.actors[call.actor])}."
                )
                self.replicas.lose(call.actor, call.life, cause, self._method)

    def _take_back(self) -> None:
        """The calls that lost actors had in hand."""
        lost = [item for item, call in self._running.items() if self.replicas.life(call.actor) != call.life]
        calls = [self._running.pop(item) for item in lost]
        if self._returns == "streaming":
            self._events += [Lost(call.key) for call in calls]
        else:
            self._waiting.extendleft(reversed(calls))

    def _restart_clocks(self, answered: _Call) -> None:
        """An actor that has just answered is not silent: the time of its next call counts from here."""
        for call in self._running.values():
            if call.actor == answered.actor:
                call.heard = time.monotonic()


def events(pools: Sequence[ActorPool]) -> Iterator[tuple[ActorPool, Done | Lost]]:
    """What comes of all calls, as it comes, until no pool has one left; calls may be added meanwhile."""
    while any(pool.unfinished for pool in pools):
        ready = set(wait_ready([item for pool in pools for item in pool.pending()], TICK_S))
        for pool in pools:
            for event in pool.step([item for item in pool.pending() if item in ready]):
                yield pool, event
