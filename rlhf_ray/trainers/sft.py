"""Supervised fine-tuning over the distributed learner.

rlhf-ray sft --config configs/sft.yaml model.name=Qwen/Qwen2.5-0.5B data.path=demonstrations.jsonl
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.config import SFTConfig
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.report import Loaded
from rlhf_ray.trainers.supervised import SupervisedTrainer


class SFTTrainer(SupervisedTrainer):
    """Cross-entropy on the replies of demonstrations: the last one, every one, or prompts too (`sft.loss_on`)."""

    stage, title = "sft", "Supervised fine-tuning"
    config_class = SFTConfig
    config: SFTConfig

    def load(self, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Loaded:
        return load_demonstrations(self.config.data, tokenizer, path, every_turn=self.config.sft.loss_on == "assistant")

    def rows_per_step(self) -> int:
        return self.config.sft.samples_per_step

    def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None:
        learner.call("preparing the data", "start_sft", table, eval_table)

    def show(self, metrics: dict[str, float]) -> dict[str, float]:
        return {
            "loss": metrics["loss/sft"],
            "token accuracy": metrics["sft/token_accuracy"],
            "gradient norm": metrics["policy/grad_norm"],
            "learning rate": metrics["policy/learning_rate"],
            "tokens/s": metrics["tokens"] / metrics["seconds/total"],
        }
