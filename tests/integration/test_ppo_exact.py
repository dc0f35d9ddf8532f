"""Exact mode: a run is a function of its configuration, whatever interrupts it and however many generators sample."""

from pathlib import Path
from typing import Any

import pytest
import ray
from exact_runs import assert_same_weights, exact, metrics, rollouts
from tiny_runs import TinyRuns

from rlhf_ray.errors import InfrastructureError
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


class KillLearnerAfterCheckpoint(Callback):
    """What a machine that runs out of memory does."""

    def on_checkpoint(self, path: Path) -> None:
        ray.kill(ray.get_actor(f"{path.parents[1].name}/learner/0"))


def test_a_lost_learner_a_resume_and_another_generator_change_nothing(
    exact_run: Path, tiny: TinyRuns, tmp_path: Path
) -> None:
    config, folder = exact(tiny, tmp_path, "lost"), tmp_path / "lost"
    with pytest.raises(InfrastructureError, match=r"learner/0 was lost: .* --resume"):
        PPOTrainer(config, callbacks=[KillLearnerAfterCheckpoint()]).train()
    assert ray.util.list_named_actors() == []
    assert metrics(folder) == metrics(exact_run)[:2]  # the same run twice
    assert rollouts(folder) == rollouts(exact_run)[:2]

    resumed = PPOTrainer(exact(tiny, tmp_path, "lost", "generation.replicas=2"), resume=folder).train()
    assert len(resumed.history) == 3  # the first two come from the run's folder
    for one, two in zip(metrics(exact_run), metrics(folder), strict=True):
        assert [name for name in one if one[name] != two[name] and not name.startswith("audit/")] == []
    for one, two in zip(rollouts(exact_run), rollouts(folder), strict=True):
        assert len({tuple(row["response_tokens"]) for row in one}) > 8  # not one answer to everything
        assert [without_logprobs(row) for row in two] == [without_logprobs(row) for row in one]
    assert_same_weights(folder, exact_run)


def without_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    """Without the generator's log-probs: their last bits depend on its batch."""
    return {name: value for name, value in row.items() if name != "response_logprobs"}
