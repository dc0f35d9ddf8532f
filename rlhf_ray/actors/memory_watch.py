"""What the driver knows of its actors' memory: one that was killed for it can no longer say how much it had."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from rlhf_ray.actors.memory import advice, shown

PERIOD_S = 5.0
#: Share of a node's memory in use from which on a sudden death is put down to the lack of it.
PRESSURE = 0.85
#: What Ray says when it has killed an actor itself, in one of many lines.
LOW = "running low on memory"


@dataclass(frozen=True)
class _Seen:
    actor: str
    use: Mapping[str, float]
    when: float  # monotonic


#: Ray's id of an actor -> its last answer.
_last_seen: dict[str, _Seen] = {}


def note(actor: str, actor_id: str, use: Mapping[str, float]) -> None:
    """Remember the memory use of an actor, as of now."""
    _last_seen[actor_id] = _Seen(actor, use, time.monotonic())


def account(error: RayError) -> str:
    """What is to be said of the memory of an actor that was lost, as sentences; nothing where it had enough."""
    seen = _last_seen.get(str(getattr(error, "actor_id", None)))
    told = LOW in str(error)
    if seen is None:
        return " Its node had run out of memory." if told else ""
    if not told and seen.use["node_used_bytes"] < PRESSURE * seen.use["node_bytes"]:
        return ""
    verdict = "" if told else "Probably it was killed for its memory. "
    return (
        f" {verdict}When last asked, {time.monotonic() - seen.when:.0f} s ago: {shown(seen.use)} {advice(seen.actor)}"
    )


class MemoryWatch:
    """Asks a run's actors for their memory use every few seconds, on a thread of its own."""

    def __init__(self, actors: Mapping[str, ActorHandle], period_s: float = PERIOD_S) -> None:
        """`actors`: <kind>/<index> -> the actor there now; read anew every time."""
        self._actors, self._period_s, self._ended = actors, period_s, threading.Event()
        _last_seen.clear()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking; what was seen is remembered until the next watch begins."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        asked: dict[ray.ObjectRef, tuple[str, ActorHandle]] = {}
        while not self._ended.wait(self._period_s):
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], [])
            for ref in ready:
                self._take(ref, *asked[ref])
            asked = {actor.health.remote(): (name, actor) for name, actor in dict(self._actors).items()}

    def _take(self, ref: ray.ObjectRef, name: str, actor: ActorHandle) -> None:
        try:
            note(name, actor._actor_id.hex(), ray.get(ref))
        except RayError:  # it is gone: whoever waits for it hears of that
            return
