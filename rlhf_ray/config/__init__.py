"""What a run is: pydantic models, YAML with dotted overrides, JSON schema. Imports neither torch, ray nor vllm."""

from rlhf_ray.config.dpo import DPOConfig
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.sft import SFTConfig

__all__ = ["DPOConfig", "EvalConfig", "PPOConfig", "RewardModelConfig", "SFTConfig"]
