"""rlhf_ray: Ray-distributed, actor-based RLHF with real vLLM rollouts and proven weight syncs.

    from rlhf_ray import LoraConfig, PPOTrainer, RewardComposer, llm_reward

Names are imported when they are used: `import rlhf_ray`, and so `rlhf-ray --help`, loads none of the libraries below.
"""

# ruff: noqa: F401 (the imports below are what `__getattr__` gives, for type checkers and editors)

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlhf_ray.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig
    from rlhf_ray.config.common import LoraSection as LoraConfig
    from rlhf_ray.config.common import RunSection as RunConfig
    from rlhf_ray.config.data import PromptDataSection as PromptDataConfig
    from rlhf_ray.config.evaluation import EvalConfig
    from rlhf_ray.config.load import load_config
    from rlhf_ray.config.ppo import GenerationSection as GenerationConfig
    from rlhf_ray.config.rlhf import RLHFConfig
    from rlhf_ray.config.training import TrainingConfig
    from rlhf_ray.evaluation.report import Report as EvaluationReport
    from rlhf_ray.export.api import export_model
    from rlhf_ray.rewards.composer import RewardComposer
    from rlhf_ray.rewards.decorator import llm_reward
    from rlhf_ray.rewards.reducers import (
        FunctionReducer,
        MaxReducer,
        MeanReducer,
        MinReducer,
        ProductReducer,
        WeightedSumReducer,
    )
    from rlhf_ray.rewards.terms import FunctionReward, HuggingFaceRewardModel, LLMJudge, RemoteReward, RewardEnsemble
    from rlhf_ray.trainers.callbacks import Callback
    from rlhf_ray.trainers.callbacks_builtin import (
        BestModel,
        KLEarlyStop,
        MLflowCallback,
        RewardPlateauStop,
        SampleTable,
        TensorBoardCallback,
        WandbCallback,
    )
    from rlhf_ray.trainers.dpo import DPOTrainer
    from rlhf_ray.trainers.evaluate import evaluate
    from rlhf_ray.trainers.evaluation import Evaluation
    from rlhf_ray.trainers.ppo import PPOTrainer
    from rlhf_ray.trainers.results import PPOResult
    from rlhf_ray.trainers.reward_model import RewardTrainer
    from rlhf_ray.trainers.rlhf import RLHFTrainer
    from rlhf_ray.trainers.sft import SFTTrainer
    from rlhf_ray.trainers.stage_result import StageResult

#: Exported name -> module, or module:name where it is called otherwise there.
_EXPORTS = {
    "BestModel": "trainers.callbacks_builtin",
    "Callback": "trainers.callbacks",
    "DPOConfig": "config",
    "DPOTrainer": "trainers.dpo",
    "EvalConfig": "config",
    "Evaluation": "trainers.evaluation",
    "EvaluationReport": "evaluation.report:Report",
    "FunctionReducer": "rewards.reducers",
    "FunctionReward": "rewards.terms",
    "GenerationConfig": "config.ppo:GenerationSection",
    "HuggingFaceRewardModel": "rewards.terms",
    "KLEarlyStop": "trainers.callbacks_builtin",
    "LLMJudge": "rewards.terms",
    "LoraConfig": "config.common:LoraSection",
    "MLflowCallback": "trainers.callbacks_builtin",
    "MaxReducer": "rewards.reducers",
    "MeanReducer": "rewards.reducers",
    "MinReducer": "rewards.reducers",
    "PPOConfig": "config",
    "PPOResult": "trainers.results",
    "PPOTrainer": "trainers.ppo",
    "ProductReducer": "rewards.reducers",
    "PromptDataConfig": "config.data:PromptDataSection",
    "RLHFConfig": "config.rlhf",
    "RLHFTrainer": "trainers.rlhf",
    "RemoteReward": "rewards.terms",
    "RewardComposer": "rewards.composer",
    "RewardEnsemble": "rewards.terms",
    "RewardModelConfig": "config",
    "RewardPlateauStop": "trainers.callbacks_builtin",
    "RewardTrainer": "trainers.reward_model",
    "RunConfig": "config.common:RunSection",
    "SFTConfig": "config",
    "SFTTrainer": "trainers.sft",
    "SampleTable": "trainers.callbacks_builtin",
    "StageResult": "trainers.stage_result",
    "TensorBoardCallback": "trainers.callbacks_builtin",
    "TrainingConfig": "config.training",
    "WandbCallback": "trainers.callbacks_builtin",
    "WeightedSumReducer": "rewards.reducers",
    "evaluate": "trainers.evaluate",
    "export_model": "export.api",
    "llm_reward": "rewards.decorator",
    "load_config": "config.load",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rlhf_ray' has no attribute {name!r}")
    module, _, original = _EXPORTS[name].partition(":")
    value = getattr(importlib.import_module(f"rlhf_ray.{module}"), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
