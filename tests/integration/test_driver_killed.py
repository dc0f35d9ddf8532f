"""A driver that is killed by SIGKILL leaves a run that resumes to the same end; `make chaos` kills it at 20 moments."""

from pathlib import Path

import pytest
from exact_runs import assert_same_run, exact
from killed_runs import Moment, kill_at
from tiny_runs import TinyRuns

from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_a_driver_killed_after_a_sync_resumes_to_the_same_end_with_another_generator(
    exact_run: Path, tiny: TinyRuns, tmp_path: Path
) -> None:
    config = exact(tiny, tmp_path / "runs", "killed", "checkpoint.asynchronous=false")  # the one of 2 is whole by then
    folder = kill_at(config, tmp_path / "killed", Moment("published", 3))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    resumed = PPOTrainer(exact(tiny, tmp_path / "runs", "killed", "generation.replicas=2"), resume=folder).train()
    assert len(resumed.history) == 3  # the first two come from the run's folder
    assert_same_run(folder, exact_run, resampled=True)  # two engines have smaller batches
