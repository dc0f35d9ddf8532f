"""Components to one reward per sample: the weighted sum, with an explicit answer to every value that is missing.

A value can be missing in two ways. The function returned None: the component does not apply and contributes nothing.
Or the call failed: then the component's `on_failure` decides, and no failure ever becomes a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_ray.config.rewards import RewardSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.rewards.failure import RewardFailure


@dataclass(frozen=True)
class ComponentStats:
    """One component over a batch; mean, std and range of its own values (before the weight) where it applied."""

    applied: int
    did_not_apply: int
    failed: int
    mean: float = np.nan
    std: float = np.nan
    minimum: float = np.nan
    maximum: float = np.nan

    @classmethod
    def of(cls, values: np.ndarray, failed: np.ndarray) -> "ComponentStats":
        """values: float64 [samples], NaN where missing; failed: bool [samples]."""
        present = values[~np.isnan(values) & ~failed]
        counts = (present.size, int(values.size - present.size - failed.sum()), int(failed.sum()))
        if not present.size:
            return cls(*counts)
        return cls(*counts, float(present.mean()), float(present.std()), float(present.min()), float(present.max()))

    def metrics(self) -> dict[str, float]:
        """Numbers for the tracker; without mean and range where the component applied to no sample."""
        counts = {"applied": self.applied, "did_not_apply": self.did_not_apply, "failed": self.failed}
        values = {"mean": self.mean, "std": self.std, "min": self.minimum, "max": self.maximum} if self.applied else {}
        return {name: float(number) for name, number in {**values, **counts}.items()}


@dataclass(frozen=True)
class Composed:
    """The reward of every sample."""

    total: np.ndarray  # float64 [samples]; NaN where keep is False, so that a dropped sample cannot pass as a reward
    keep: np.ndarray  # bool [samples]
    components: dict[str, ComponentStats]


def compose(
    columns: Mapping[str, np.ndarray],
    failed: Mapping[tuple[int, str], RewardFailure],
    sections: Mapping[str, RewardSection],
) -> Composed:
    """Weighted sum of the enabled components.

    columns: component -> float64 [samples], NaN where it has no value; failed: the failures by (row, component).
    `leave_out` scales the weights of the other components up, so that the sum of their magnitudes stays what it was; a
    sample with no weight left is dropped. Raises DataError for a failure of a component whose policy is `fail`, and
    ConfigError when no component is enabled.
    """
    active = {name: section for name, section in sections.items() if section.enabled}
    if not active:
        raise ConfigError("No reward component is enabled: there is nothing to optimise. Enable one under `rewards`.")
    _stop_if_told_to(failed, active)
    names = list(active)
    if absent := [name for name in names if name not in columns]:
        raise DataError(f"No scores came for reward component {', '.join(f'`{name}`' for name in absent)}.")
    values = np.array([columns[name] for name in names], dtype=np.float64)  # [components, samples]
    failures = np.zeros(values.shape, dtype=bool)
    for row, name in failed:
        failures[names.index(name), row] = True
    _refuse_infinite(names, values, failures)

    weights = np.array([active[name].weight for name in names], dtype=np.float64)
    magnitude = np.abs(weights).sum()
    left = np.abs(weights) @ ~failures  # [samples]: weight magnitude that the failures leave
    skips = np.array([active[name].on_failure == "skip_sample" for name in names], dtype=bool)
    keep = ~(failures & skips[:, None]).any(axis=0) & ((left > 0) | ~failures.any(axis=0))

    present = np.where(np.isnan(values) | failures, 0.0, values)
    scale = np.divide(magnitude, left, out=np.ones(left.shape), where=failures.any(axis=0) & (left > 0))
    total = np.where(keep, (weights @ present) * scale, np.nan)
    stats = {name: ComponentStats.of(values[i], failures[i]) for i, name in enumerate(names)}
    return Composed(total, keep, stats)


def _stop_if_told_to(failed: Mapping[tuple[int, str], RewardFailure], active: Mapping[str, RewardSection]) -> None:
    fatal = [failure for (_, name), failure in sorted(failed.items()) if active[name].on_failure == "fail"]
    if fatal:
        name = fatal[0].component
        raise DataError(
            f"{fatal[0].describe()}\n"
            f"The run stops because rewards.{name}.on_failure is `fail`. Set it to `skip_sample` to drop such samples, "
            "or to `leave_out` to score them with the other components; quarantine/rewards.jsonl then lists them."
        )


def _refuse_infinite(names: list[str], values: np.ndarray, failures: np.ndarray) -> None:
    for name, row, skip in zip(names, values, failures, strict=True):
        if count := int((np.isinf(row) & ~skip).sum()):
            raise DataError(
                f"Reward component `{name}` gave {count} infinite values that it did not report as failures."
            )
