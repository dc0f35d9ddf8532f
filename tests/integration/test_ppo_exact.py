"""Exact mode: a run is a function of its configuration, whatever interrupts it and however many generators sample."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file
from tiny_runs import TinyRuns

from rlhf_ray.config import PPOConfig
from rlhf_ray.errors import InfrastructureError
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


class KillLearnerAfterCheckpoint(Callback):
    """What a machine that runs out of memory does."""

    def on_checkpoint(self, path: Path) -> None:
        ray.kill(ray.get_actor(f"{path.parents[1].name}/learner/0"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


def exact(tiny: TinyRuns, root: Path, name: str, *overrides: str) -> PPOConfig:
    """Three iterations with all that has state: two optimisers, schedule, adaptive KL, data order."""
    return tiny.ppo(
        root,
        name,
        "run.exact=true",
        "ppo.iterations=3",
        "ppo.samples_per_prompt=2",
        "checkpoint.every=2",
        "kl.controller=adaptive",
        "kl.target=0.01",
        "learner.schedule=cosine",
        "learner.warmup_steps=3",
        f"rewards.quality={{type: neural, model: {tiny.reward}, weight: 0.3}}",
        *overrides,
    )


@pytest.fixture(scope="module")
def whole(ray_local: None, tiny: TinyRuns, root: Path) -> Path:
    """The folder of a run that nothing interrupts."""
    return PPOTrainer(exact(tiny, root, "whole")).train().folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All metrics but those that measure time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(("seconds/", "throughput/"))}
        for line in lines
    ]


def rollouts(folder: Path) -> list[list[dict[str, Any]]]:
    return [pq.read_table(path).to_pylist() for path in sorted((folder / "rollouts").glob("*.parquet"))]


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = load_file(one / "policy" / "model.safetensors"), load_file(other / "policy" / "model.safetensors")
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_a_lost_learner_a_resume_and_another_generator_change_nothing(whole: Path, tiny: TinyRuns, root: Path) -> None:
    config, folder = exact(tiny, root, "lost"), root / "lost"
    with pytest.raises(InfrastructureError, match=r"learner/0 was lost: .* --resume"):
        PPOTrainer(config, callbacks=[KillLearnerAfterCheckpoint()]).train()
    assert ray.util.list_named_actors() == []
    assert metrics(folder) == metrics(whole)[:2]  # the same run twice
    assert rollouts(folder) == rollouts(whole)[:2]

    resumed = PPOTrainer(exact(tiny, root, "lost", "generation.replicas=2"), resume=folder).train()
    assert len(resumed.history) == 3  # the first two come from the run's folder
    for one, two in zip(metrics(whole), metrics(folder), strict=True):
        assert [name for name in one if one[name] != two[name] and not name.startswith("audit/")] == []
    for one, two in zip(rollouts(whole), rollouts(folder), strict=True):
        assert len({tuple(row["response_tokens"]) for row in one}) > 8  # not one answer to everything
        assert [without_logprobs(row) for row in two] == [without_logprobs(row) for row in one]
    assert_same_weights(folder, whole)


def without_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    """Without the generator's log-probs: their last bits depend on its batch."""
    return {name: value for name, value in row.items() if name != "response_logprobs"}
