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


def rollouts(folder: Path) -> list[list[dict[str, Any]]]:
    return [pq.read_table(path).to_pylist() for path in sorted((folder / "rollouts").glob("*.parquet"))]


def digests(folder: Path) -> dict[str, str]:
    """The digest of all published weights, by the file that holds it."""
    return {path.name: json.loads(path.read_text())["weights"] for path in (folder / "digests").glob("*.json")}


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = load_file(one / "policy" / "model.safetensors"), load_file(other / "policy" / "model.safetensors")
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_same_run(folder: Path, other: Path) -> None:
    """Every metric, sample, published version and final weight of the two runs has the same bits."""
    ours, theirs = metrics(folder), metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert [name for name in {**one, **two} if one.get(name) != two.get(name)] == [], f"iteration {one['step']}"
    for number, (mine, yours) in enumerate(zip(rollouts(folder), rollouts(other), strict=True), start=1):
        assert [row for row, pair in enumerate(zip(mine, yours, strict=True)) if pair[0] != pair[1]] == [], number
    assert digests(folder) == digests(other)
    assert_same_weights(folder, other)
