"""A driver that is killed by SIGKILL leaves a run that resumes to the same end; `make chaos` kills it at 20 moments."""

from pathlib import Path

import pytest
from exact_runs import assert_same_run, exact
from killed_runs import Moment, kill_at
from tiny_runs import TinyRuns

from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_a_driver_killed_while_it_syncs_resumes_to_the_same_end(
    exact_run: Path, tiny: TinyRuns, tmp_path: Path
) -> None:
    config = exact(tiny, tmp_path / "runs", "killed")
    folder = kill_at(config, tmp_path / "killed", Moment("published", 3))
    assert PPOTrainer(config, resume=folder).train().iterations == 3
    assert_same_run(folder, exact_run)
