"""`@llm_reward`: marks a function, or a method of a `RewardComposer`, as a reward component.

    class Helpful(RewardComposer):
        @llm_reward
        def brevity(self, prompt: str, response: str) -> float:
            return max(0.0, 1.0 - len(response) / 300)

        @llm_reward(weight=2.0, timeout_s=5, on_failure="skip_sample")
        async def grounded(self, prompt: str, response: str, document: str) -> float | None: ...

The function stays what it was and is called as before; the options become the component's section of the configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from rlhf_ray.config.rewards import FunctionRewardSection, GateSection
from rlhf_ray.rewards.build import build_section

OnFailure = Literal["fail", "skip_sample", "leave_out"]
Function = TypeVar("Function", bound=Callable[..., Any])

_ATTRIBUTE = "__llm_reward__"


@dataclass(frozen=True)
class Mark:
    """What `@llm_reward` was told: the component's name (default: the function's) and its options."""

    name: str | None
    options: FunctionRewardSection  # its `function` is a placeholder


@overload
def llm_reward(function: Function, /) -> Function: ...
@overload
def llm_reward(
    *,
    name: str | None = None,
    weight: float = 1.0,
    batch_size: int | None = None,
    concurrency: int = 1,
    timeout_s: float = 30.0,
    on_failure: OnFailure = "fail",
    replicas: int = 1,
    clip: Sequence[float] | None = None,
    normalize: Literal["none", "running"] = "none",
    gate: GateSection | Mapping[str, Any] | None = None,
    keys: Mapping[str, float] | None = None,
) -> Callable[[Function], Function]: ...
def llm_reward(function: Function | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Mark a reward function, bare or with options; each option is the field of that name of the component's section.

    The function is called as f(prompt, response, ...): further parameters by name receive dataset columns (such as
    `ground_truth`), `prompt_tokens`, `response_tokens` and `finish_reason`. It returns a number, a dict of numbers (see
    `keys`), or None where it does not apply. With `batch_size` it takes and returns lists. It may be async.

    Raises:
        ConfigError: an option is unknown or out of its bounds.
    """

    def mark(function: Function) -> Function:
        if (clip := options.get("clip")) is not None:
            options["clip"] = list(clip)
        where = f"@llm_reward on `{getattr(function, '__name__', function)}`"
        section = build_section(FunctionRewardSection, where, function="marked", **_given(options))
        setattr(function, _ATTRIBUTE, Mark(name, section))
        return function

    return mark if function is None else mark(function)


def mark_of(thing: Any) -> Mark | None:
    """The mark of a function or method, also beneath `@staticmethod` and `@classmethod`."""
    if isinstance(thing, staticmethod | classmethod) and not hasattr(thing, _ATTRIBUTE):
        thing = thing.__func__
    mark = getattr(thing, _ATTRIBUTE, None)
    return mark if isinstance(mark, Mark) else None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
