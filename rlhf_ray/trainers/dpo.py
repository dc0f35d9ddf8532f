"""Direct preference optimisation over the distributed learner.

    rlhf-ray dpo --config configs/dpo.yaml model.name=runs/sft/policy data.path=preferences.jsonl

A precomputed reference is asked once per run: its log-probs are kept in the run folder, where a resumed run finds them.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_ray.actors.learner_group import LearnerRanks
from rlhf_ray.config import DPOConfig
from rlhf_ray.data.preferences import load_preferences
from rlhf_ray.data.report import Loaded
from rlhf_ray.trainers.reference_file import ReferenceFile
from rlhf_ray.trainers.supervised import SupervisedTrainer

#: A call for the reference's log-probs covers so many steps' pairs. It makes a third of their passes, so that it takes
#: about as long as a step.
STEPS_PER_CALL = 4


class DPOTrainer(SupervisedTrainer):
    """The policy's log-ratios to its reference, raised on chosen responses against rejected ones."""

    stage, title = "dpo", "Direct preference optimisation"
    config_class = DPOConfig
    config: DPOConfig

    def load(self, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Loaded:
        return load_preferences(self.config.data, tokenizer, path)

    def rows_per_step(self) -> int:
        return self.config.dpo.pairs_per_step

    def start_objective(self, learner: LearnerRanks, table: Any, eval_table: Any) -> None:
        pairs = learner.call("loading the reference", "start_dpo", table, eval_table)
        if self.config.precomputes_reference:
            train, held_out = self._reference(learner, *pairs)
            learner.call("taking the reference", "set_reference", train, held_out if len(held_out) else None)

    def show(self, metrics: dict[str, float]) -> dict[str, float]:
        return {
            "loss": metrics["loss/dpo"],
            "accuracy": metrics["rewards/accuracy"],
            "margin": metrics["rewards/margin"],
            "gradient norm": metrics["policy/grad_norm"],
        }

    def _reference(self, learner: LearnerRanks, train: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
        """The reference's log-probs, float32 [pairs, 2], of the training and of the held-out pairs."""
        file = ReferenceFile(self.folder.path, self.config.dpo.reference_model or self.config.model.name)
        found = file.read(train, held_out)
        if found is None:
            with self.console.progress("asking the reference", train + held_out) as advance:
                found = self._ask(learner, train, False, advance), self._ask(learner, held_out, True, advance)
            file.write(*found)
        return found

    def _ask(self, learner: LearnerRanks, pairs: int, held_out: bool, advance: Any) -> np.ndarray:
        parts, size = [np.zeros((0, 2), dtype=np.float32)], STEPS_PER_CALL * self.rows_per_step()
        for start in range(0, pairs, size):
            rows = np.arange(start, min(start + size, pairs))
            parts.append(learner.call("asking the reference", "reference_logprobs", rows, held_out))
            advance(len(rows))
        return np.concatenate(parts)
