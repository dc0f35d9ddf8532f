"""What the loops do about bad updates: say so, take the learner back, and stop where they do not end."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from rlhf_ray.config.guards import GuardsSection
from rlhf_ray.errors import BadUpdate, DataError
from rlhf_ray.learner.trainable import BAD_UPDATES
from rlhf_ray.trainers.failure_log import FailureLog
from rlhf_ray.trainers.session import Session

#: Metrics of an iteration (or step) from which nothing was learned: the learner went back to its last checkpoint.
ROLLED_BACK = {BAD_UPDATES: 1.0, "guards/rolled_back": 1.0}


def review_updates(
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    section: GuardsSection,
    failures: FailureLog,
) -> None:
    """Tell of updates that an iteration of these `metrics` left out; `history` holds the iterations before it.

    Raises:
        DataError: as many iterations in a row as the configuration allows had one.
    """
    count = int(metrics.get(BAD_UPDATES, 0))
    if not count:
        return
    if section.on_bad_update == "skip":
        cause = f"{count} bad update{'s' if count > 1 else ''}, see quarantine/updates.jsonl."
        failures.record(kind="data", actor="learner", phase="update", cause=cause, action="left out")
    streak = 1 + sum(1 for _ in takewhile(lambda earlier: BAD_UPDATES in earlier, reversed(history)))
    if streak >= section.max_bad_updates:
        raise DataError(
            f"{streak} iterations in a row had bad updates (guards.max_bad_updates={section.max_bad_updates}). Their "
            "batches are in the run's quarantine/: look for rewards that are too large, else lower "
            "learner.learning_rate, and resume from the last checkpoint."
        )


def roll_back(session: Session, error: BadUpdate, start_anew: Callable[[], None]) -> dict[str, float]:
    """Take the learner back to the last checkpoint, or by `start_anew` to the beginning; the iteration's metrics.

    The learner alone: the same data would be as bad the next time, so the run goes on with the next iteration's, and
    what was learned since the checkpoint is given up (Chowdhery et al. 2022, sec. 5.1). It is still a function of its
    configuration: a resume from that checkpoint meets the same update, and does the same.
    """
    checkpoint = session.checkpoints.latest()
    goal = "the beginning" if checkpoint is None else f"iteration {checkpoint.step}"
    action = f"the learner goes back to {goal}, the run goes on with the next data"
    session.failures.record(kind="data", actor="learner", phase="update", cause=str(error), action=action)
    if checkpoint is None:
        start_anew()
    else:
        assert session.learner is not None
        session.learner.load(checkpoint.learner)
    return dict(ROLLED_BACK)
