"""A reward-model run on preference pairs."""

from typing import Self

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
from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.config.guards import GuardsSection, check_rollback


class RewardModelSection(Section):
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    pairs_per_step: int = Field(32, ge=1, description="Pairs per optimiser step over all ranks.")
    margin: float | str | None = Field(
        None,
        description="By how much chosen should win: a number, or the column that says it (scores of rankings: their "
        "difference); null: no margin.",
    )
    center_coef: float = Field(
        0.0, ge=0, description="Weight of (chosen + rejected)^2, which keeps scores near zero; 0.01 (Eisenstein 2023)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs whose labels are taken to be swapped."
    )
    head_hidden: int | None = Field(
        None, ge=1, description="Neurons of a hidden layer in a new score head; null: the head is one linear layer."
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what the score head reads, in training.")
    packing: bool = Field(
        False, description="Several responses in a row, none seeing another: less padding. Same loss."
    )
    eval_every: int = Field(0, ge=0, description="Evaluate every so many steps; 0: before and after only.")


class RewardModelConfig(Section):
    """Everything a reward-model run is."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    data: PreferenceDataSection
    reward: RewardModelSection = Field(default_factory=RewardModelSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    guards: GuardsSection = Field(default_factory=GuardsSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _rollback_has_a_goal(self) -> Self:
        check_rollback(self.guards, self.checkpoint)
        return self
