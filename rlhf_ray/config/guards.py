"""What a run does about updates that would spoil it, and about a disk that fills up."""

from typing import Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import CheckpointSection


class GuardsSection(Section):
    """A bad update is an optimiser step whose loss or gradient is not finite, or that explodes."""

    on_bad_update: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="stop: end the run; skip: leave the step out; rollback: take the learner back to the last "
        "checkpoint and go on with the next iteration's data. Its batch is kept in quarantine/.",
    )
    max_loss_factor: float | None = Field(
        None,
        gt=1,
        description="A loss (of the PPO policy: a gradient norm) of so many times the median of the last 64 steps is "
        "bad too; null: only what is not finite.",
    )
    max_bad_updates: int = Field(
        3, ge=1, description="So many iterations (or steps) in a row with a bad update stop the run in any case."
    )
    min_free_disk_mib: int = Field(256, ge=0, description="Warn when the run folder's disk has less room than this.")


def check_rollback(guards: GuardsSection, checkpoint: CheckpointSection) -> None:
    """Raises ValueError where a rollback would be one to the beginning of the run."""
    if guards.on_bad_update == "rollback" and not checkpoint.every:
        raise ValueError("guards.on_bad_update: rollback needs checkpoints to go back to; set checkpoint.every")
