"""Waiting for actors: never without a deadline, and an error that names who, doing what, for how long."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from rlhf_ray.actors import memory
from rlhf_ray.actors.memory_watch import LOW, account
from rlhf_ray.errors import ActorLost, DeadlineError, ObjectLost, OutOfMemory, RLHFRayError

MEANWHILE_S = 5.0  # how often a long wait looks up


def result(ref: ray.ObjectRef, who: str) -> Any:
    """The value behind a ready reference; this package's own errors as they were raised.

    Raises:
        ActorLost: the actor is gone.
        ObjectLost: the value, or one that the call was given, is gone with its node.
        OutOfMemory: the actor had too little for it.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, RLHFRayError):
            raise error.cause from error
        if isinstance(error.cause, ObjectLostError):
            raise ObjectLost(
                f"{who} could not be given what another actor had sent: {_first_line(error.cause)}"
            ) from error
        if memory.ran_out(error.cause):
            raise OutOfMemory(f"{who} ran out of memory: {_first_line(error.cause)} {memory.advice(who)}") from error
        raise error.as_instanceof_cause() from error
    except ObjectLostError as error:
        raise ObjectLost(f"what {who} had sent is lost: {_first_line(error)}") from error
    except (RayActorError, NodeDiedError, OutOfMemoryError) as error:
        raise ActorLost(
            f"{who} was lost: {cause_of_death(error)} Its log is in the run folder's logs/; --resume goes on from the "
            "last checkpoint."
        ) from error


def call_all(
    actors: Sequence[ActorHandle], who: str, what: str, method: str, *arguments: Any, deadline_s: float
) -> list[Any]:
    """Call `method` on every actor at once; the results in order.

    The first failure ends the wait: a rank that raised leaves the others in a collective call that can no longer end.
    """
    refs = [getattr(actor, method).remote(*arguments) for actor in actors]
    return wait_all(refs, actors, who, what, deadline_s=deadline_s)


def wait_all(
    refs: Sequence[ray.ObjectRef],
    actors: Sequence[ActorHandle],
    who: str,
    what: str,
    *,
    deadline_s: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Any]:
    """The values of `refs` in order, where refs[i] is a call to actors[i], named `<who>/<i>` in errors.

    `meanwhile` is called every few seconds, and may raise when there is nothing to wait for any more.
    """
    deadline, waiting = time.monotonic() + deadline_s, list(refs)
    values: dict[ray.ObjectRef, Any] = {}
    while waiting:
        left_s = max(deadline - time.monotonic(), 0)
        ready, waiting = ray.wait(waiting, timeout=min(left_s, MEANWHILE_S))
        if not ready and left_s > MEANWHILE_S:
            meanwhile()
        elif not ready:
            slow = refs.index(waiting[0])
            raise DeadlineError(
                f"waited {deadline_s:g} s for {who}/{slow} ({what}); it is {describe_health(actors[slow])}. "
                "Its log is in the run folder's logs/; if it only needs longer, raise resources.start_timeout_s or "
                "call_timeout_s."
            )
        for ref in ready:
            values[ref] = result(ref, f"{who}/{refs.index(ref)}")
    return [values[ref] for ref in refs]


def cause_of_death(error: RayError) -> str:
    """Why an actor is gone, in some sentences: what its constructor raised, or how its process ended and its memory."""
    lines = str(error).splitlines()
    if getattr(error, "actor_init_failed", False):  # a traceback, whose lines are indented, and then what was raised
        after = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=0) + 1
        return "it could not start: " + "\n".join(lines[after:] or lines)
    last = next((line for line in lines if LOW in line), lines[-1])
    return last.partition(" Some common causes")[0] + account(error)


def cause_of_loss(error: ActorLost) -> str:
    """Why, without the name and the advice that `result` adds."""
    cause = error.__cause__
    return cause_of_death(cause) if isinstance(cause, RayError) and not isinstance(cause, RayTaskError) else str(error)


def wait_ready(items: Sequence[Any], timeout_s: float) -> list[Any]:
    """All of some references and streams that are ready, as soon as one is; none when the time is up.

    With nothing to wait for, it waits all the same: for what time alone changes.
    """
    if not items:
        time.sleep(timeout_s)
        return []
    ready, _ = ray.wait(list(items), num_returns=1, timeout=timeout_s, fetch_local=False)
    if not ready:
        return []
    more, _ = ray.wait(list(items), num_returns=len(items), timeout=0, fetch_local=False)
    return more or ready


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def find_lost(actors: Mapping[str, ActorHandle], timeout_s: float = 5.0) -> dict[str, str]:
    """Those of the named actors that are dead, with the cause of each death."""
    probes = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
    ready, _ = ray.wait(list(probes), num_returns=len(probes), timeout=timeout_s) if probes else ([], [])
    lost = {}
    for ref in ready:
        try:
            ray.get(ref)
        except RayActorError as error:
            lost[probes[ref]] = cause_of_death(error)
    return lost


def describe_health(actor: ActorHandle, timeout_s: float = 5.0) -> str:
    """One phrase on what an actor is doing, or that it does not even answer that."""
    probe = actor.health.remote()
    ready, _ = ray.wait([probe], timeout=timeout_s)
    if not ready:
        return "not answering health probes"
    try:
        health = ray.get(probe)
    except RayActorError as error:
        return f"dead ({cause_of_death(error)})"
    return f"{health['state']} for {health['since_s']:.0f} s"
