"""The PPO loop's own decisions, on actors that only pretend: when it stops, evaluates and saves, what it restores,
and where it goes on when its learner was lost."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.config.common import CheckpointSection
from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import ActorLost, ConfigError
from rlhf_ray.files import FileDigest
from rlhf_ray.learner.experience import RolloutIndex
from rlhf_ray.schema import PROMPTS
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.tracking.tracker import BEGINNING
from rlhf_ray.trainers.callbacks import Callback, CallbackError
from rlhf_ray.trainers.checkpoint import Checkpoints
from rlhf_ray.trainers.evaluation import Evaluation
from rlhf_ray.trainers.failure_log import FailureLog
from rlhf_ray.trainers.manifest import Manifest
from rlhf_ray.trainers.ppo import PPOTrainer
from rlhf_ray.trainers.results import INTERRUPTED, PPOResult
from rlhf_ray.trainers.rollouts import Batch, Rollouts
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit

ITERATIONS, COUNT = 4, 6


class FakeActors:
    """Learner, sync, collector and writer in one: counts what it is asked for."""

    reference = None

    def __init__(self) -> None:
        self.learner = self.sync = self
        self.trained = 0
        self.finished = False  # writing rollouts
        self.exported: list[tuple[str, int]] = []  # (folder, iterations that the policy had seen)

    def collector(self, scored: bool = True) -> "FakeActors":
        return self

    def collect(self, prompts: pa.Table, iteration: int, seed: int, progress: Any) -> Rollouts:
        ones = np.ones(prompts.num_rows)
        meta = {"prompt_id": prompts["prompt_id"].to_numpy(), "sample_index": np.zeros(prompts.num_rows, np.int32)}
        meta |= {"prompt_length": ones, "response_length": ones, "truncated": ones < 0, "policy_version": iteration}
        scores = {"score": np.arange(prompts.num_rows) + float(iteration)}
        batch = Batch(samples=None, meta=meta, scores=scores)  # type: ignore[arg-type]
        return Rollouts([batch], [], {"generate": 0.1, "score": 0.1, "rollouts": 0.2})

    def call(self, what: str, method: str, *arguments: Any) -> Any:
        self.trained += 1
        return {"kl/mean": 0.5}, SimpleNamespace(mean=0.0, max=0.0, tokens=1)

    def publish(self, version: int, attempt: int) -> Any:
        return SimpleNamespace(version=version, seconds=0.0, digests={})

    def write_rollouts(self, stem: str, rollouts: Rollouts, total: np.ndarray) -> None: ...

    def finish_writing(self) -> None:
        self.finished = True

    def snapshot(self) -> None:
        self.copied = self.trained

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        (folder / "weights").write_text(str(self.copied if from_snapshot else self.trained))
        return [{"weights": FileDigest.of(folder / "weights")}]

    def load(self, folder: Path) -> None:
        self.trained = int((folder / "weights").read_text())

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.exported.append((folder.name.strip(".").removesuffix(".partial"), self.trained))


class MortalActors(FakeActors):
    """Loses its learner in some of the calls to train and to export, counted over all its lives."""

    def __init__(self, trainings: tuple[int, ...] = (), exports: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.fatal = {"train": trainings, "export": exports}
        self.calls = {"train": 0, "export": 0}
        self.restarts = 0

    def call(self, what: str, method: str, *arguments: Any) -> Any:
        self._survive("train")
        return super().call(what, method, *arguments)

    def export(self, folder: Path) -> None:
        self._survive("export")
        super().export(folder)

    def restart_learner(self) -> None:
        self.trained, self.restarts = 0, self.restarts + 1

    def _survive(self, call: str) -> None:
        self.calls[call] += 1
        if self.calls[call] in self.fatal[call]:
            raise ActorLost("learner/0 was lost")


class PairActors(FakeActors):
    """Two samples per prompt, which differ in reward on every second prompt; remembers what was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: list[RolloutIndex] = []

    def collect(self, prompts: pa.Table, iteration: int, seed: int, progress: Any) -> Rollouts:
        rollouts = super().collect(prompts.take(np.repeat(np.arange(prompts.num_rows), 2)), iteration, seed, progress)
        (batch,) = rollouts.batches
        batch.meta["sample_index"] = np.arange(len(batch.meta["prompt_id"])) % 2
        batch.scores["score"] = batch.meta["sample_index"] * (batch.meta["prompt_id"] % 2 == 0) * 1.0
        return rollouts

    def call(self, what: str, method: str, *arguments: Any) -> Any:
        self.indices.append(arguments[0])
        return super().call(what, method, *arguments)


class FakeSession:
    """The run folder's part of a session."""

    extends = learner = None
    disk = SimpleNamespace(check=lambda what: None)
    starter = SimpleNamespace(of_kind=lambda kind: {})
    supervision = SimpleNamespace(budget=lambda kind: SimpleNamespace(spend=lambda cause: 0.0))

    def __init__(self, folder: Path) -> None:
        self.stop, self.failures = SimpleNamespace(requested=False), FailureLog(folder / "failures.jsonl")
        self.checkpoints = Checkpoints(folder / "checkpoints", CheckpointSection(keep_last=9), lambda problem: None)
        self.write_checkpoint = self.checkpoints.write
        self.resumed = self.checkpoints.latest()
        self.trackers = MetricsFile(folder / "metrics.jsonl", self.resumed.step if self.resumed else BEGINNING)

    def end_learner(self) -> None: ...


class Spy(Callback):
    """Notes evaluations and errors; at `hook` of iteration `at` it does what it was given to do."""

    def __init__(self, hook: str = "", at: int = 0, does: Any = None) -> None:
        self.hook, self.at, self.does = hook, at, does
        self.evaluated: list[int] = []
        self.error: BaseException | None = None
        self.seen = 0

    def on_train_start(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer
        self._act("on_train_start", 0)

    def on_reward(self, iteration: int, rollouts: Any, composed: Any) -> None:
        self._act("on_reward", iteration)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.seen += 1
        self._act("on_iteration_end", iteration)

    def on_evaluation(self, iteration: int, evaluation: Any) -> None:
        self.evaluated.append(iteration)
        self._act("on_evaluation", iteration)

    def on_exception(self, error: BaseException) -> None:
        self.error = error

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def _act(self, hook: str, iteration: int) -> None:
        if (hook, iteration) == (self.hook, self.at):
            self.does(self.trainer)


class Trainer(PPOTrainer):
    """A trainer whose evaluations are made up, and whose actors are there."""

    fakes: Any
    _columns, _total_steps = (), 1

    def _start_actors(self, columns: Any, total_steps: int, progress: Any) -> Any:
        return self.fakes

    def _score(self, actors: Any, prompts: pa.Table, what: str, iterations: int | None) -> Evaluation:
        rewards, texts = np.full(prompts.num_rows, float(iterations or 0)), prompts["prompt"].to_pylist()
        return Evaluation(texts, texts, rewards, {"score": rewards}, rewards, rewards < 0)


def run(
    folder: Path, spy: Spy, interrupt: bool = False, actors: FakeActors | None = None, **training: Any
) -> tuple[PPOResult, FakeActors, Trainer]:
    """One run of the loop in `folder`, resumed where there is a checkpoint."""
    trainer = Trainer(
        "policy",
        reward={"score": FunctionRewardSection(function="scores:score", normalize="running")},
        data="prompts.jsonl",
        training={"iterations": ITERATIONS, "prompts_per_iteration": 4, **training},
        callbacks=[spy],
        console=Console(file=io.StringIO(), width=80),
    )
    actors, session = actors or FakeActors(), FakeSession(folder)
    session.stop.requested = interrupt
    ids = range(COUNT)
    prompts = pa.table([ids, [f"p{i}" for i in ids], [[i] for i in ids]], schema=PROMPTS)
    trainer.session, trainer.folder, trainer.fakes = session, RunFolder(folder), actors  # type: ignore[assignment]
    trainer.total_iterations, trainer.stop_reason, trainer._held_out = ITERATIONS, None, prompts
    return trainer._run(prompts), actors, trainer


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_it_runs_to_its_length(tmp_path: Path) -> None:
    spy = Spy()
    result, actors, _ = run(tmp_path, spy, evaluate_every=2)
    assert (result.iterations, result.stopped_because, len(result.history)) == (ITERATIONS, None, ITERATIONS)
    assert spy.evaluated == [0, 2, 4]
    assert actors.exported == [("policy", ITERATIONS)]
    assert checkpoints(tmp_path) == ["step-000004"]  # at the end in any case
    assert result.before is not None
    assert result.after is not None
    assert (result.before.reward[0], result.after.reward[0]) == (0.0, 4.0)


def test_a_requested_stop_ends_the_run_after_the_iteration(tmp_path: Path) -> None:
    spy = Spy("on_reward", 2, lambda trainer: trainer.request_stop("good enough"))
    result, actors, _ = run(tmp_path, spy, evaluate_every=1)
    assert (result.iterations, result.stopped_because, len(result.history)) == (2, "good enough", 2)
    assert spy.evaluated == [0, 1, 2]  # the last one once only
    assert actors.exported == [("policy", 2)]
    assert checkpoints(tmp_path) == ["step-000002"]


def test_a_stop_at_an_evaluation_does_not_evaluate_again(tmp_path: Path) -> None:
    spy = Spy("on_evaluation", 2, lambda trainer: trainer.request_stop("held-out reward fell"))
    result, _, _ = run(tmp_path, spy, evaluate_every=2)
    assert (result.iterations, result.stopped_because) == (2, "held-out reward fell")
    assert spy.evaluated == [0, 2]
    assert result.after is not None
    assert result.after.reward[0] == 2.0


def test_dynamic_sampling_trains_on_prompts_with_a_signal_only(tmp_path: Path) -> None:
    actors = PairActors()
    dynamic = {"samples_per_prompt": 2, "ppo.dynamic_sampling": {"enabled": True, "max_rounds": 9}}
    result, _, _ = run(tmp_path, Spy(), actors=actors, **dynamic)
    for index, metrics in zip(actors.indices, result.history, strict=True):
        assert index.prompt_id.tolist() == [0, 0, 2, 2, 4, 4]  # those of the six that give one
        assert (metrics["samples/trained"], metrics["samples/prompts_with_signal"]) == (6, 3)
        assert (metrics["samples/total"], metrics["samples/prompts"]) == (2 * COUNT, COUNT)
        assert metrics["samples/rounds"] > 1


def test_ctrl_c_is_a_stop_too(tmp_path: Path) -> None:
    result, actors, _ = run(tmp_path, Spy(), interrupt=True)
    assert (result.iterations, result.stopped_because) == (1, INTERRUPTED)
    assert actors.exported == [("policy", 1)]


def boom(trainer: PPOTrainer) -> None:
    raise ValueError("boom")


@pytest.mark.parametrize(
    ("hook", "saved", "policy"),
    [
        ("on_iteration_end", ["step-000003"], 3),  # the iteration is whole: nothing is lost
        ("on_reward", ["step-000002"], 2),  # half of it is done: the checkpoint before counts
    ],
)
def test_a_callback_that_raises_costs_no_whole_iteration(
    tmp_path: Path, hook: str, saved: list[str], policy: int
) -> None:
    spy = Spy(hook, 3, boom)
    with pytest.raises(CallbackError, match=rf"Spy\.{hook} raised ValueError: boom") as raised:
        run(tmp_path, spy, save_every=2 if hook == "on_reward" else 9)
    assert spy.error is raised.value
    assert checkpoints(tmp_path) == saved
    assert spy.trainer.actors.finished  # type: ignore[union-attr]  # a resume does not sample them again
    assert spy.trainer.actors.exported == [("policy", policy)]  # type: ignore[union-attr]


def test_a_checkpoint_that_is_written_again_keeps_what_it_achieved(tmp_path: Path) -> None:
    with pytest.raises(CallbackError):
        run(tmp_path, Spy("on_iteration_end", 3, boom), save_every=2)
    step = tmp_path / "checkpoints" / "step-000002"
    shutil.rmtree(tmp_path / "checkpoints" / "step-000003")
    metric = Manifest.read(step).metric
    assert metric is not None
    with pytest.raises(CallbackError):
        run(tmp_path, Spy("on_train_start", 0, boom))
    assert Manifest.read(step).metric == metric


def test_a_resumed_run_goes_on_with_all_state(tmp_path: Path) -> None:
    whole_spy, first_spy, second_spy = Spy(), Spy("on_iteration_end", 2, boom), Spy()
    (tmp_path / "whole").mkdir()
    whole, _, untouched = run(tmp_path / "whole", whole_spy)
    (tmp_path / "cut").mkdir()
    with pytest.raises(CallbackError):
        run(tmp_path / "cut", first_spy)
    resumed, actors, trainer = run(tmp_path / "cut", second_spy)
    assert actors.trained == ITERATIONS
    rewards = [[metrics["reward/mean"] for metrics in result.history] for result in (resumed, whole)]
    assert rewards[0] == rewards[1]
    assert trainer.normalizer.state_dict() == untouched.normalizer.state_dict()
    assert trainer.normalizer.moments["score"].count == 4 * ITERATIONS
    assert (second_spy.seen, second_spy.evaluated) == (ITERATIONS, [ITERATIONS])  # the start is read, not repeated
    assert resumed.before is not None
    assert resumed.before.reward[0] == 0.0


def lines(folder: Path) -> list[dict[str, Any]]:
    """All metrics but those of the machine and its failures."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("seconds/", "throughput/", "failures/")
    return [{name: value for name, value in line.items() if not name.startswith(measured)} for line in found]


def test_a_lost_learner_changes_nothing(tmp_path: Path) -> None:
    """Lost in the first iteration, before any checkpoint, and in the fourth, with one after the second."""
    spies, folders = (Spy(), Spy()), (tmp_path / "whole", tmp_path / "lost")
    for folder in folders:
        folder.mkdir()
    whole, _, undisturbed = run(folders[0], spies[0], save_every=2)
    result, actors, trainer = run(folders[1], spies[1], actors=MortalActors(trainings=(1, 5)), save_every=2)
    assert (actors.restarts, actors.calls["train"]) == (2, 7)  # type: ignore[attr-defined]
    assert lines(folders[1]) == lines(folders[0])
    assert [line["step"] for line in lines(folders[1])] == [0, 1, 2, 3, 4, 4]
    assert len(result.history) == ITERATIONS
    assert actors.exported == [("policy", ITERATIONS)]
    assert trainer.normalizer.state_dict() == undisturbed.normalizer.state_dict()
    assert (spies[0].evaluated, spies[1].evaluated) == ([0, 4], [0, 0, 4])  # by callbacks back at their beginning
    assert spies[1].seen == spies[0].seen
    record = [json.loads(line) for line in (folders[1] / "failures.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["attempt"]) for line in record] == [(1, 0), (1, 1), (4, 1), (4, 2)]
    assert record[2]["action"] == "starting the learner again from iteration 3 (attempt 2), 1 to replay"
    assert result.before is not None
    assert whole.before is not None
    assert result.before.reward[0] == whole.before.reward[0]


def test_a_run_killed_after_its_last_evaluation_evaluates_again_in_its_place(tmp_path: Path) -> None:
    spy = Spy("on_evaluation", ITERATIONS, boom)
    with pytest.raises(CallbackError):
        run(tmp_path, spy)
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [0, 1, 2, 3, 4, 4]
    run(tmp_path, Spy())
    assert lines(tmp_path) == logged


def test_a_learner_lost_on_the_way_out_does_not_undo_a_stop(tmp_path: Path) -> None:
    spy = Spy("on_reward", 3, lambda trainer: trainer.request_stop("good enough"))
    result, actors, _ = run(tmp_path, spy, actors=MortalActors(exports=(1,)))
    assert (result.iterations, result.stopped_because) == (3, "good enough")
    assert actors.exported == [("policy", 3)]
    assert actors.calls == {"train": 3, "export": 2}  # type: ignore[attr-defined]


def test_a_learner_lost_while_a_callback_exports_is_no_error_of_the_callback(tmp_path: Path) -> None:
    spy = Spy("on_iteration_end", 3, lambda trainer: trainer.export_policy(tmp_path / "mine"))
    result, actors, _ = run(tmp_path, spy, actors=MortalActors(exports=(1,)), save_every=2)
    assert result.iterations == ITERATIONS
    assert actors.exported == [("mine", 3), ("policy", ITERATIONS)]
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 4]


def test_outside_a_run_there_is_nothing_to_export(tmp_path: Path) -> None:
    trainer = Trainer("policy", reward=[len], data="p.jsonl", console=Console(file=io.StringIO(), width=80))
    with pytest.raises(ConfigError, match="no run is going on"):
        trainer.export_policy(tmp_path)
    with pytest.raises(ConfigError, match="generate has no tempature; it takes seed, temperature"):
        trainer.generate(["hello"], tempature=1.0)
    with pytest.raises(ConfigError, match=r"evaluate: give prompts, or set data\.eval_path"):
        trainer.evaluate()
    with pytest.raises(ConfigError, match="give a model, a PPOConfig, or the folder"):
        PPOTrainer()
