"""A run that goes back to a checkpoint takes back what its trackers and callbacks have seen since."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.tracking.tracker import BEGINNING, Trackers
from rlhf_ray.trainers.callbacks import Callback, Callbacks
from rlhf_ray.trainers.callbacks_builtin import BestModel, RewardPlateauStop
from rlhf_ray.trainers.callbacks_builtin.best_model import Best

pytestmark = pytest.mark.unit


class Stateless(Callback):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("it has no state")


def test_callbacks_go_back_to_a_checkpoint() -> None:
    best, plateau = BestModel(), RewardPlateauStop(3)
    both = Callbacks([best, plateau, Stateless()])
    best.best, plateau.since_best = Best(2, 0.5), 1
    checkpoint = json.loads(json.dumps(both.state_dict()))
    best.best, plateau.since_best = Best(4, 0.9), 0
    both.rewind(checkpoint)
    assert (best.best, plateau.since_best) == (Best(2, 0.5), 1)


def test_callbacks_go_back_to_the_beginning() -> None:
    best, plateau = BestModel(), RewardPlateauStop(3)
    both = Callbacks([best, plateau, Stateless()])
    beginning = both.state_dict()
    best.best, plateau.since_best = Best(2, 0.5), 2
    both.rewind(beginning)
    assert (best.best, plateau.since_best) == (None, 0)


class Service:
    """A service that is down when the run goes back."""

    def __init__(self) -> None:
        self.logged: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append(step)

    def rewind(self, step: int) -> None:
        raise ConnectionError("no network")

    def close(self, failed: bool = False) -> None: ...


def test_metrics_of_repeated_steps_are_there_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    path, service = tmp_path / "metrics.jsonl", Service()
    trackers = Trackers(MetricsFile(path), [service], warnings.append)
    for step in (1, 2, 3):
        trackers.log(step, {"loss": float(step)})
    trackers.rewind(1)
    trackers.log(2, {"loss": 20.0})
    trackers.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 20.0}]
    assert service.logged == [1, 2, 3, 2]
    assert warnings == ["Service did not take the return to step 1 (ConnectionError: no network); metrics.jsonl has it"]


def steps_and_keys(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line.pop("step"), *line) for line in lines]


def test_the_evaluation_of_the_start_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    killed.log(0, {"eval/loss": 2.0})
    killed.log(1, {"loss": 1.0})
    killed.close()
    again = MetricsFile(path, BEGINNING)
    again.log(0, {"eval/loss": 2.0})
    assert steps_and_keys(path) == [(0, "eval/loss")]
    again.rewind(BEGINNING)
    again.log(0, {"eval/loss": 2.0})
    again.close()
    assert steps_and_keys(path) == [(0, "eval/loss")]


def test_the_evaluation_of_the_end_comes_after_its_checkpoint_and_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    killed = MetricsFile(path)
    for step, key in ((1, "loss"), (2, "loss"), (2, "eval/loss")):
        killed.log(step, {key: 1.0})
    killed.close()
    again = MetricsFile(path, resume_after=2)
    again.log(2, {"eval/loss": 3.0})
    again.log(3, {"loss": 1.0})
    again.log(3, {"eval/loss": 1.0})
    again.rewind(3)
    again.log(3, {"eval/loss": 4.0})
    again.close()
    assert steps_and_keys(path) == [(1, "loss"), (2, "loss"), (2, "eval/loss"), (3, "loss"), (3, "eval/loss")]
    assert [json.loads(line).get("eval/loss") for line in path.read_text().splitlines()] == [None, None, 3.0, None, 4.0]
