"""Fault injection: a chosen actor dies, hangs or fails at a chosen moment, or damages a file; the run is to survive it.

    RLHF_RAY_FAULTS='[{"actor": "generator/0", "phase": "generate", "action": "kill", "after": 2}]' rlhf-ray ppo ...

Actors and driver call `reach(phase)` at the moments named in PHASES. Without the environment variable that is one look
at the environment; with it, the n-th call in a process (`after`) carries out what the plan says for this actor. Counts
start anew with the process, so a fault without `once` meets every successor of the actor that it ended. `when` lets
whoever watches the run choose the iteration: it creates the file then.
"""

import glob
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rlhf_ray.errors import ConfigError

PLAN, ACTOR = "RLHF_RAY_FAULTS", "RLHF_RAY_ACTOR"

#: kind of actor -> the moments that its process reaches
PHASES = {
    "generator": ("load", "generate", "begin_update", "load_bucket", "finish_update"),
    "reward": ("load", "score"),
    "reference": ("load", "logprobs"),
    "learner": ("load", "update", "publish", "save", "evaluate"),
    "writer": ("write",),
    "driver": ("draw", "rollouts", "composed", "trained", "published", "tracked", "checkpointing", "checkpointed"),
}
FOREVER_S = 1e7


class Fault(BaseModel):
    """One line of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actor: str = Field(description="<kind>/<index> as in the actors' names, or a pattern: learner/1, reward/*, driver")
    phase: str
    action: Literal["kill", "hang", "delay", "raise", "memory", "flip", "truncate"]
    after: int = Field(default=1, ge=1, description="the n-th time that the process reaches the phase")
    when: Path | None = Field(default=None, description="file: the process counts only once it exists")
    seconds: float = Field(default=FOREVER_S, gt=0, description="of hang and delay")
    path: str | None = Field(default=None, description="glob of files: flip and truncate damage the newest")
    once: Path | None = Field(default=None, description="marker file: created when the fault fires, never fires again")

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if (self.path is not None) != (self.action in ("flip", "truncate")):
            raise ValueError("`path` belongs to the actions flip and truncate, and they need it")
        return self

    def claim(self) -> bool:
        """Whether it is to fire: always, or for the first process that creates the marker."""
        if self.once is None:
            return True
        try:
            self.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def carry_out(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action in ("hang", "delay"):
            time.sleep(self.seconds)
        elif self.action == "memory":
            import torch

            torch.empty(2**60, dtype=torch.uint8)  # torch's own error, and not a byte of memory
        elif self.path is not None:
            self._damage(max(map(Path, glob.glob(self.path)), key=lambda path: path.stat().st_mtime))
        else:
            raise RuntimeError(f"injected fault at `{self.phase}`")

    def _damage(self, path: Path) -> None:
        """Halve the file, or flip a bit in its middle."""
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 1
        path.write_bytes(content[:middle] if self.action == "truncate" else content)


class Injector:
    """The faults that a plan has for one actor, and how often this process has come to each of them."""

    def __init__(self, faults: list[Fault], actor: str) -> None:
        self.actor, self._faults = actor, [fault for fault in faults if fnmatchcase(actor, fault.actor)]
        self._counts: Counter[Fault] = Counter()
        self._lock = threading.Lock()

    def reach(self, phase: str) -> None:
        with self._lock:
            here = [f for f in self._faults if f.phase == phase and (f.when is None or f.when.exists())]
            self._counts.update(here)
            due = next((f for f in here if self._counts[f] == f.after and f.claim()), None)
        if due is not None:
            print(f"injected fault: {due.action} {self.actor} at {phase} ({due.after})", file=sys.stderr, flush=True)
            due.carry_out()


def reach(phase: str) -> None:
    """This process has come to `phase`; ConfigError when the environment's plan cannot be read."""
    if plan := os.environ.get(PLAN):
        _injector(plan, os.environ.get(ACTOR, "driver")).reach(phase)


def actor_environment(actor: str) -> dict[str, str]:
    """What the process of `actor` (<kind>/<index>) needs to know: its name, and this process's plan if there is one."""
    return {ACTOR: actor} | ({PLAN: os.environ[PLAN]} if PLAN in os.environ else {})


@lru_cache(maxsize=1)
def _injector(plan: str, actor: str) -> Injector:
    return Injector(read_plan(plan), actor)


def read_plan(text: str) -> list[Fault]:
    """The faults of a JSON list. ConfigError names what is wrong in it."""
    try:
        faults = TypeAdapter(list[Fault]).validate_python(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{PLAN} is no plan of faults: {error}") from error
    for fault in faults:
        phases = PHASES.get(fault.actor.partition("/")[0])
        if phases is None or fault.phase not in phases:
            known = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in PHASES.items())
            raise ConfigError(f"{PLAN}: {fault.actor} never reaches `{fault.phase}`. There are {known}")
    return faults
