"""The learning rate over a run, as a factor of its peak."""

import math
from typing import assert_never

from rlhf_ray.config.common import LearnerSection, Schedule

#: The last share of a `wsd` run, over which the rate falls.
WSD_COOLDOWN = 0.2
#: Steps after which `inverse_sqrt` has fallen by a factor of sqrt(2), where no warm-up says it.
INVERSE_SQRT_STEPS = 10_000


def warmup_steps(section: LearnerSection, total_steps: int) -> int:
    """Optimiser steps of the warm-up in a run of `total_steps`, whichever way it is configured."""
    return section.warmup_steps or math.ceil(section.warmup_ratio * total_steps)


def learning_rate_factor(step: int, total_steps: int, warmup: int, schedule: Schedule, min_ratio: float = 0.0) -> float:
    """Factor in [0, 1] for the optimiser step that follows `step` completed ones.

    Rises linearly from 0 to 1 over `warmup` steps, then runs from 1 towards `min_ratio` as `schedule` says, and stays
    where it is after `total_steps`.
    """
    if step < warmup:
        return step / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return min_ratio + (1.0 - min_ratio) * _decay(progress, step - warmup, warmup, schedule)


def _decay(progress: float, steps: int, warmup: int, schedule: Schedule) -> float:
    """From 1 towards 0, `steps` steps or the share `progress` of all steps after the warm-up."""
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":  # Loshchilov & Hutter 2017, eq. 5 without restarts
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "inverse_sqrt":  # Vaswani et al. 2017, eq. 3: sqrt(warmup / step)
            scale = warmup or INVERSE_SQRT_STEPS
            return math.sqrt(scale / (scale + steps))
        case "wsd":  # warm-up, stable, decay: Hägele et al. 2024, eq. 1 with 1 - sqrt
            return 1.0 - math.sqrt(max(progress - (1.0 - WSD_COOLDOWN), 0.0) / WSD_COOLDOWN)
    assert_never(schedule)
