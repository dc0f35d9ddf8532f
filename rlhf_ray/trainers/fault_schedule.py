"""Faults at chosen iterations of a run: which actor meets what, when it has come to which phase.

    with FaultSchedule(folder, [Hit(3, "generator/0", "generate"), Hit(5, "learner/1", "update", after=2)]) as schedule:
        PPOTrainer(config, callbacks=[schedule]).train()
    assert schedule.pending == []

`seeded_hits` spreads faults of all kinds over a long run.
"""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from rlhf_ray import faults
from rlhf_ray.trainers.callbacks import Callback


@dataclass(frozen=True)
class Hit:
    """One fault of a `faults` plan, at the `after`-th time that the actor comes to `phase` once `iteration` has begun.

    Iteration 0 is the start of the run. `seconds` are those of hang and delay, `path` that of flip and truncate.
    """

    iteration: int
    actor: str
    phase: str
    action: str = "kill"
    after: int = 1
    seconds: float = faults.FOREVER_S
    path: str | None = None

    def __str__(self) -> str:
        return f"iteration {self.iteration}: {self.action} {self.actor} at {self.phase}"


class FaultSchedule(Callback):
    """A context in which trainers meet `hits`, each once; give it to the trainer as a callback too."""

    def __init__(self, folder: Path, hits: Sequence[Hit]) -> None:
        """`folder` is for marker files that all nodes see; it must not hold those of another schedule."""
        self.folder, self.hits = folder, list(hits)
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._before = os.environ.get(faults.PLAN)
        os.environ[faults.PLAN] = json.dumps(self.plan())
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            del os.environ[faults.PLAN]
        else:
            os.environ[faults.PLAN] = self._before

    def plan(self) -> list[dict[str, Any]]:
        """The hits as `faults` reads them."""
        return [
            {
                "actor": hit.actor,
                "phase": hit.phase,
                "action": hit.action,
                "after": hit.after,
                "seconds": hit.seconds,
                "path": hit.path,
                "when": str(self._begun(hit.iteration)) if hit.iteration else None,
                "once": str(self.marker(hit)),
            }
            for hit in self.hits
        ]

    def marker(self, hit: Hit) -> Path:
        """The file that exists once `hit` has fired."""
        return self.folder / f"fired-{self.hits.index(hit):04d}"

    @property
    def pending(self) -> list[Hit]:
        """Hits that have not fired."""
        return [hit for hit in self.hits if not self.marker(hit).exists()]

    def on_iteration_start(self, iteration: int) -> None:
        self._begun(iteration).touch()

    def _begun(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration:06d}"


def seeded_hits(seed: int, iterations: int, every: int, targets: Sequence[Hit]) -> list[Hit]:
    """One fault every so many iterations: `targets` in an order drawn from `seed`, again and again.

    The iteration of a target does not count.
    """
    order = random.Random(seed).sample(list(targets), len(targets))
    return [
        replace(target, iteration=iteration)
        for number, iteration in enumerate(range(every, iterations + 1, every))
        for target in [order[number % len(order)]]
    ]
