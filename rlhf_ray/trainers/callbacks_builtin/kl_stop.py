"""Stop before the policy has left the reference behind: a sign that it games its rewards."""

from typing import Any, Literal

from rlhf_ray.config import PPOConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.callbacks import Callback, RunningTrainer


class KLEarlyStop(Callback):
    """Stops when the KL from the reference exceeds `threshold` in `patience` iterations in a row.

    It is counted in nats `per` response, or per token of the responses' mean length.
    """

    def __init__(self, threshold: float, patience: int = 1, per: Literal["response", "token"] = "response") -> None:
        self.threshold, self.patience, self.per = threshold, patience, per
        self.exceeded = 0  # iterations in a row

    def on_train_start(self, trainer: RunningTrainer) -> None:
        check_kl_is_measured(trainer.config)
        self.trainer = trainer

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        if "kl/mean" not in metrics:  # the iteration was rolled back
            return
        kl = metrics["kl/mean"] / (metrics["response/length_mean"] if self.per == "token" else 1)
        self.exceeded = self.exceeded + 1 if kl > self.threshold else 0
        if self.exceeded >= self.patience:
            times = f" for {self.patience} iterations" if self.patience > 1 else ""
            self.trainer.request_stop(f"KL {kl:.4g} above {self.threshold:g} nats per {self.per}{times}")

    def state_dict(self) -> dict[str, Any]:
        return {"exceeded": self.exceeded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.exceeded = state["exceeded"]


def check_kl_is_measured(config: Any) -> None:
    """Raises ConfigError for a run that has no reference to measure the KL from."""
    if not (isinstance(config, PPOConfig) and config.kl.coef > 0):
        raise ConfigError(
            "early_stop.kl: this run has no reference policy to measure the KL from; it is a PPO run with kl.coef > 0 "
            "that has one"
        )
