"""A supervised fine-tuning run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import (
    CheckpointSection,
    LearnerSection,
    ModelSection,
    ResourcesSection,
    RunSection,
    TrackingSection,
)
from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.config.guards import GuardsSection, check_rollback

LossOn = Literal["completion", "assistant", "all"]


class SFTSection(Section):
    epochs: int = Field(1, ge=1, description="Passes over the demonstrations.")
    samples_per_step: int = Field(32, ge=1, description="Demonstrations per optimiser step over all ranks.")
    loss_on: LossOn = Field(
        "completion",
        description="completion: the last reply; assistant: every reply of a conversation; all: prompts too, for "
        "models from scratch (evaluation then measures the completion).",
    )
    packing: bool = Field(
        False, description="Several demonstrations in a row, none seeing another: less padding. Same loss."
    )
    eval_every: int = Field(0, ge=0, description="Evaluate every so many steps; 0: before and after only.")


class SFTConfig(Section):
    """Everything an SFT run is."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    data: DemonstrationDataSection
    sft: SFTSection = Field(default_factory=SFTSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    guards: GuardsSection = Field(default_factory=GuardsSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _rollback_has_a_goal(self) -> Self:
        check_rollback(self.guards, self.checkpoint)
        return self
