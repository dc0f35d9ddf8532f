"""The best policy of a run, not only the last: exported to `best/` in the run folder each time it is beaten.

best/  config.json, model.safetensors, tokenizer (adapter/ with LoRA)  best.json: iteration, reward, measured_on
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_ray.files import replaced
from rlhf_ray.trainers.callbacks import Callback, RunningTrainer

BEST_FILE = "best.json"


@dataclass(frozen=True)
class Best:
    """The best mean reward so far, and the iteration that showed it."""

    iteration: int
    reward: float


class BestModel(Callback):
    """Keeps the policy with the best mean reward.

    `measured_on="held-out prompts"`: at each evaluation, of the policy after that iteration (0: the start).
    `measured_on="training samples"`: in each iteration, of the policy that sampled them (the one before its update).
    """

    def __init__(self, measured_on: Literal["held-out prompts", "training samples"] = "training samples") -> None:
        self.measured_on = measured_on
        self.best: Best | None = None

    def on_train_start(self, trainer: RunningTrainer) -> None:
        self.trainer = trainer

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        if self.measured_on == "training samples" and composed.keep.any():
            self._offer(iteration, float(composed.total[composed.keep].mean()))

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        if self.measured_on == "held-out prompts" and not np.isnan(evaluation.reward).all():
            self._offer(iteration, float(np.nanmean(evaluation.reward)))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.best) if self.best else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = Best(**state) if state else None

    def _offer(self, iteration: int, reward: float) -> None:
        """Export the policy that the learner holds if it is the best."""
        if self.best is None or reward > self.best.reward:
            self.best = Best(iteration, reward)
            with self.trainer.console.progress("saving the best policy"):
                self._export(self.trainer.folder.best)

    def _export(self, folder: Path) -> None:
        """Written aside and renamed: `folder` holds a whole policy, whenever the run is killed."""
        assert self.best is not None
        with replaced(folder) as aside:
            self.trainer.export_policy(aside)
            (aside / BEST_FILE).write_text(json.dumps({**asdict(self.best), "measured_on": self.measured_on}, indent=1))
