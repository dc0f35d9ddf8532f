"""Reward components: rule-based functions and neural models, each with a weight and a failure policy."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_ray.config.base import Section


class RewardSection(Section):
    """What every component has."""

    enabled: bool = Field(True, description="Switch the component off without removing it.")
    weight: float = Field(1.0, description="Factor of this component in the total reward.")
    replicas: int = Field(1, ge=1, le=256, description="Actors that score with this component.")
    timeout_s: float = Field(30.0, gt=0, description="Seconds one call may take (function) or one batch (neural).")
    on_failure: Literal["fail", "skip_sample", "leave_out"] = Field(
        "fail",
        description="A call that raises, returns NaN or hangs: stop, drop the sample, or leave the component out.",
    )


class FunctionRewardSection(RewardSection):
    type: Literal["function"] = "function"
    function: str = Field(description="Import path `package.module:function`, called as f(prompt, response, ...).")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the function.")


class NeuralRewardSection(RewardSection):
    type: Literal["neural"] = "neural"
    model: str = Field(description="Hub name or folder of a sequence-classification model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    max_tokens: int | None = Field(None, ge=2, description="Longest prompt + response; default: the model's context.")
    tokens_per_batch: int = Field(16384, ge=1, description="Padded tokens per forward pass.")
    label_index: int = Field(0, ge=0, description="Which output is the score, for models with several.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Compute dtype of the model.")


RewardComponent = Annotated[FunctionRewardSection | NeuralRewardSection, Field(discriminator="type")]
