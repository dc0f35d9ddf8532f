"""The lives of one kind of actor: started, probed, killed when they hang, and started again.

A successor gets work when it is loaded or, where it has weights to catch up with, when it has proved that it holds
them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from rlhf_ray.actors.calls import cause_of_loss, describe_health, find_lost, result, wait_ready
from rlhf_ray.actors.supervision import Supervision
from rlhf_ray.errors import ActorLost, DeadlineError, InfrastructureError

TICK_S = 1.0  # how often a wait looks at deadlines and at what is to be started
PROBE_S = 10.0  # between two looks at the health probes of the actors at work
#: Looks, not seconds: a driver that was itself suspended has not waited for anybody.
PROBES_MISSED = 12

Asked = dict[int, tuple[int, ray.ObjectRef]]  # replica -> (its life that was asked, its answer)


class State(Enum):
    """Where a replica stands."""

    DOWN = auto()  # lost; its successor is due at a certain time
    STARTING = auto()
    BEHIND = auto()  # loaded, without the current weights
    SERVING = auto()


@dataclass
class Replica:
    """One place and the actor that holds it now. Times are monotonic."""

    index: int
    handle: ActorHandle = None
    life: int = 0  # counts the actors in this place
    state: State = State.DOWN
    since: float = 0.0  # start of this life
    due: float = 0.0  # of the next life
    loaded: ray.ObjectRef | None = None  # the answer to `ready` of one that is starting
    proven: bool = False  # some life of it has loaded
    lost_at: float | None = None  # until it serves again
    probe: ray.ObjectRef | None = None
    missed: int = 0  # looks at the probe without an answer


class Replicas:
    """`size` actors of the kind `name`, started by `start(index)`; each has `ready()` and `health()`.

    With `weights` a replica serves when `admit` says so, not when it is loaded; `catch_up(index)` is called to bring
    one that is behind up to date, and may itself lose it.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[int], ActorHandle],
        size: int,
        supervision: Supervision,
        weights: bool = False,
    ) -> None:
        self.name, self.weights, self.supervision = name, weights, supervision
        self.catch_up: Callable[[int], None] = self._never_published
        self._start, self._looked = start, time.monotonic()
        self._all = [Replica(index) for index in range(size)]
        for replica in self._all:
            self._begin(replica)

    # -- who is there ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._all)

    @property
    def handles(self) -> list[ActorHandle]:
        """The actors that hold the places now, dead or alive."""
        return [replica.handle for replica in self._all]

    def those(self, *states: State) -> list[int]:
        """The replicas in one of these states."""
        return [replica.index for replica in self._all if replica.state in states]

    def life(self, index: int) -> int:
        """Which of its lives a replica is in; 0 when that one is over."""
        replica = self._all[index]
        return 0 if replica.state is State.DOWN else replica.life

    def pending(self) -> list[ray.ObjectRef]:
        """What to wait for: the loading of those that start."""
        return [replica.loaded for replica in self._all if replica.loaded is not None]

    # -- their lives -------------------------------------------------------------------------------------------------

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until all have loaded; those that die meanwhile are started again.

        Raises:
            DeadlineError: one has not loaded in time.
            Exception: what a loading actor raised itself; it would do so again.
        """
        deadline = time.monotonic() + deadline_s
        while late := self.those(State.DOWN, State.STARTING):
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"waited {deadline_s:g} s for {self.name}/{late[0]} (loading); it is {self._describe(late[0])}. "
                    "Its log is in the run folder's logs/; if it only needs longer, raise resources.start_timeout_s."
                )
            wait_ready(self.pending(), TICK_S)
            self.tend()

    def tend(self, busy: Iterable[int] = ()) -> None:
        """Start successors that are due, take note of those that have loaded, give up those that hang.

        `busy` are the replicas that owe an answer: these are probed.
        """
        loaded = set(wait_ready(self.pending(), 0))
        now, limit_s = time.monotonic(), self.supervision.resources.start_timeout_s
        for replica in self._all:
            if replica.state is State.DOWN and now >= replica.due:
                self._begin(replica)
            elif replica.loaded in loaded:
                self._take_loaded(replica)
            elif replica.state is State.STARTING and replica.proven and now - replica.since > limit_s:
                cause = f"has not loaded within {limit_s:g} s; it is {self._describe(replica.index)}."
                self.lose(replica.index, replica.life, cause, "load")
        if now - self._looked >= PROBE_S:
            self._looked = now
            if any(replica.state is State.STARTING and replica.life > 1 for replica in self._all):
                self.supervision.require_places()
            for index in set(busy):
                self._probe(self._all[index])

    def lose(self, index: int, life: int, cause: str | ActorLost, phase: str) -> None:
        """That life of the replica is over: end it for certain, and arrange for the next one.

        Raises:
            InfrastructureError: the kind's budget of restarts is used up.
        """
        if self.life(index) != life:
            return
        replica, who = self._all[index], f"{self.name}/{index}"
        cause = cause_of_loss(cause) if isinstance(cause, ActorLost) else cause
        ray.kill(replica.handle, no_restart=True)
        replica.state, replica.loaded, replica.probe = State.DOWN, None, None
        budget, reports = self.supervision.budget(self.name), self.supervision.reports
        try:
            wait_s = budget.spend(f"{who} ({phase}): {cause}")
        except InfrastructureError:
            reports.record(actor=who, phase=phase, cause=cause, action="no restart is left")
            raise
        now = time.monotonic()
        replica.due, replica.lost_at = now + wait_s, now if replica.lost_at is None else replica.lost_at
        when = f" in {wait_s:g} s" if wait_s else ""
        action = f"starting it again{when} (restart {budget.used} of {budget.restarts})"
        reports.record(actor=who, phase=phase, cause=cause, action=action)
        if not wait_s:
            self._begin(replica)

    def replace_dead(self) -> None:
        """Start successors of those that are dead, rather than when they are next asked."""
        self.tend()  # one that was never asked counts as starting
        loaded = {f"{self.name}/{index}": index for index in self.those(State.BEHIND, State.SERVING)}
        for who, why in find_lost({who: self._all[index].handle for who, index in loaded.items()}).items():
            self.lose(loaded[who], self.life(loaded[who]), why, "found dead")

    def _begin(self, replica: Replica) -> None:
        replica.handle = self._start(replica.index)
        replica.loaded = replica.handle.ready.remote()
        replica.state, replica.since = State.STARTING, time.monotonic()
        replica.life, replica.missed = replica.life + 1, 0

    def _take_loaded(self, replica: Replica) -> None:
        who = f"{self.name}/{replica.index}"
        try:
            result(replica.loaded, who)
        except ActorLost as error:
            if not replica.proven and _is_its_own(error):
                raise InfrastructureError(f"{who} cannot start: {cause_of_loss(error)}") from error.__cause__
            self.lose(replica.index, replica.life, error, "load")
            return
        replica.loaded, replica.proven, replica.state = None, True, State.BEHIND
        if not self.weights:
            self.admit(replica.index)

    def _probe(self, replica: Replica) -> None:
        """A probe's answer, were it the actor's death, says no more than the answer that is owed."""
        if replica.state not in (State.BEHIND, State.SERVING):
            return
        if replica.probe is None or wait_ready([replica.probe], 0):
            replica.probe, replica.missed = replica.handle.health.remote(), 0
            return
        replica.missed += 1
        if replica.missed >= PROBES_MISSED:
            cause = f"has answered no health probe for {replica.missed * PROBE_S:g} s: it hangs, or its node does."
            self.lose(replica.index, replica.life, cause, "health")

    def _describe(self, index: int) -> str:
        handle = self._all[index].handle
        return describe_health(handle) if self._all[index].state is not State.DOWN else "about to be started again"

    # -- weights -----------------------------------------------------------------------------------------------------

    def _never_published(self, index: int) -> None:
        raise InfrastructureError(f"{self.name}/{index} was asked to work before weights were published to it")

    def withdraw(self) -> list[int]:
        """None of them serves until it is admitted again; those that can take weights."""
        for index in self.those(State.SERVING):
            self._all[index].state = State.BEHIND
        return self.those(State.BEHIND)

    def admit(self, index: int) -> None:
        """The replica holds what it needs to serve."""
        replica = self._all[index]
        replica.state = State.SERVING
        if replica.lost_at is not None:
            who, seconds = f"{self.name}/{index}", time.monotonic() - replica.lost_at
            replica.lost_at = None
            self.supervision.reports.recovered(actor=who, recovery_s=seconds)

    def ask(self, to: Iterable[int], method: str, *arguments: Any) -> Asked:
        """Call `method` on these replicas."""
        chosen = [self._all[index] for index in to]
        return {r.index: (r.life, getattr(r.handle, method).remote(*arguments)) for r in chosen}

    def answers(self, asked: Asked, phase: str, deadline_s: float) -> dict[int, Any]:
        """The answers by replica. One that is lost, or silent for too long, is missing from them and starts anew."""
        deadline, values, waiting = time.monotonic() + deadline_s, {}, dict(asked)
        while waiting := {index: (life, ref) for index, (life, ref) in waiting.items() if self.life(index) == life}:
            ready = set(wait_ready([ref for _, ref in waiting.values()], TICK_S))
            for index, (life, ref) in list(waiting.items()):
                if ref in ready:
                    del waiting[index]
                    try:
                        values[index] = result(ref, f"{self.name}/{index}")
                    except ActorLost as error:
                        self.lose(index, life, error, phase)
                elif time.monotonic() > deadline:
                    cause = f"has not answered for {deadline_s:g} s; it is {self._describe(index)}."
                    self.lose(index, life, cause, phase)
            self.tend(busy=waiting)
        return values


def _is_its_own(error: ActorLost) -> bool:
    """Whether the actor's own code says so, rather than Ray that it is gone."""
    cause = error.__cause__
    return isinstance(cause, RayTaskError) or bool(getattr(cause, "actor_init_failed", False))
