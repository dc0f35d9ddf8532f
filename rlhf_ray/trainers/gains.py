"""What a stage changed on data that it was not trained on, as one number before and after."""

import math
from dataclasses import dataclass

import numpy as np

from rlhf_ray.evaluation.report import Report
from rlhf_ray.trainers.results import PPOResult
from rlhf_ray.trainers.stage_result import StageResult


@dataclass(frozen=True)
class Gain:
    """One measure of the model that a stage started from and of the one that it left."""

    measure: str
    before: float
    after: float
    falls: bool = False  # less is better
    error: float | None = None  # standard error of the change, where the single rows are known

    @property
    def change(self) -> float:
        """Positive where the stage made it better."""
        return (self.before - self.after) if self.falls else (self.after - self.before)

    def describe(self) -> str:
        error = "" if self.error is None else f" (± {self.error:.2g})"
        return f"{self.measure} {self.before:.4g} -> {self.after:.4g}{error}"


#: Stage -> the metric of its held-out evaluation that says most, its name for people, and whether it should fall.
_MEASURES = {
    "sft": ("eval/loss", "held-out loss", True),
    "reward_model": ("eval/accuracy", "held-out accuracy", False),
    "dpo": ("eval/margin", "held-out reward margin", False),
}


def supervised_gain(stage: str, result: StageResult) -> Gain | None:
    """Of SFT, a reward model or DPO; None without held-out rows."""
    metric, measure, falls = _MEASURES[stage]
    before, after = (metrics.get(metric, math.nan) for metrics in (result.before, result.after))
    return None if math.isnan(after) else Gain(measure, before, after, falls)


def ppo_gain(result: PPOResult) -> Gain | None:
    """The mean reward on the held-out prompts; None without them. The error is of the differences by prompt."""
    if result.before is None or result.after is None:
        return None
    difference = result.after.reward - result.before.reward
    difference = difference[~np.isnan(difference)]
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else None
    return Gain("held-out reward", result.before.means()["reward"], result.after.means()["reward"], error=error)


def evaluation_gain(report: Report) -> Gain | None:
    """The mean reward of the model over that of the one against it; None where there are no two with rewards."""
    model, *others = report.models
    if not others or not all("reward" in report.measures.get(label, {}) for label in report.models):
        return None
    return Gain(f"reward, {others[0]} -> {model}:", report.value("reward", others[0]), report.value("reward", model))
