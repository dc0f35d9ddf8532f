"""A run of direct preference optimisation on preference pairs."""

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
from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.config.guards import GuardsSection, check_rollback


class DPOSection(Section):
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    pairs_per_step: int = Field(32, ge=1, description="Pairs per optimiser step over all ranks.")
    beta: float = Field(
        0.1, gt=0, description="How strongly the policy is held to its reference: the reward is beta * log-ratio."
    )
    loss: Literal["sigmoid", "ipo", "hinge"] = Field(
        "sigmoid", description="sigmoid: DPO (Rafailov 2023); ipo (Azar 2023), per token; hinge: SLiC (Zhao 2023)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs whose labels are taken to be swapped (cDPO); sigmoid only."
    )
    reference: Literal["auto", "precomputed", "adapter_off"] = Field(
        "auto",
        description="precomputed: its log-probs by one pass before; adapter_off: the LoRA policy without its adapters,"
        " at every step. auto: adapter_off for one epoch of LoRA, else precomputed.",
    )
    reference_model: str | None = Field(
        None, description="Hub name or folder of the reference; default: the model as it starts."
    )
    packing: bool = Field(
        False, description="Several responses in a row, none seeing another: less padding. Same loss."
    )
    eval_every: int = Field(0, ge=0, description="Evaluate every so many steps; 0: before and after only.")

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing: is of the sigmoid loss alone, and loss is {self.loss}; set it to 0")
        if self.reference == "adapter_off" and self.reference_model is not None:
            raise ValueError("reference: adapter_off is the model itself; leave reference_model out, or precompute")
        return self


class DPOConfig(Section):
    """Everything a DPO run is."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    data: PreferenceDataSection
    dpo: DPOSection = Field(default_factory=DPOSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    guards: GuardsSection = Field(default_factory=GuardsSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _rollback_has_a_goal(self) -> Self:
        check_rollback(self.guards, self.checkpoint)
        return self

    @model_validator(mode="after")
    def _adapters_to_switch_off(self) -> Self:
        if self.dpo.reference == "adapter_off" and self.model.lora is None:
            raise ValueError("dpo.reference: adapter_off needs model.lora; without adapters use precomputed")
        return self

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's log-probs come from a pass before the first step; `dpo.reference` resolved."""
        if self.dpo.reference != "auto":
            return self.dpo.reference == "precomputed"
        return self.model.lora is None or self.dpo.reference_model is not None or self.dpo.epochs > 1
