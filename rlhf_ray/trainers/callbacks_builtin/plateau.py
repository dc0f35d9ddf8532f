"""Stop when training no longer pays."""

from typing import Any

from rlhf_ray.trainers.callbacks import Callback, RunningTrainer


class RewardPlateauStop(Callback):
    """Stops after `patience` iterations without a mean reward that beats the best one by `min_gain` (or at all)."""

    def __init__(self, patience: int, min_gain: float = 0.0) -> None:
        self.patience, self.min_gain = patience, min_gain
        self.best: float | None = None
        self.since_best = 0  # iterations

    def on_train_start(self, trainer: RunningTrainer) -> None:
        self.trainer = trainer

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        reward = metrics["reward/mean"]
        if self.best is None or (reward > self.best and reward - self.best >= self.min_gain):
            self.best, self.since_best = reward, 0
            return
        self.since_best += 1
        if self.since_best >= self.patience:
            self.trainer.request_stop(f"no mean reward above {self.best:.4g} in the last {self.since_best} iterations")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.since_best = state["best"], state["since_best"]
