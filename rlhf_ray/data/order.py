"""The order in which rows are visited: pure functions of (seed, epoch) or (seed, step), so any step can be redone."""

from collections.abc import Mapping

import numpy as np


def epoch_order(rows: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """All row indices in the order of one epoch, int64 [rows]; the source's own order without shuffling."""
    if not shuffle:
        return np.arange(rows, dtype=np.int64)
    return np.random.default_rng([seed, epoch]).permutation(rows).astype(np.int64)


def draw(rows: int, per_step: int, step: int, seed: int, shuffle: bool = True) -> np.ndarray:
    """The row indices of one step, int64 [per_step], no row twice.

    An epoch has rows // per_step steps; what is left over sits out that epoch, other rows in each when shuffled.
    """
    epoch, within = divmod(step, max(rows // per_step, 1))
    return epoch_order(rows, seed, epoch, shuffle)[within * per_step : (within + 1) * per_step]


def cursor(rows: int, per_step: int, step: int) -> dict[str, int]:
    """Where in the data a run of `draw`s is after `step` steps: for its checkpoints."""
    epoch, within = divmod(step, max(rows // per_step, 1))
    return {"rows": rows, "per_step": per_step, "epoch": epoch, "step_of_epoch": within}


def moved(stored: Mapping[str, int], here: Mapping[str, int]) -> str | None:
    """Why a run whose checkpoint has the cursor `stored` does not go on through the data as it would have; or None."""
    changed = [f"{name} was {stored[name]:,}, is {here[name]:,}" for name in here if stored[name] != here[name]]
    return f"the data is visited in another order than before: {', '.join(changed)}" if changed else None
