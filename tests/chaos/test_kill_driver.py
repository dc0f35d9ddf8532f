"""SIGKILL of the driver at moments spread over a run: every resumed run ends with the bits of the undisturbed one."""

import itertools
import shutil
import statistics
from pathlib import Path

import pytest
from exact_runs import assert_same_run, exact, metrics, rollouts
from killed_runs import DEADLINE_S, Moment, kill_at, timeline
from safetensors.torch import load_file
from tiny_runs import TinyRuns

from rlhf_ray.config import PPOConfig
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.results import read_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * DEADLINE_S), pytest.mark.usefixtures("ray_local")]

ITERATIONS, EVERY, KILLS = 11, 2, 20
TIMELINE = timeline(ITERATIONS, EVERY)
#: The middles of KILLS equal parts of all that the driver does.
BY_PROGRESS = [TIMELINE[int((number + 0.5) * len(TIMELINE) / KILLS)] for number in range(KILLS)]
#: Wherever the driver, its threads and its actors are by then.
BY_TIME = [Moment(iterations=iterations) for iterations in (1.3, 4.5, 7.7, 10.1)]
#: What the order of float32 sums makes of one iteration (two optimiser steps of 1e-3) on two ranks instead of one.
WEIGHT_TOLERANCE, METRIC_TOLERANCE = 1e-4, 1e-3


def run_config(tiny: TinyRuns, root: Path, name: str, *overrides: str) -> PPOConfig:
    """Evaluated at the start, at every checkpoint, and after the last one."""
    length = (f"ppo.iterations={ITERATIONS}", f"checkpoint.every={EVERY}")
    held_out = (f"data.eval_path={tiny.folder}/prompts_eval.jsonl", f"evaluation={{prompts: 4, every: {EVERY}}}")
    return exact(tiny, root, name, *length, *held_out, *overrides)


@pytest.fixture(scope="module")
def undisturbed(tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PPOTrainer(run_config(tiny, tmp_path_factory.mktemp("kill"), "undisturbed")).train().folder


def iteration_s(folder: Path) -> float:
    """The median seconds of an iteration."""
    return statistics.median(line["seconds/total"] for line in read_metrics(folder / "metrics.jsonl").values())


def test_the_moments_are_spread_and_most_come_after_a_checkpoint() -> None:
    places = [TIMELINE.index(moment) for moment in BY_PROGRESS]
    gaps = {later - earlier for earlier, later in itertools.pairwise(places)}
    assert max(gaps) - min(gaps) <= 1
    first = TIMELINE.index(Moment("checkpointed", 1))
    assert sum(place >= first for place in places) >= 15
    assert {moment.phase for moment in BY_PROGRESS} == {moment.phase for moment in TIMELINE}


@pytest.mark.parametrize("moment", [*BY_PROGRESS, *BY_TIME], ids=str)
def test_a_killed_driver_changes_nothing(undisturbed: Path, tiny: TinyRuns, tmp_path: Path, moment: Moment) -> None:
    config = run_config(tiny, tmp_path / "runs", f"killed-{moment}")
    folder = kill_at(config, tmp_path / "killed", moment, iteration_s(undisturbed))
    assert PPOTrainer(config, resume=folder).train().iterations == ITERATIONS
    assert_same_run(folder, undisturbed)
    shutil.rmtree(tmp_path)


def test_another_number_of_ranks_goes_on_within_the_tolerance(
    undisturbed: Path, tiny: TinyRuns, tmp_path: Path
) -> None:
    config = run_config(tiny, tmp_path / "runs", "ranks")
    folder = kill_at(config, tmp_path / "killed", Moment("checkpointed", ITERATIONS // EVERY))
    resumed = PPOTrainer(run_config(tiny, tmp_path / "runs", "ranks", "learner.ranks=2"), resume=folder).train()
    assert resumed.iterations == ITERATIONS
    assert rollouts(folder) == rollouts(undisturbed)  # the last ones were sampled before any sum could differ
    left, right = (load_file(run / "policy" / "model.safetensors") for run in (folder, undisturbed))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < WEIGHT_TOLERANCE
    ours, theirs = metrics(folder)[-2], metrics(undisturbed)[-2]  # after them, the end was evaluated
    assert ours == pytest.approx(theirs, rel=METRIC_TOLERANCE, abs=METRIC_TOLERANCE)
