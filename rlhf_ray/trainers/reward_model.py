"""Reward-model training on preference pairs over the distributed learner.

    rlhf-ray reward --config configs/reward.yaml model.name=Qwen/Qwen2.5-0.5B data.path=preferences.jsonl

The scores' mean and standard deviation over the training pairs are stored with the model, so that PPO gets normalised
rewards.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.config import RewardModelConfig
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.report import Loaded
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.trainers.supervised import SupervisedTrainer


class RewardTrainer(SupervisedTrainer):
    """Bradley-Terry loss on chosen against rejected responses."""

    stage, title = "reward", "Reward model"
    config_class = RewardModelConfig
    config: RewardModelConfig

    def load(self, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Loaded:
        margin = self.config.reward.margin
        column = margin if isinstance(margin, str) and path is None else None  # held-out pairs are measured without
        return load_preferences(self.config.data, tokenizer, path, margin_column=column)

    def rows_per_step(self) -> int:
        return self.config.reward.pairs_per_step

    def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None:
        learner.call("preparing the data", "start_pairwise", table, eval_table)

    def show(self, metrics: dict[str, float]) -> dict[str, float]:
        return {
            "loss": metrics["loss/pairwise"],
            "accuracy": metrics["reward/accuracy"],
            "margin": metrics["reward/margin"],
            "gradient norm": metrics["policy/grad_norm"],
        }

    def export(self, learner: LearnerRanks, folder: Path) -> None:
        moments = learner.call("measuring the scores", "score_moments")
        learner.export(folder, RewardStats(**moments))
