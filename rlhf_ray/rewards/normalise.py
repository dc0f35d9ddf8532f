"""Running mean and std per component, so that rewards on different scales can be weighed against each other.

Moments are those of all training samples so far, merged batch by batch (Chan, Golub, LeVeque 1979; Welford 1962 for
batches of one). They live in float64 and depend on the order of the samples: pass them in canonical order.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf_ray.config.rewards import RewardSection

_SMALLEST_STD = 1e-8  # a component that has been constant so far is centred, not blown up


@dataclass
class RunningMoments:
    """Count, mean and sum of squared deviations from the mean of all values seen."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def update(self, values: np.ndarray) -> None:
        """Merge values [samples], float64 without NaN."""
        if not values.size:
            return
        count = self.count + values.size
        mean = float(values.mean())
        delta = mean - self.mean
        self.m2 += float(np.square(values - mean).sum()) + delta * delta * (self.count * values.size / count)
        self.mean += delta * (values.size / count)
        self.count = count

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before the first value."""
        return float(np.sqrt(self.m2 / self.count)) if self.count else 0.0


class RewardNormalizer:
    """The moments of every component whose section says `normalize: running`."""

    def __init__(self, sections: Mapping[str, RewardSection]) -> None:
        self.moments = {
            name: RunningMoments() for name, s in sections.items() if s.enabled and s.normalize == "running"
        }

    def update(self, values: Mapping[str, np.ndarray]) -> None:
        """Take in component -> float64 [samples], NaN where it has no value. Other components are ignored."""
        for name, moments in self.moments.items():
            moments.update(values[name][~np.isnan(values[name])])

    def apply(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """(value - mean) / std where a component is normalised, as it came where not. NaN stays NaN."""
        return {name: self._apply(name, column) for name, column in values.items()}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """For a checkpoint: plain numbers that JSON gives back exactly."""
        return {name: asdict(moments) for name, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from a checkpoint. A component that was not normalised then starts afresh."""
        for name in self.moments.keys() & state.keys():
            self.moments[name] = RunningMoments(**state[name])

    def _apply(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self.moments:
            return values
        moments = self.moments[name]
        return (values - moments.mean) / (moments.std if moments.std > _SMALLEST_STD else 1.0)
