"""Runs in exact mode: tiny ones with everything that has state, and whether two folders hold the same run."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tiny_runs import TinyRuns

from rlhf_ray.config import PPOConfig

#: Metrics of the machine and of its failures; all others are the run's.
MEASURED = ("seconds/", "throughput/", "failures/")


def exact(tiny: TinyRuns, root: Path, name: str, *overrides: str) -> PPOConfig:
    """Three iterations with all that has state: two optimisers, schedule, adaptive KL, data order."""
    return tiny.ppo(
        root, name, *EXACT, f"rewards.quality={{type: neural, model: {tiny.reward}, weight: 0.3}}", *overrides
    )


EXACT = (
    "run.exact=true",
    "ppo.iterations=3",
    "ppo.samples_per_prompt=2",
    "checkpoint.every=2",
    "kl.controller=adaptive",
    "kl.target=0.01",
    "learner.schedule=cosine",
    "learner.warmup_steps=3",
)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All metrics but those that measure the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines]


def rollouts(folder: Path, *, without: tuple[str, ...] = ()) -> list[list[dict[str, Any]]]:
    tables = [pq.read_table(path) for path in sorted((folder / "rollouts").glob("*.parquet"))]
    return [table.drop_columns(list(without)).to_pylist() for table in tables]


def digests(folder: Path) -> dict[str, str]:
    """The digest of all published weights, by the file that holds it."""
    return {path.name: json.loads(path.read_text())["weights"] for path in (folder / "digests").glob("*.json")}


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = load_file(one / "policy" / "model.safetensors"), load_file(other / "policy" / "model.safetensors")
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_same_run(folder: Path, other: Path, *, resampled: bool = False) -> None:
    """Every metric, sample, published version and final weight of the two runs has the same bits.

    With `resampled`, the generator's log-probs and the audit's gaps aside: their last bits depend on the batch, and a
    lost generator's prompts were sampled again without the others.
    """
    ours, theirs = metrics(folder), metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        names = [name for name in {**one, **two} if not (resampled and name.startswith("audit/"))]
        assert [name for name in names if one.get(name) != two.get(name)] == [], f"iteration {one['step']}"
    without = ("response_logprobs",) if resampled else ()
    left, right = rollouts(folder, without=without), rollouts(other, without=without)
    for number, (mine, yours) in enumerate(zip(left, right, strict=True), start=1):
        assert [row for row, pair in enumerate(zip(mine, yours, strict=True)) if pair[0] != pair[1]] == [], number
    assert digests(folder) == digests(other)
    assert_same_weights(folder, other)
