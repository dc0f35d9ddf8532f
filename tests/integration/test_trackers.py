"""A run whose callback raises, resumed to an early stop: hooks in order, policy saved, and every tracker read back."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import wandb
import wandb_file
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tiny_runs import TinyRuns

from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback, CallbackError
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = pytest.mark.integration

RUN = "tracked"
WIDTH = 80


class Recorder(Callback):
    """Notes every hook; keeps the policies that sampled each iteration; raises at the end of iteration `broken`."""

    def __init__(self, policies: Path, broken: int | None = None) -> None:
        self.policies, self.broken = policies, broken
        self.heard: list[str] = []

    def on_train_start(self, trainer: Any) -> None:
        self.trainer = trainer
        self.heard.append("start")

    def on_iteration_start(self, iteration: int) -> None:
        self.heard.append(f"iteration {iteration}")

    def on_generation(self, iteration: int, rollouts: Any) -> None:
        self.heard.append(f"generation of {len(rollouts.column('prompt_id'))}")

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        self.trainer.export_policy(self.policies / str(iteration))
        self.heard.append(f"reward of {len(composed.total)}")

    def on_update(self, iteration: int, metrics: dict[str, float]) -> None:
        self.heard.append("update" if "loss/policy" in metrics else "nothing")

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.heard.append(f"end {iteration}")
        if iteration == self.broken:
            raise ValueError("no more")

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        self.heard.append(f"evaluation after {iteration}")

    def on_checkpoint(self, path: Path) -> None:
        self.heard.append(path.name)

    def on_train_end(self, result: Any) -> None:
        self.heard.append("done")

    def on_exception(self, error: BaseException) -> None:
        self.heard.append(type(error).__name__)


class Story:
    """What came of both parts of the run."""

    broken: CallbackError
    first: Recorder
    second: Recorder
    after_first: set[str]  # in the run folder
    status_after_first: str  # in MLflow
    result: PPOResult
    screen: str
    store: str  # MLflow's


@pytest.fixture(scope="module")
def story(ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two iterations, then an error; then the third of five, after which the reward has not risen for two."""
    root = tmp_path_factory.mktemp("tracked")
    config = tiny.ppo(
        root,
        RUN,
        "ppo.iterations=5",
        "kl.coef=0",
        "rewards.words={type: function, function: 'tiny_rewards:short', weight: 0.5}",
        f"data.eval_path={tiny.folder / 'prompts_eval.jsonl'}",
        "evaluation.prompts=4",
        "early_stop.plateau=2",
        "early_stop.plateau_min_gain=1000",
        "checkpoint.best=true",
        "tracking.tensorboard=true",
        "tracking.wandb_project=rlhf",
        "tracking.mlflow_experiment=rlhf",
        "tracking.samples_every=2",
    )
    story, out = Story(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        console = Console(file=out, width=WIDTH, terminal=False)
        story.first, story.second = Recorder(root / "policies", broken=2), Recorder(root / "policies")
        with pytest.raises(CallbackError) as caught:
            PPOTrainer(config, callbacks=[story.first], console=console).train()
        story.broken, folder = caught.value, root / RUN
        story.status_after_first = mlflow_run((root / "mlruns").as_uri()).info.status
        story.after_first = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        story.result = PPOTrainer(config, resume=folder, callbacks=[story.second], console=console).train()
        wandb.teardown()  # its service writes the last bytes when it ends
    story.screen, story.store = out.getvalue(), (root / "mlruns").as_uri()
    return story


def mlflow_run(store: str) -> Any:
    """The only run of the experiment in `store`."""
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("rlhf").experiment_id])
    return run


def iteration(number: int) -> list[str]:
    return [f"iteration {number}", "generation of 8", "reward of 8", "update", f"end {number}"]


def test_the_callback_that_raised_is_named_and_its_run_saved(story: Story) -> None:
    assert "Recorder.on_iteration_end raised ValueError: no more" in str(story.broken)
    assert {"policy/model.safetensors", "checkpoints/step-000002/MANIFEST.json"} <= story.after_first
    assert ray.util.list_named_actors() == []


def test_hooks_come_in_their_order(story: Story) -> None:
    assert story.first.heard == ["start", "evaluation after 0", *iteration(1), *iteration(2), "CallbackError"]
    ending = ["step-000003", "evaluation after 3", "done"]
    assert story.second.heard == ["start", *iteration(3), *ending]


def test_the_resumed_run_stops_where_the_whole_one_would_have(story: Story) -> None:
    assert story.result.iterations == 3
    assert story.result.stopped_because is not None
    assert story.result.stopped_because.startswith("no mean reward above")
    assert len(story.result.history) == 3


def test_the_best_policy_is_the_one_that_sampled_the_best_rewards(story: Story) -> None:
    rewards = [metrics["reward/mean"] for metrics in story.result.history]
    best = story.result.folder / "best"
    noted = json.loads((best / "best.json").read_text())
    assert noted["reward"] == pytest.approx(max(rewards))
    assert rewards[noted["iteration"] - 1] == max(rewards)
    kept = load_file(best / "model.safetensors")
    sampled_by = load_file(story.first.policies / str(noted["iteration"]) / "model.safetensors")
    assert kept.keys() == sampled_by.keys()
    assert all(torch.equal(kept[name], sampled_by[name]) for name in kept)


def logged(story: Story, key: str) -> list[tuple[int, float]]:
    """What the metrics file holds, which the other trackers are held against."""
    lines = [json.loads(line) for line in (story.result.folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


KEYS = ["reward/mean", "reward/words/mean", "loss/policy", "eval/reward/mean", "eval/reward/words/mean"]


@pytest.mark.parametrize("key", KEYS)
def test_every_tracker_holds_what_the_metrics_file_holds(story: Story, key: str) -> None:
    expected = logged(story, key)
    assert [step for step, _ in expected] == ([0, 3] if key.startswith("eval/") else [1, 2, 3])

    events = EventAccumulator(str(story.result.folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars(key)] == [(s, pytest.approx(v)) for s, v in expected]

    run = mlflow_run(story.store)
    assert (run.info.run_name, story.status_after_first, run.info.status) == (RUN, "FAILED", "FINISHED")
    assert run.data.params["early_stop.plateau"] == "2"
    assert [(m.step, m.value) for m in MlflowClient(story.store).get_metric_history(run.info.run_id, key)] == expected

    files = sorted((story.result.folder / "wandb").glob("offline-run-*/*.wandb"))
    rows = [row for file in files for row in wandb_file.history(file)]
    assert [(row["iteration"], row[key]) for row in rows if key in row] == expected
    assert len(files) == 2
    assert len({file.parent.name.rsplit("-", 1)[1] for file in files}) == 1  # one run in two parts
    assert wandb_file.config(files[0])["ppo"]["iterations"] == 5


def test_the_console_shows_components_samples_and_why_it_stopped(story: Story) -> None:
    lines = [line.rstrip() for line in story.screen.splitlines()]
    rows = [line for line in lines if line.lstrip().startswith(("1/5", "2/5", "3/5"))]
    breakdowns = [line for line in lines if line.lstrip().startswith("rewards: short ")]
    assert len(rows) == len(breakdowns) == 3
    assert all(" words " in line for line in breakdowns)
    assert lines.count("  samples of iteration 2") == 1
    assert max(len(line) for line in lines if "/" not in line) <= WIDTH  # paths may be longer
    assert "no mean reward above" in story.screen
