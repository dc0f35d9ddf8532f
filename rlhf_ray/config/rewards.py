"""Reward components: functions, neural models, ensembles, remote scorers and judges; how they become one number.

A component's values go through `gate`, `normalize` and `clip`, in this order, and are then reduced with its `weight`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from rlhf_ray.config.base import Section


class GateSection(Section):
    """A component counts only where another one passes; where the gate is shut it gives `otherwise`."""

    component: str = Field(description="Name of the component that decides; its raw value is compared.")
    above: float | None = Field(None, description="Open where the value is greater than this.")
    below: float | None = Field(None, description="Open where the value is less than this.")
    otherwise: float = Field(0.0, description="Value of the gated component where the gate is shut.")

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("give `above`, `below` or both")
        return self


class RewardSection(Section):
    """What every component has."""

    enabled: bool = Field(True, description="Switch the component off without removing it.")
    weight: float = Field(1.0, description="Factor of this component in the total reward.")
    gate: GateSection | None = Field(None, description="Count only where another component passes.")
    normalize: Literal["none", "running"] = Field(
        "none", description="running: subtract the running mean and divide by the running std of all training samples."
    )
    clip: list[float] | None = Field(
        None, min_length=2, max_length=2, description="Clip the (normalised) values to [low, high]."
    )
    replicas: int = Field(1, ge=1, le=256, description="Actors that score with this component.")
    timeout_s: float = Field(
        30.0, gt=0, description="Seconds one call (function, judge), batch (neural) or request (remote) may take."
    )
    on_failure: Literal["fail", "skip_sample", "leave_out"] = Field(
        "fail",
        description="A call that raises, returns NaN or hangs: stop, drop the sample, or leave the component out.",
    )

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Self:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip: {self.clip} is no range; give [low, high]")
        return self


class CarriesCode(Section):
    """A section that names a function. One of a notebook or script has no import path: it travels here, pickled.

    It runs, but is in no dump: `to_yaml` refuses the section by name.
    """

    _code: bytes | None = PrivateAttr(None)

    @property
    def code(self) -> bytes | None:
        return self._code

    def with_code(self, code: bytes) -> Self:
        """A copy that carries the cloudpickled function."""
        copy = self.model_copy()
        copy._code = code
        return copy


class FunctionRewardSection(RewardSection, CarriesCode):
    """A Python function or method, run in processes of its own."""

    type: Literal["function"] = "function"
    function: str = Field(
        description="Import path `package.module:function` (or `:Class.method`), called as f(prompt, response, ...)."
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the function.")
    constructor: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the class, where `function` names a method."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Call with lists of up to so many prompts and responses; default: one sample per call."
    )
    concurrency: int = Field(1, ge=1, le=1024, description="Calls of an async function that run at a time.")
    keys: dict[str, float] = Field(
        default_factory=dict, description="Weights of the keys of a function that returns a dict; default: 1 each."
    )


class NeuralOptions(RewardSection):
    """What neural components share."""

    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    max_tokens: int | None = Field(None, ge=2, description="Longest prompt + response; default: the model's context.")
    tokens_per_batch: int = Field(16384, ge=1, description="Padded tokens per forward pass.")
    label_index: int = Field(0, ge=0, description="Which output is the score, for models with several.")
    activation: Literal["none", "sigmoid", "softmax"] = Field(
        "none", description="Turn the outputs of a classifier into probabilities before `label_index` is taken."
    )
    template: str | None = Field(
        None,
        description="How the model reads a sample: `pair` (prompt and response as two texts), `chat` (the tokenizer's "
        "chat template), or text with {prompt} and {response}; default: prompt followed by response.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs; auto: a GPU if reserved.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Compute dtype of the model.")


class NeuralRewardSection(NeuralOptions):
    """One sequence-classification model."""

    type: Literal["neural"] = "neural"
    model: str = Field(description="Hub name or folder of a sequence-classification model.")
    adapter: str | None = Field(None, description="Hub name or folder of a PEFT adapter put on the model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")


class EnsembleRewardSection(NeuralOptions):
    """Several sequence-classification models as one component; every member's score is logged too."""

    type: Literal["ensemble"] = "ensemble"
    models: list[str] = Field(min_length=2, description="Hub names or folders of the members.")
    combine: Literal["mean", "min", "uncertainty"] = Field(
        "mean", description="uncertainty: mean minus `penalty` times the std of the members (Coste et al. 2023)."
    )
    penalty: float = Field(1.0, ge=0, description="Weight of the members' disagreement under `uncertainty`.")


class HTTPOptions(RewardSection):
    """What components behind an HTTP endpoint share."""

    concurrency: int = Field(8, ge=1, le=1024, description="Requests of one actor that run at a time.")
    retries: int = Field(3, ge=0, le=100, description="Further attempts after a lost connection, a 429 or a 5xx.")
    backoff_s: float = Field(0.5, gt=0, description="Wait before the first retry; doubles with each, with jitter.")
    deadline_s: float = Field(300.0, gt=0, description="Seconds a request may take with all its retries.")
    token_env: str | None = Field(None, description="Environment variable that holds the bearer token.")


class RemoteRewardSection(HTTPOptions):
    """A scorer behind an HTTP endpoint; the protocol is documented in `rlhf_ray.rewards.remote`."""

    type: Literal["remote"] = "remote"
    url: str = Field(pattern=r"^https?://", description="Address to POST batches of samples to.")
    batch_size: int = Field(32, ge=1, description="Samples per request.")
    columns: list[str] = Field(default_factory=list, description="Further columns of the samples to send along.")


class JudgeRewardSection(HTTPOptions):
    """A language model that grades responses, behind any OpenAI-compatible endpoint."""

    type: Literal["judge"] = "judge"
    base_url: str = Field(pattern=r"^https?://", description="The endpoint, up to and including `/v1`.")
    model: str = Field(description="Name of the model at the endpoint.")
    rubric: str = Field(description="File with the instructions; {prompt}, {response} and columns are filled in.")
    minimum: float = Field(0.0, description="Lowest grade; becomes reward 0.")
    maximum: float = Field(10.0, description="Highest grade; becomes reward 1.")
    structured: bool = Field(True, description="Ask for JSON by schema; off: find the grade in plain text.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer of the judge, in tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature of the judge.")

    @model_validator(mode="after")
    def _grades_are_a_range(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum: {self.minimum:g} must be less than maximum ({self.maximum:g})")
        return self


RewardComponent = Annotated[
    FunctionRewardSection | NeuralRewardSection | EnsembleRewardSection | RemoteRewardSection | JudgeRewardSection,
    Field(discriminator="type"),
]


class ReducerSection(CarriesCode):
    """How the components' values become the total reward."""

    type: Literal["weighted_sum", "mean", "min", "max", "product", "function"] = Field(
        "weighted_sum",
        description="weighted_sum; weighted mean; min, max or product of weight * value; or a function of your own.",
    )
    function: str | None = Field(
        None, description="Import path of a reducer: f(values, weights), NumPy arrays and floats by component name."
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the function.")

    @model_validator(mode="after")
    def _function_where_it_is_one(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise ValueError("set `function` exactly where type is `function`")
        return self
