"""One actor of each kind dies, one after the other, in one run, which ends as if nothing had happened."""

import json
from pathlib import Path

import pytest
import ray
from exact_runs import assert_same_run, exact
from tiny_runs import TinyRuns

from rlhf_ray.trainers.failure_log import FAILURES_FILE
from rlhf_ray.trainers.fault_schedule import FaultSchedule, Hit
from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

HITS = [
    Hit(1, "reward/quality/0", "score"),
    Hit(1, "reference/0", "logprobs", after=2),
    Hit(2, "generator/0", "generate"),
    Hit(2, "writer/0", "write"),
    Hit(3, "learner/0", "update", after=2),
]


def test_a_death_of_every_kind_changes_nothing(exact_run: Path, tiny: TinyRuns, tmp_path: Path) -> None:
    with FaultSchedule(tmp_path / "faults", HITS) as schedule:
        folder = PPOTrainer(exact(tiny, tmp_path, "mortal"), callbacks=[schedule]).train().folder
    assert schedule.pending == []
    lines = [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]
    lost = {line["actor"].replace("learner/all", "learner/0") for line in lines if line["cause"]}
    assert lost == {hit.actor for hit in HITS}
    assert all(line["kind"] == "infrastructure" for line in lines)
    assert_same_run(folder, exact_run, resampled=True)
    assert ray.util.list_named_actors() == []
