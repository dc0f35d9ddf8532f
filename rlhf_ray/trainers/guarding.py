"""What the loops do about bad updates: say so, take the learner back, and stop where they do not end."""

from collections.abc import Sequence
from itertools import takewhile

from rlhf_ray.config.guards import GuardsSection
from rlhf_ray.errors import DataError
from rlhf_ray.learner.trainable import BAD_UPDATES
from rlhf_ray.trainers.failure_log import FailureLog

#: Metrics of an iteration (or step) from which nothing was learned: the learner went back to its last checkpoint.
ROLLED_BACK = {BAD_UPDATES: 1.0, "guards/rolled_back": 1.0}


def review_updates(history: Sequence[dict[str, float]], section: GuardsSection, failures: FailureLog) -> None:
    """After an iteration, the last of `history`: tell of updates that were left out.

    Raises:
        DataError: as many iterations in a row as the configuration allows had one.
    """
    streak = sum(1 for _ in takewhile(lambda metrics: metrics.get(BAD_UPDATES), reversed(history)))
    if not streak:
        return
    count = int(history[-1][BAD_UPDATES])
    if section.on_bad_update == "skip":
        cause = f"{count} bad update{'s' if count > 1 else ''}, see quarantine/updates.jsonl."
        failures.record(kind="data", actor="learner", phase="update", cause=cause, action="left out")
    if streak >= section.max_bad_updates:
        raise DataError(
            f"{streak} iterations in a row had bad updates (guards.max_bad_updates={section.max_bad_updates}). Their "
            "batches are in the run's quarantine/: look for rewards that are too large, else lower "
            "learner.learning_rate, and resume from the last checkpoint."
        )
