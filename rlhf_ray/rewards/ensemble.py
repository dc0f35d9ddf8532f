"""Ensembles of reward models: one component whose members agree, or are not trusted where they do not.

Combined by mean, by minimum (worst-case optimisation), or by mean minus `penalty` times the members' standard
deviation (uncertainty-weighted optimisation): Coste et al. 2023, "Reward Model Ensembles Help Mitigate
Overoptimization", who subtract the variance; the standard deviation is in the scores' own units. Every member's own
score is kept as a part of the component.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlhf_ray.config.rewards import EnsembleRewardSection, NeuralOptions, NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.neural import NeuralReward
from rlhf_ray.rewards.outcome import CallFailure, Outcome


class EnsembleReward:
    """Several loaded models on one device, asked one after the other. Raises ConfigError as `NeuralReward` does."""

    def __init__(self, section: EnsembleRewardSection) -> None:
        self.section, names = section, member_names(section.models)
        common = section.model_dump(include=set(NeuralOptions.model_fields))
        sections = [NeuralRewardSection(model=model, **common) for model in section.models]
        self._members = {name: NeuralReward(member) for name, member in zip(names, sections, strict=True)}
        self.device = next(iter(self._members.values())).device

    def score(self, table: pa.Table) -> list[Outcome]:
        """Score each row; a row that one member cannot score is that row's failure, never a mean of the others."""
        answers = [member.score(table) for member in self._members.values()]
        return [self._combined(dict(zip(self._members, row, strict=True))) for row in zip(*answers, strict=True)]

    def _combined(self, outcomes: dict[str, Outcome]) -> Outcome:
        """outcomes: one row's, by member."""
        seconds = sum(outcome.seconds for outcome in outcomes.values())
        for name, outcome in outcomes.items():
            if (failure := outcome.failure) is not None:
                message = f"{failure.message} (member {name})"
                return Outcome(failure=CallFailure(failure.kind, message, failure.traceback), seconds=seconds)
        parts = {name: outcome.value for name, outcome in outcomes.items()}
        return Outcome(value=self._reduce(np.array(list(parts.values()), np.float64)), parts=parts, seconds=seconds)

    def _reduce(self, scores: np.ndarray) -> float:
        """scores: float64 [members]."""
        if self.section.combine == "min":
            return float(scores.min())
        penalty = self.section.penalty if self.section.combine == "uncertainty" else 0.0
        return float(scores.mean() - penalty * scores.std())


def neural_reward(section: NeuralRewardSection | EnsembleRewardSection) -> NeuralReward | EnsembleReward:
    """Load what the section describes."""
    return EnsembleReward(section) if isinstance(section, EnsembleRewardSection) else NeuralReward(section)


def member_names(models: Sequence[str]) -> list[str]:
    """Short distinct names for the columns: the last part of each model's name, numbered where that is not enough."""
    names = [re.sub(r"\W", "_", Path(model).name) for model in models]
    if len(set(models)) < len(models):
        raise ConfigError(f"models: {', '.join(models)} names a model twice; an ensemble needs different members")
    if len(set(names)) == len(names):
        return names
    return [f"{name}_{number}" for number, name in enumerate(names)]
