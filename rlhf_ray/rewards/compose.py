"""Components to one reward per sample, with an explicit answer to every value that is missing.

A component's raw values go through its gate, the running normalisation and its clip, in this order; the reducer then
joins the components by their weights. A value can be missing in two ways. The function returned None: the component
does not apply, and the reducer knows what that means. Or the call failed: then the component's `on_failure` decides,
and no failure ever becomes a number.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rlhf_ray.config.rewards import RewardSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.reducers import Reducer, WeightedSumReducer

Columns = Mapping[str, np.ndarray]  # component -> float64 [samples], NaN where it has no value
Failed = Mapping[tuple[int, str], RewardFailure]  # by (row, component)


@dataclass(frozen=True)
class ComponentStats:
    """One component over a batch; mean, std and range of its own values (raw, before gate and weight)."""

    applied: int
    did_not_apply: int
    failed: int
    mean: float = np.nan
    std: float = np.nan
    minimum: float = np.nan
    maximum: float = np.nan
    contribution: float | None = None  # mean over the kept samples of weight * value as reduced; None for a key column
    shut: int | None = None  # samples where its gate was shut; None without a gate

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
        numbers: dict[str, float | None] = {}
        if self.applied:
            numbers |= {"mean": self.mean, "std": self.std, "min": self.minimum, "max": self.maximum}
        numbers |= {"contribution": self.contribution, "applied": self.applied, "did_not_apply": self.did_not_apply}
        numbers |= {"failed": self.failed, "shut": self.shut}
        return {name: float(number) for name, number in numbers.items() if number is not None}


@dataclass(frozen=True)
class Composed:
    """The reward of every sample."""

    total: np.ndarray  # float64 [samples]; NaN where keep is False, so that a dropped sample cannot pass as a reward
    keep: np.ndarray  # bool [samples]
    components: dict[str, ComponentStats]  # by component, and by `component/key` for functions that return a dict


def compose(
    columns: Columns,
    failed: Failed,
    sections: Mapping[str, RewardSection],
    reducer: Reducer | None = None,
    normalizer: RewardNormalizer | None = None,
    update: bool = False,
) -> Composed:
    """The total reward of every sample from the values of the enabled components.

    columns: component -> float64 [samples], NaN where it has no value; `component/key` columns are only counted.
    failed: the failures by (row, component). reducer: default the weighted sum. normalizer: the running moments;
    `update` takes this batch into them first (training batches alone). Without one, the batch's own moments serve.

    Under the weighted sum, `leave_out` scales the other components up, so that the sum of the weights' magnitudes stays
    what it was. A sample with nothing left is dropped. Raises DataError for a failure of a component whose policy is
    `fail` and for values that cannot be, ConfigError when no component is enabled or a gate names none.
    """
    reducer = reducer or WeightedSumReducer()
    active = enabled_components(sections)
    _stop_if_told_to(failed, active)
    raw = _own_columns(columns, active)
    failures = _failure_masks(failed, raw)
    _refuse_infinite(raw, failures)
    raw = {name: np.where(failures[name], np.nan, column) for name, column in raw.items()}

    keep, scale = _after_failures(failures, active, reducer.rescales)
    values, shut = _gated(raw, failures, active)
    if normalizer is None:
        normalizer, update = RewardNormalizer(active), True
    if update:
        normalizer.update({name: column[keep] for name, column in values.items()})
    values = _clipped(normalizer.apply(values), active)

    weights = {name: section.weight for name, section in active.items()}
    total = _reduced(reducer, values, weights, keep) * scale
    keep = ~np.isnan(total)
    stats = _stats(columns, failures, active)
    for name, column in values.items():
        part = float((weights[name] * np.nan_to_num(column[keep])).mean()) if keep.any() else 0.0
        stats[name] = replace(stats[name], contribution=part, shut=shut.get(name))
    return Composed(total, keep, stats)


def enabled_components(sections: Mapping[str, RewardSection]) -> dict[str, RewardSection]:
    """The components that count. Raises ConfigError when there is none, or a gate names one that is not among them."""
    active = {name: section for name, section in sections.items() if section.enabled}
    if not active:
        raise ConfigError("No reward component is enabled: there is nothing to optimise. Enable one under `rewards`.")
    for name, section in active.items():
        if section.gate is None or (section.gate.component in active and section.gate.component != name):
            continue
        other = section.gate.component
        near = difflib.get_close_matches(other, active, n=1)
        if other == name:
            problem = "is the component itself: to bound its values, use `clip`"
        elif other in sections:
            problem = "is not enabled: enable it with weight 0, so that it decides without counting"
        else:
            problem = f"is no component; did you mean {near[0]}?" if near else f"is none of {', '.join(active)}"
        raise ConfigError(f"rewards.{name}.gate.component: {other!r} {problem}")
    return active


def _stop_if_told_to(failed: Failed, active: Mapping[str, RewardSection]) -> None:
    fatal = [failure for (_, name), failure in sorted(failed.items()) if active[name].on_failure == "fail"]
    if fatal:
        name = fatal[0].component
        raise DataError(
            f"{fatal[0].describe()}\n"
            f"The run stops because rewards.{name}.on_failure is `fail`. Set it to `skip_sample` to drop such samples, "
            "or to `leave_out` to score them with the other components; quarantine/rewards.jsonl then lists them."
        )


def _own_columns(columns: Columns, active: Mapping[str, RewardSection]) -> dict[str, np.ndarray]:
    if absent := [name for name in active if name not in columns]:
        raise DataError(f"No scores came for reward component {', '.join(f'`{name}`' for name in absent)}.")
    return {name: np.asarray(columns[name], dtype=np.float64) for name in active}


def _failure_masks(failed: Failed, raw: Columns) -> dict[str, np.ndarray]:
    """component -> bool [samples]."""
    masks = {name: np.zeros(column.shape, dtype=bool) for name, column in raw.items()}
    for row, name in failed:
        masks[name][row] = True
    return masks


def _refuse_infinite(raw: Columns, failures: Columns) -> None:
    for name, column in raw.items():
        if count := int((np.isinf(column) & ~failures[name]).sum()):
            raise DataError(
                f"Reward component `{name}` gave {count} infinite values that it did not report as failures."
            )


def _after_failures(
    failures: Columns, active: Mapping[str, RewardSection], rescales: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples the failures leave, bool [samples], and the factor that makes up for weights left out."""
    any_failed = np.any(list(failures.values()), axis=0)
    skipped = np.any([failures[name] & (s.on_failure == "skip_sample") for name, s in active.items()], axis=0)
    magnitude = sum(abs(section.weight) for section in active.values())
    left = np.sum([abs(section.weight) * ~failures[name] for name, section in active.items()], axis=0)
    keep = ~skipped & ((left > 0) | ~any_failed)
    rescaled = any_failed & (left > 0) & rescales
    return keep, np.divide(magnitude, left, out=np.ones(left.shape), where=rescaled)


def _gated(
    raw: Columns, failures: Columns, active: Mapping[str, RewardSection]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The values behind the gates, and how many samples each gate shut out. A gate looks at raw values alone.

    Where the deciding component failed (and was left out), nobody knows: the gated one does not apply either.
    """
    values, shut = dict(raw), {}
    for name, section in active.items():
        if (gate := section.gate) is not None:
            other = raw[gate.component]
            is_open = ~np.isnan(other)
            if gate.above is not None:
                is_open &= other > gate.above
            if gate.below is not None:
                is_open &= other < gate.below
            unknown = failures[gate.component] | np.isnan(raw[name])
            values[name] = np.where(unknown, np.nan, np.where(is_open, raw[name], gate.otherwise))
            shut[name] = int((~is_open & ~unknown).sum())
    return values, shut


def _reduced(reducer: Reducer, values: Columns, weights: Mapping[str, float], keep: np.ndarray) -> np.ndarray:
    """float64 [samples], NaN where a sample is not kept or nothing applied. Raises DataError for an overflow."""
    total = np.full(keep.shape, np.nan)
    if keep.any():
        with np.errstate(over="ignore", invalid="ignore"):
            total[keep] = reducer.reduce({name: column[keep] for name, column in values.items()}, weights)
    applied = np.any([~np.isnan(column) & (weights[name] != 0) for name, column in values.items()], axis=0)
    if count := int((np.isinf(total) | (np.isnan(total) & keep & applied)).sum()):
        raise DataError(f"The total reward of {count} samples is too large for a number: lower the weights, or clip.")
    return total


def _clipped(values: Columns, active: Mapping[str, RewardSection]) -> dict[str, np.ndarray]:
    clips = {name: section.clip for name, section in active.items()}
    return {
        name: column if (clip := clips[name]) is None else np.clip(column, clip[0], clip[1])
        for name, column in values.items()
    }


def _stats(columns: Columns, failures: Columns, active: Mapping[str, RewardSection]) -> dict[str, ComponentStats]:
    """Statistics of the components and of the keys of those that return dicts."""
    stats: dict[str, ComponentStats] = {}
    for name in active:
        keys = [column for column in columns if column.startswith(f"{name}/")]
        stats |= {column: ComponentStats.of(columns[column], failures[name]) for column in (name, *keys)}
    return stats
