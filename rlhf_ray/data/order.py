"""The order in which rows are visited: pure functions of (seed, epoch) or (seed, step), so any step can be redone."""

import numpy as np


def epoch_order(rows: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """All row indices in the order of one epoch, int64 [rows]; the source's own order without shuffling."""
    if not shuffle:
        return np.arange(rows, dtype=np.int64)
    return np.random.default_rng([seed, epoch]).permutation(rows).astype(np.int64)


def draw(rows: int, per_step: int, step: int, seed: int, shuffle: bool = True) -> np.ndarray:
    """The row indices of one step, int64 [per_step], when the epochs are laid end to end; a step may straddle them."""
    start, stop = step * per_step, (step + 1) * per_step
    first_epoch, last_epoch = start // rows, (stop - 1) // rows
    epochs = [epoch_order(rows, seed, epoch, shuffle) for epoch in range(first_epoch, last_epoch + 1)]
    offset = start - first_epoch * rows
    return np.concatenate(epochs)[offset : offset + per_step]
