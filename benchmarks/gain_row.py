"""What several seeds' gains come to, as columns of a table."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rlhf_ray.trainers.gains import Gain


def gain_row(gains: Sequence[Gain]) -> dict[str, Any]:
    """Means over the seeds, and how sure the change is.

    The standard error is that of the mean change; with one seed it is that of the held-out rows' differences, where the
    stage keeps them.
    """
    changes, error = [gain.change for gain in gains], gains[0].error
    change = statistics.fmean(changes)
    if len(gains) > 1:
        error = statistics.stdev(changes) / math.sqrt(len(gains))
    return {
        "seeds": len(gains),
        "before": statistics.fmean(gain.before for gain in gains),
        "after": statistics.fmean(gain.after for gain in gains),
        "better by": change,
        "standard error": math.nan if error is None else error,
        "errors": math.nan if error is None else change / max(error, 1e-12),
    }
