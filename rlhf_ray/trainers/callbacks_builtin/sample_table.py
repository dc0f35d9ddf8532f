"""What the policy writes while it learns: prompt | response | each component and the total."""

from typing import Any

import numpy as np

from rlhf_ray.tracking.sample_table import ScoredSample
from rlhf_ray.trainers.callbacks import Callback, RunningTrainer


class SampleTable(Callback):
    """Shows `rows` samples of every `every`-th iteration, from the highest reward to the lowest."""

    def __init__(self, every: int = 10, rows: int = 4) -> None:
        self.every, self.rows = every, rows

    def on_train_start(self, trainer: RunningTrainer) -> None:
        self.trainer = trainer

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        if iteration % self.every:
            return
        chosen = spread(composed.total, self.rows)
        failed, scores = rollouts.failed(), rollouts.scores()
        components = [name for name in composed.components if "/" not in name]  # without the keys of dict rewards
        samples = [
            ScoredSample(
                prompt=prompt,
                response=response,
                components={
                    name: "failed" if (row, name) in failed else _value(scores[name][row]) for name in components
                },
                total=_value(composed.total[row]),
            )
            for row, (prompt, response) in zip(chosen, rollouts.texts(chosen), strict=True)
        ]
        self.trainer.console.sample_table(f"samples of iteration {iteration}", samples)


def spread(total: np.ndarray, count: int) -> list[int]:
    """Rows of `count` samples at even steps from the highest total to the lowest; dropped samples (NaN) come last."""
    order = np.argsort(-total, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def _value(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
