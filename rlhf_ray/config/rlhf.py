"""The stages of RLHF as one configuration; a stage names what an earlier one made by a placeholder.

`${sft}` is the policy that the SFT stage leaves, `${reward_model}` the reward model, `${ppo}` and `${dpo}` the aligned
policies; each may stand wherever the name of a model may. `include` within a stage brings in a file of its own, which
then also runs alone: `sft: {include: sft.yaml}`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.dpo import DPOConfig
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.sft import SFTConfig

StageConfig = SFTConfig | RewardModelConfig | DPOConfig | PPOConfig | EvalConfig

_PLACEHOLDER = re.compile(r"\$\{(\w*)\}")
#: The stages in their order, and what each may build on.
BUILDS_ON: dict[str, tuple[str, ...]] = {
    "sft": (),
    "reward_model": ("sft",),
    "dpo": ("sft",),
    "ppo": ("sft", "reward_model"),
    "evaluation": ("sft", "reward_model", "dpo", "ppo"),
}


class RLHFConfig(Section):
    """The stages of a pipeline, or some of them. The runs lie in `<run.root>/<run.name>/<stage>`."""

    run: RunSection = Field(
        default_factory=RunSection,
        description="Name and root of all stages' runs; seed and exact hold for each that sets none of its own.",
    )
    sft: SFTConfig | None = Field(None, description="Supervised fine-tuning.")
    reward_model: RewardModelConfig | None = Field(None, description="A reward model from preference pairs.")
    dpo: DPOConfig | None = Field(None, description="Direct preference optimisation: instead of PPO, or beside it.")
    ppo: PPOConfig | None = Field(None, description="PPO towards the rewards.")
    evaluation: EvalConfig | None = Field(None, description="What the models are like that the stages left.")

    @property
    def stages(self) -> dict[str, StageConfig]:
        """Those that are configured, in their order."""
        return {name: section for name in BUILDS_ON if (section := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _placeholders_name_earlier_stages(self) -> Self:
        stages = self.stages
        if not stages:
            raise ValueError(f"give at least one of {', '.join(BUILDS_ON)}")
        for name, section in stages.items():
            earlier = [stage for stage in BUILDS_ON[name] if stage in stages]
            for key, stage in placeholders(section, name):
                if stage not in earlier:
                    known = ", ".join(f"${{{one}}}" for one in earlier) or "no earlier stage"
                    raise ValueError(f"{key} names ${{{stage}}}, but there is {known}")
        return self


def stage_named(value: str) -> str | None:
    """The stage whose placeholder the text is; None where it is none."""
    match = _PLACEHOLDER.fullmatch(value)
    return match[1] if match else None


def placeholders(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, stage) of every placeholder in a section."""
    if isinstance(value, str):
        if (stage := stage_named(value)) is not None:
            yield key, stage
    elif isinstance(value, list | tuple):
        for item in value:
            yield from placeholders(item, key)
    else:
        for name, item in _children(value):
            yield from placeholders(item, f"{key}.{name}")


def fill(value: Any, models: Mapping[str, str]) -> Any:
    """A copy of a section with every placeholder replaced by the model of its stage."""
    if isinstance(value, str):
        stage = stage_named(value)
        return value if stage is None else models[stage]
    if isinstance(value, list | tuple):
        return [fill(item, models) for item in value]
    filled = {name: fill(item, models) for name, item in _children(value)}
    if isinstance(value, Section):
        return value.model_copy(update=filled)
    return filled if isinstance(value, Mapping) else value


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Section):
        return list(iter(value))
    return list(value.items()) if isinstance(value, Mapping) else []
