"""Supervised fine-tuning over the distributed learner.

rlhf-ray sft --config configs/sft.yaml model.name=Qwen/Qwen2.5-0.5B data.path=demonstrations.jsonl
"""

from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rlhf_ray import schema
from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.config import SFTConfig
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.report import Loaded
from rlhf_ray.trainers.supervised import SupervisedTrainer


class SFTTrainer(SupervisedTrainer):
    """Cross-entropy on the responses of demonstrations."""

    stage, title = "sft", "Supervised fine-tuning"
    config_class = SFTConfig
    config: SFTConfig

    def load(self, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Loaded:
        loaded = load_demonstrations(self.config.data, tokenizer, path)
        if path is None and self.config.sft.train_on_prompt:
            return Loaded(_with_prompts(loaded.table), loaded.report)
        return loaded

    def rows_per_step(self) -> int:
        return self.config.sft.samples_per_step

    def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None:
        learner.call("preparing the data", "start_sft", table, eval_table)

    def show(self, metrics: dict[str, float]) -> dict[str, float]:
        return {
            "loss": metrics["loss/sft"],
            "gradient norm": metrics["policy/grad_norm"],
            "learning rate": metrics["policy/learning_rate"],
            "tokens/s": metrics["tokens"] / metrics["seconds/total"],
        }


def _with_prompts(table: pa.Table) -> pa.Table:
    """All tokens but the first, which nothing predicts, as if they were the response."""
    field = schema.DEMONSTRATIONS.field("prompt_length")
    ones = pa.array(np.ones(table.num_rows), field.type)
    return table.set_column(table.schema.get_field_index(field.name), field, ones)
