"""Whether an iteration came out the same a second time, and where it first differs.

Two run folders are compared: what a run recorded, and what its replay wrote. The parts of an iteration stand in the
order in which one follows from the other, so the first that differs is the place to look at. Numbers are the same when
they are equal, without any rounding, or both NaN.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.schema import KEY, REWARD_PREFIX
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.format import scientific
from rlhf_ray.trainers.digests import read_digests
from rlhf_ray.trainers.recorded import rollouts_file
from rlhf_ray.trainers.results import read_metrics
from rlhf_ray.trainers.run_folder import RunFolder

Key = tuple[int, ...]  # (prompt_id, sample_index)

#: Metrics that measure the machine, not the run.
MEASURED = ("seconds/", "throughput/", "failures/")
#: Metrics that the learner computes; the other ones are the driver's.
LOSSES = ("loss/", "policy/", "critic/", "value/", "kl/")
#: The column of the composed reward.
REWARD = "reward"
#: Why a part was not compared.
TAKEN, NOT_RECORDED = "taken from the record", "not recorded"
#: Columns of lists in the rollouts, and what a report calls them.
LISTS = {
    "prompt_tokens": "prompts",
    "response_tokens": "tokens",
    "response_logprobs": "log-probs",
    "reference_logprobs": "reference log-probs",
}


@dataclass(frozen=True)
class Part:
    """One thing that was compared: `different` of `compared` values, tensors or (for lists) samples are not the same.

    Nothing is compared that the replay took from the record, or that the record does not hold: `note` says which.
    """

    name: str
    compared: int = 0
    different: int = 0
    largest: float | None = None  # difference between two numbers
    first: str = ""  # where the first difference is, with both values
    note: str = ""

    @property
    def same(self) -> bool:
        return not self.different


@dataclass(frozen=True)
class IterationReport:
    """The parts of one iteration, causes before effects."""

    iteration: int
    parts: list[Part]

    @property
    def first(self) -> Part | None:
        """The first part that differs."""
        return next((part for part in self.parts if not part.same), None)


@dataclass(frozen=True)
class ReplayReport:
    """A finished replay of the iterations after `checkpoint` (0: the beginning)."""

    run: Path
    replay: Path  # the replay's own run folder
    source: Literal["rollouts", "prompts"]
    checkpoint: int
    exact: bool  # the run promised the same bits
    iterations: list[IterationReport]

    @property
    def same(self) -> bool:
        return all(report.first is None for report in self.iterations)

    @property
    def verdict(self) -> str:
        """One sentence: the same, or where it first differs."""
        for report in self.iterations:
            if report.first is not None:
                return f"differs first in iteration {report.iteration}, {report.first.name}: {report.first.first}"
        return "the same in every bit that was compared"

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict first."""
        paths = {"run": str(self.run), "replay": str(self.replay)}
        return {"same": self.same, "verdict": self.verdict, **asdict(self), **paths}

    def show(self, console: Console) -> None:
        console.stage("Replay", f"{self.run}, from its {self.source}")
        for report in self.iterations:
            titles = [f"iteration {report.iteration}", "compared", "different", "largest difference"]
            console.table(titles, [_row(part) for part in report.parts])
        for report in self.iterations:
            for part in report.parts:
                if not part.same:
                    console.note(f"iteration {report.iteration}, {part.name}: {part.first}")
        if not self.same and not self.exact:
            console.note("the run was not exact (run.exact=false): the last bits may depend on batches and threads")
        console.facts({"verdict": self.verdict, "replay": self.replay})


def _row(part: Part) -> list[str]:
    if part.note:
        return [part.name, part.note, "", ""]
    return [part.name, f"{part.compared:,}", f"{part.different:,}", scientific(part.largest)]


def compare_iteration(recorded: RunFolder, replayed: RunFolder, number: int, taken: bool) -> IterationReport:
    """Iteration `number` as two runs have it.

    taken: the replay trained on the recorded samples, so that of their columns the composed reward alone is new.
    """
    before, after = (
        compare_weights(name, read_digests(recorded.digests, version), read_digests(replayed.digests, version) or {})
        for name, version in (("weights before", number - 1), ("weights after", number))
    )
    old, new = (run.rollouts / rollouts_file(number) for run in (recorded, replayed))
    samples = [Part("samples", note=NOT_RECORDED)]
    if old.is_file():
        samples = compare_samples(pq.read_table(old), pq.read_table(new), taken)
    losses, metrics = compare_metrics(*(read_metrics(run.metrics_file)[number] for run in (recorded, replayed)))
    return IterationReport(number, [before, *samples, losses, after, metrics])


# -- samples -----------------------------------------------------------------------------------------------------------


def compare_samples(recorded: pa.Table, replayed: pa.Table, taken: bool) -> list[Part]:
    """Tokens, log-probs and rewards of an iteration's rollouts; `taken` as in `compare_iteration`."""
    keys, left, right = _common_rows(recorded, replayed)
    parts = [Part("samples", note=TAKEN) if taken else _compare_keys(recorded, replayed)]
    for column, name in LISTS.items():
        if column in recorded.column_names and column in replayed.column_names:
            if taken:
                parts.append(Part(name, note=TAKEN))
            else:
                parts.append(_compare_lists(name, keys, Ragged(left[column]), Ragged(right[column])))
    labels = [_at(key) for key in keys]
    for column in _reward_columns(recorded, replayed):
        if taken and column != REWARD:
            parts.append(Part(column, note=TAKEN))
        else:
            parts.append(_compare_numbers(column, labels, _numbers(left, column), _numbers(right, column)))
    return parts


def _reward_columns(recorded: pa.Table, replayed: pa.Table) -> list[str]:
    """The components and their parts, the composed reward last."""
    names = dict.fromkeys([*recorded.column_names, *replayed.column_names])
    return [*(name for name in names if name.startswith(REWARD_PREFIX)), REWARD]


def _keys(table: pa.Table) -> list[Key]:
    return list(zip(*(table[field.name].to_pylist() for field in KEY), strict=True))


def _common_rows(recorded: pa.Table, replayed: pa.Table) -> tuple[list[Key], pa.Table, pa.Table]:
    """The keys that both tables have, in order, and either table's rows of them."""
    left = {key: row for row, key in enumerate(_keys(recorded))}
    right = {key: row for row, key in enumerate(_keys(replayed))}
    keys = sorted(left.keys() & right.keys())
    return keys, recorded.take([left[key] for key in keys]), replayed.take([right[key] for key in keys])


def _compare_keys(recorded: pa.Table, replayed: pa.Table) -> Part:
    old, new = set(_keys(recorded)), set(_keys(replayed))
    first = ""
    if old != new:
        key = min(old ^ new)
        first = f"{_at(key)} is in the {'record' if key in old else 'replay'} alone"
    return Part("samples", len(old | new), len(old ^ new), first=first)


def _compare_lists(name: str, keys: list[Key], recorded: Ragged, replayed: Ragged) -> Part:
    """Samples whose lists are not the same; the difference of log-probs too."""
    different, largest, first = 0, None, ""
    for row, key in enumerate(keys):
        old, new = recorded[row], replayed[row]
        if np.array_equal(old, new):
            continue
        different += 1
        common = min(len(old), len(new))
        unequal = np.flatnonzero(old[:common] != new[:common])
        if np.issubdtype(old.dtype, np.floating) and common:
            largest = max(largest or 0.0, float(np.abs(old[:common] - new[:common]).max()))
        place = int(unequal[0]) if len(unequal) else common
        values = " recorded, ".join(str(values[place]) if place < len(values) else "the end" for values in (old, new))
        first = first or f"{_at(key)}, token {place}: {values} replayed"
    return Part(name, len(keys), different, largest, first)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    """A float64 column, [rows]; null, and a column that is not there, as NaN."""
    if column not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[column].to_numpy(zero_copy_only=False), np.float64)


def _at(key: Key) -> str:
    return f"prompt {key[0]}, sample {key[1]}"


# -- numbers and weights -----------------------------------------------------------------------------------------------


def compare_metrics(recorded: Mapping[str, float], replayed: Mapping[str, float]) -> tuple[Part, Part]:
    """The learner's numbers, and the driver's; without those that measure time. A metric that is missing is NaN."""
    names = [name for name in {**recorded, **replayed} if not name.startswith(MEASURED)]
    losses = [name for name in names if name.startswith(LOSSES)]
    rest = [name for name in names if name not in losses]
    return (
        _compare_numbers("losses", losses, _values(recorded, losses), _values(replayed, losses)),
        _compare_numbers("metrics", rest, _values(recorded, rest), _values(replayed, rest)),
    )


def compare_weights(name: str, recorded: Mapping[str, str] | None, replayed: Mapping[str, str]) -> Part:
    """The digests of the tensors that were published."""
    if recorded is None:
        return Part(name, note=NOT_RECORDED)
    tensors = sorted({**recorded, **replayed})
    unequal = [tensor for tensor in tensors if recorded.get(tensor) != replayed.get(tensor)]
    return Part(name, len(tensors), len(unequal), first=f"tensor {unequal[0]}" if unequal else "")


def _values(metrics: Mapping[str, float], names: list[str]) -> np.ndarray:
    return np.array([metrics.get(name, np.nan) for name in names], np.float64)


def _compare_numbers(name: str, labels: list[str], recorded: np.ndarray, replayed: np.ndarray) -> Part:
    """Numbers [values], each with the place that it has in the run."""
    unequal = np.flatnonzero((recorded != replayed) & ~(np.isnan(recorded) & np.isnan(replayed)))
    if not len(unequal):
        return Part(name, len(labels))
    gaps = np.abs(recorded[unequal] - replayed[unequal])
    largest = float(np.nanmax(gaps)) if not np.isnan(gaps).all() else None
    place = unequal[0]
    first = f"{labels[place]}: {float(recorded[place])!r} recorded, {float(replayed[place])!r} replayed"
    return Part(name, len(labels), len(unequal), largest, first)
