"""The order in which rows are visited: pure functions of (seed, epoch) or (seed, step), so any step can be redone."""

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
