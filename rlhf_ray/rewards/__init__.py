"""Rewards: functions, reward models, remote scorers and judges, composed to one number. Usable without Ray.

Names are imported when they are used: the sandbox's child process passes through this file at every start, and nothing
here loads torch before a neural reward scores.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_ray.rewards.composer import RewardComposer
    from rlhf_ray.rewards.decorator import llm_reward
    from rlhf_ray.rewards.normalise import RewardNormalizer
    from rlhf_ray.rewards.reducers import (
        FunctionReducer,
        MaxReducer,
        MeanReducer,
        MinReducer,
        ProductReducer,
        Reducer,
        WeightedSumReducer,
    )
    from rlhf_ray.rewards.scores import RewardScores
    from rlhf_ray.rewards.terms import (
        FunctionReward,
        HuggingFaceRewardModel,
        LLMJudge,
        RemoteReward,
        RewardEnsemble,
        Term,
        as_term,
    )

__all__ = [
    "FunctionReducer",
    "FunctionReward",
    "HuggingFaceRewardModel",
    "LLMJudge",
    "MaxReducer",
    "MeanReducer",
    "MinReducer",
    "ProductReducer",
    "Reducer",
    "RemoteReward",
    "RewardComposer",
    "RewardEnsemble",
    "RewardNormalizer",
    "RewardScores",
    "Term",
    "WeightedSumReducer",
    "as_term",
    "llm_reward",
]

_MODULES = {
    "composer": ["RewardComposer"],
    "decorator": ["llm_reward"],
    "normalise": ["RewardNormalizer"],
    "reducers": [name for name in __all__ if name.endswith("Reducer")],
    "scores": ["RewardScores"],
    "terms": [
        "FunctionReward",
        "HuggingFaceRewardModel",
        "LLMJudge",
        "RemoteReward",
        "RewardEnsemble",
        "Term",
        "as_term",
    ],
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
