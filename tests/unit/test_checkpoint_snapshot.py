"""A rank's snapshot: the state of its moment whatever training does, in buffers that serve again, and never pickled."""

import json
import pickle
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from learner_world import Tensors, demonstrations, largest_difference, sft_config, weights
from safetensors import safe_open

from rlhf_ray.files import FileDigest
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.learner.sft import SFTObjective
from rlhf_ray.learner.shards import Shard
from rlhf_ray.learner.snapshot import HostCopy

pytestmark = pytest.mark.unit


def learner(group: LearnerGroup, model: str) -> tuple[LearnerRank, SFTObjective]:
    rank = LearnerRank(sft_config(model, learner={"dtype": "float32", "learning_rate": 0.01}), group, 10)
    return rank, rank.sft(demonstrations(0, 6), None)


def stored(folder: Path) -> Tensors:
    with safe_open(folder / "rank-00000.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)


def test_training_goes_on_while_the_state_of_the_snapshot_is_written(
    group: LearnerGroup, model: str, tmp_path: Path
) -> None:
    rank, objective = learner(group, model)
    objective.step(np.arange(6))
    before = weights(rank)
    rank.snapshot()
    objective.step(np.arange(6))
    written: list[dict[str, FileDigest]] = []
    thread = threading.Thread(target=lambda: written.append(rank.save_snapshot(tmp_path / "then")))
    thread.start()  # as Ray does it: not on the thread that trains
    thread.join(60)
    assert written[0].keys() == {"rank-00000.safetensors", "rank-00000.json"}
    assert written[0] == {name: FileDigest.of(tmp_path / "then" / name) for name in written[0]}
    resumed, again = learner(group, model)
    resumed.load(tmp_path / "then")
    assert largest_difference(weights(resumed), before) == 0
    again.step(np.arange(6))  # with the moments of then, too
    assert largest_difference(weights(resumed), weights(rank)) == 0


def test_a_snapshot_and_the_state_itself_are_the_same_files(group: LearnerGroup, model: str, tmp_path: Path) -> None:
    rank, objective = learner(group, model)
    objective.step(np.arange(6))
    rank.snapshot()
    assert rank.save_snapshot(tmp_path / "copied") == rank.save(tmp_path / "itself")


def test_the_next_snapshot_takes_over_the_buffers(group: LearnerGroup, model: str) -> None:
    rank, objective = learner(group, model)
    copy = HostCopy()
    early = copy.take(Shard.of(rank.trainables, group))
    objective.step(np.arange(6))  # brings moments, which had no buffers yet
    places = {key: tensor.data_ptr() for key, tensor in copy.take(Shard.of(rank.trainables, group)).tensors.items()}
    objective.step(np.arange(6))
    later = copy.take(Shard.of(rank.trainables, group))
    assert {key: tensor.data_ptr() for key, tensor in later.tensors.items()} == places
    assert {key: places[key] for key in early.tensors} == {k: t.data_ptr() for k, t in early.tensors.items()}
    assert not places.keys() <= early.tensors.keys()
    live = dict(Shard.of(rank.trainables, group).tensors)
    assert all(torch.equal(later.tensors[key], live[key]) for key in live)
    assert not {tensor.data_ptr() for tensor in live.values()} & set(places.values())


def test_random_states_and_scalars_are_there(group: LearnerGroup, model: str, tmp_path: Path) -> None:
    rank, objective = learner(group, model)
    objective.step(np.arange(6))
    torch.manual_seed(123)
    rank.save(tmp_path)
    drawn = torch.rand(3)
    assert "random_state" in stored(tmp_path)
    description = json.loads((tmp_path / "rank-00000.json").read_text())
    assert description["trainables"]["policy"]["steps"] == 1
    resumed, _ = learner(group, model)
    torch.manual_seed(5)
    resumed.load(tmp_path)
    assert torch.equal(torch.rand(3), drawn)


def test_nothing_is_pickled_or_unpickled(
    group: LearnerGroup, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, objective = learner(group, model)
    objective.step(np.arange(6))

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    rank.snapshot()
    rank.save_snapshot(tmp_path)
    rank.load(tmp_path)
