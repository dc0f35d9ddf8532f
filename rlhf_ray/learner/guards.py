"""Optimiser steps that would spoil a network: found before they are taken, kept for a person to look at.

A step is bad when its loss or its gradient norm is not finite or, with `guards.max_loss_factor`, when its size is so
many times the median of the last ones. Both numbers are global, so every rank comes to the same verdict.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rlhf_ray.config.guards import GuardsSection
from rlhf_ray.errors import BadUpdate, DataError
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.quarantine import keep_batch, table_rows

WINDOW = 64  # steps that the median is taken over
FEWEST = 8  # steps without which there is none
#: What says how large an update is. The loss of a PPO policy hovers around 0, so its gradient does.
Measure = Literal["loss", "grad_norm"]


@dataclass(frozen=True)
class Origin:
    """What an optimiser step is computed from."""

    iteration: int  # of the run, from 1; in the supervised stages a step is one
    step: int  # of this network within the iteration, from 1
    rows: Callable[[], pa.Table]  # this rank's samples as they went into the loss

    @classmethod
    def of_rows(cls, step: int, table: pa.Table, rows: np.ndarray, group: LearnerGroup) -> "Origin":
        """A supervised step on `rows` of a table that every rank has."""
        return cls(step, 1, lambda: table_rows(table, rows, group))


class UpdateGuard:
    """Judges every optimiser step of one network, and does with a bad one what `guards.on_bad_update` says."""

    def __init__(
        self,
        section: GuardsSection,
        network: str,
        group: LearnerGroup,
        measure: Measure = "loss",
        quarantine: Path | None = None,
    ) -> None:
        """`quarantine`: folder for the batches of bad updates; None: they are not kept."""
        self.section, self.network, self.measure = section, network, measure
        self._group, self._quarantine = group, quarantine
        self._sizes: deque[float] = deque(maxlen=WINDOW)

    def admits(self, loss: float, grad_norm: float, origin: Origin, whole: bool = True) -> bool:
        """Whether the step may be taken; a collective call where it may not.

        The size of a step that is not `whole`, of some parameters only, is compared with no other's.

        Raises:
            DataError: it may not, and the run is to stop.
            BadUpdate: it may not, and the learner is to go back to its last checkpoint.
        """
        problem = self._problem(loss, grad_norm, whole)
        if problem is None:
            if whole:
                self._sizes.append(self._size(loss, grad_norm))
            return True
        facts = {"loss": loss, "grad_norm": grad_norm, "problem": problem, "action": self.section.on_bad_update}
        place = {"iteration": origin.iteration, "network": self.network, "step": origin.step}
        kept = keep_batch(self._quarantine, place | facts, origin.rows, self._group)
        found = f"{problem} at optimiser step {origin.step} of the {self.network} in iteration {origin.iteration}"
        if self.section.on_bad_update == "rollback":
            raise BadUpdate(f"{found}. {kept}")
        if self.section.on_bad_update == "stop":
            raise DataError(
                f"{found}; the weights stay as they are. {kept} Look for NaN or huge rewards or advantages there; else "
                "lower learner.learning_rate or use learner.dtype=float32, and resume from the last checkpoint. "
                "guards.on_bad_update=skip would leave such steps out, =rollback go back to a checkpoint."
            )
        return False

    def _problem(self, loss: float, grad_norm: float, whole: bool) -> str | None:
        """What is wrong with the step, or None."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"the loss is {loss:.4g} and the gradient norm is {grad_norm:.4g}"
        factor = self.section.max_loss_factor
        if factor is None or not whole or len(self._sizes) < FEWEST:
            return None
        size, usual = self._size(loss, grad_norm), median(self._sizes)
        if size <= factor * usual:
            return None
        name = "loss" if self.measure == "loss" else "gradient norm"
        return f"the {name} {size:.4g} is over {factor:g} times the median of the last {len(self._sizes)} ({usual:.4g})"

    def _size(self, loss: float, grad_norm: float) -> float:
        return abs(loss) if self.measure == "loss" else grad_norm

    def state_dict(self) -> dict[str, Any]:
        """The sizes that the next ones are compared with."""
        return {"sizes": list(self._sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; nothing for a checkpoint that has none."""
        self._sizes = deque(state.get("sizes", []), maxlen=WINDOW)
