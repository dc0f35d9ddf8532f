"""The learning rate over a run, as a factor of its peak."""

import math
from typing import Literal, assert_never


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Literal["constant", "linear", "cosine"]
) -> float:
    """Factor in [0, 1] for the optimiser step that follows `step` completed ones.

    Rises linearly from 0 to 1 over `warmup_steps`, then stays (constant) or falls to 0 at `total_steps` (linear, or
    half a cosine; Loshchilov & Hutter 2017, eq. 5 without restarts) and remains there.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
    assert_never(schedule)
