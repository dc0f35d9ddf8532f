"""Early stops, best model, sample table and trackers, driven by a trainer that only remembers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config import PPOConfig, SFTConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.compose import ComponentStats, Composed
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback, CallbackError, Callbacks, StopRequests
from rlhf_ray.trainers.callbacks_builtin import (
    Best,
    BestModel,
    ConsoleReport,
    KLEarlyStop,
    RewardPlateauStop,
    SampleTable,
    TensorBoardCallback,
    TrackerCallback,
    configured_callbacks,
)
from rlhf_ray.trainers.callbacks_builtin.sample_table import spread
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit


def ppo(**sections: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "m"},
            "data": {"path": "d"},
            "rewards": {"short": {"type": "function", "function": "m:f"}},
            **sections,
        }
    )


class Trainer(StopRequests):
    """Offers what `RunningTrainer` does; its policy is a file with the number of exports so far."""

    def __init__(self, folder: Path, config: PPOConfig | SFTConfig | None = None) -> None:
        self.out = io.StringIO()
        self.config, self.folder = config or ppo(), RunFolder(folder)
        self.console = Console(file=self.out, width=80, terminal=False)
        self.total_iterations, self.exports = 12, 0

    def export_policy(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "model").write_text(str(self.exports))
        self.exports += 1


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def feed(callback: Callback, key: str, values: list[float], trainer: Trainer) -> int | None:
    """Iterations with `values` of metric `key` until a stop is asked for: how many it took, None if never."""
    for iteration, value in enumerate(values, 1):
        callback.on_iteration_end(iteration, {key: value})
        if trainer.stop_reason:
            return iteration
    return None


@pytest.mark.parametrize(
    ("patience", "stops_after", "why"),
    [
        (1, 2, "KL 7 above 6 nats per response"),
        (2, 5, "KL 8 above 6 nats per response for 2 iterations"),
        (3, None, ""),
    ],
)
def test_kl_stop_counts_iterations_in_a_row(trainer: Trainer, patience: int, stops_after: int | None, why: str) -> None:
    stop = KLEarlyStop(6.0, patience)
    stop.on_train_start(trainer)
    assert feed(stop, "kl/mean", [6.0, 7.0, 5.0, 6.1, 8.0, 1.0], trainer) == stops_after
    assert trainer.stop_reason == (why or None)


def test_kl_stop_per_token_divides_by_the_length(trainer: Trainer) -> None:
    stop = KLEarlyStop(0.15, per="token")
    stop.on_train_start(trainer)
    stop.on_iteration_end(1, {"kl/mean": 1.4, "response/length_mean": 10.0})
    assert trainer.stop_reason is None
    stop.on_iteration_end(2, {"kl/mean": 1.6, "response/length_mean": 10.0})
    assert trainer.stop_reason == "KL 0.16 above 0.15 nats per token"


@pytest.mark.parametrize(
    "config", [ppo(kl={"coef": 0}), SFTConfig.model_validate({"model": {"name": "m"}, "data": {"path": "d"}})]
)
def test_a_kl_stop_needs_a_reference(tmp_path: Path, config: PPOConfig | SFTConfig) -> None:
    with pytest.raises(ConfigError, match=r"early_stop.kl: this run has no reference policy .* kl.coef > 0"):
        KLEarlyStop(1.0).on_train_start(Trainer(tmp_path, config))


@pytest.mark.parametrize(
    ("patience", "min_gain", "rewards", "stops_after"),
    [
        (2, 0.0, [0.1, 0.2, 0.2, 0.21, 0.2, 0.21], 6),
        (2, 0.1, [0.1, 0.15, 0.19, 0.3], 3),
        (2, 0.1, [0.1, 0.15, 0.25, 0.3, 0.32], 5),
        (3, 0.0, [0.3, 0.2, 0.1, 0.4, 0.3], None),
    ],
)
def test_plateau_stop_waits_for_a_better_reward(
    trainer: Trainer, patience: int, min_gain: float, rewards: list[float], stops_after: int | None
) -> None:
    stop = RewardPlateauStop(patience, min_gain)
    stop.on_train_start(trainer)
    assert feed(stop, "reward/mean", rewards, trainer) == stops_after
    if stops_after:
        assert trainer.stop_reason == f"no mean reward above {stop.best:.4g} in the last {patience} iterations"


@pytest.mark.parametrize(
    ("make", "key", "values"),
    [(lambda: KLEarlyStop(6.0, 4), "kl/mean", [7.0] * 6), (lambda: RewardPlateauStop(4), "reward/mean", [0.5] * 6)],
)
def test_a_resumed_stop_goes_on_counting(trainer: Trainer, make: Any, key: str, values: list[float]) -> None:
    whole, before, after = make(), make(), make()
    for stop in (whole, before, after):
        stop.on_train_start(trainer)
    stopped = feed(whole, key, values, trainer)
    assert stopped is not None
    trainer.stop_reason = None
    assert feed(before, key, values[:2], trainer) is None
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert feed(after, key, values[2:], trainer) == stopped - 2


def composed(*totals: float) -> Composed:
    total = np.array(totals)
    return Composed(total, ~np.isnan(total), {})


class Evaluated:
    """An evaluation, as far as callbacks look at it."""

    def __init__(self, *rewards: float) -> None:
        self.reward = np.array(rewards)

    def metrics(self) -> dict[str, float]:
        return {"eval/reward/mean": float(np.nanmean(self.reward))}


def kept(trainer: Trainer) -> tuple[str, dict[str, Any]]:
    best = trainer.folder.best
    return (best / "model").read_text(), json.loads((best / "best.json").read_text())


def test_the_best_policy_on_training_samples_is_the_one_that_sampled_them(trainer: Trainer) -> None:
    best = BestModel()
    best.on_train_start(trainer)
    for iteration, totals in enumerate([(0.1, 0.3), (0.9, np.nan), (0.5, 0.6), (np.nan, np.nan)], 1):
        best.on_reward(iteration, None, composed(*totals))
        best.on_evaluation(iteration, Evaluated(5.0))
    assert kept(trainer) == ("1", {"iteration": 2, "reward": 0.9, "measured_on": "training samples"})
    assert best.best == Best(2, 0.9)
    assert [path.name for path in trainer.folder.path.iterdir()] == ["best"]


def test_the_best_policy_on_held_out_prompts_may_be_the_start(trainer: Trainer) -> None:
    best = BestModel("held-out prompts")
    best.on_train_start(trainer)
    best.on_evaluation(0, Evaluated(0.4, np.nan))
    best.on_reward(1, None, composed(9.0))
    best.on_evaluation(4, Evaluated(0.3, 0.4))
    assert kept(trainer) == ("0", {"iteration": 0, "reward": 0.4, "measured_on": "held-out prompts"})


def test_a_resumed_best_model_keeps_what_is_better(trainer: Trainer) -> None:
    first, resumed = BestModel(), BestModel()
    for best in (first, resumed):
        best.on_train_start(trainer)
    first.on_reward(1, None, composed(0.5))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.on_reward(2, None, composed(0.4))
    assert kept(trainer)[1]["iteration"] == 1
    resumed.on_reward(3, None, composed(0.6))
    assert kept(trainer)[1]["iteration"] == 3


def test_a_best_policy_that_cannot_be_saved_leaves_the_one_before(trainer: Trainer) -> None:
    best = BestModel()
    callbacks = Callbacks([best])
    callbacks.on_train_start(trainer)
    callbacks.on_reward(1, None, composed(0.5))

    def broken(folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    trainer.export_policy = broken  # type: ignore[method-assign]
    with pytest.raises(CallbackError, match=r"BestModel.on_reward raised OSError: disk full"):
        callbacks.on_reward(2, None, composed(0.6))
    assert kept(trainer)[1]["iteration"] == 1


class Rollouts:
    """Three samples with two components; the call of `shaky` on the second one failed."""

    def scores(self) -> dict[str, np.ndarray]:
        return {
            "shaky": np.array([0.25, np.nan, 0.75]),
            "short": np.array([1.0, 2.0, np.nan]),
            "short/words": np.array([0.0] * 3),
        }

    def failed(self) -> dict[tuple[int, str], str]:
        return {(1, "shaky"): "why"}

    def texts(self, rows: list[int]) -> list[tuple[str, str]]:
        return [(f"prompt {row}", f"response {row}") for row in rows]


def test_the_sample_table_goes_from_the_best_to_the_worst(trainer: Trainer) -> None:
    table = SampleTable(every=5, rows=3)
    table.on_train_start(trainer)
    stats = {name: ComponentStats(3, 0, 0) for name in ("short", "short/words", "shaky")}
    scored = Composed(np.array([1.25, np.nan, 7.5]), np.array([True, False, True]), stats)
    for iteration in range(1, 6):
        table.on_reward(iteration, Rollouts(), scored)
    lines = [line.split() for line in trainer.out.getvalue().splitlines() if line.strip()]
    assert lines == [
        ["samples", "of", "iteration", "5"],
        ["prompt", "response", "rewards"],
        ["prompt", "2", "response", "2", "total", "7.500"],
        ["short", "-"],
        ["shaky", "0.750"],
        ["prompt", "0", "response", "0", "total", "1.250"],
        ["short", "1.000"],
        ["shaky", "0.250"],
        ["prompt", "1", "response", "1", "total", "dropped"],
        ["short", "2.000"],
        ["shaky", "failed"],
    ]


def test_samples_are_spread_over_the_rewards() -> None:
    total = np.array([0.0, np.nan, 9.0, 5.0, 2.0, 7.0])
    assert spread(total, 3) == [2, 3, 1]
    assert spread(total, 1) == [2]
    assert spread(total, 99) == [2, 5, 3, 4, 0, 1]


def test_the_console_reports_each_iteration_and_from_time_to_time_all_rewards(trainer: Trainer) -> None:
    report = ConsoleReport()
    report.on_train_start(trainer)
    metrics = {"reward/mean": 0.5, "reward/short/applied": 4.0, "reward/short/mean": 0.5}
    for iteration in range(1, 13):
        report.on_iteration_end(iteration, metrics)
    shown = [line.split()[0] for line in trainer.out.getvalue().splitlines() if line[:12].strip()]
    rows = [word for word in shown if "/12" in word]
    assert rows == [f"{iteration}/12" for iteration in range(1, 13)]
    assert [shown[i - 1] for i, word in enumerate(shown) if word == "rewards"] == ["10/12", "12/12"]


def test_a_tracker_of_your_own_hears_of_everything_and_is_closed_either_way(trainer: Trainer) -> None:
    class Own(TrackerCallback):
        def open(self, trainer: Any, resume_after: int | None) -> Any:
            self.said: list[Any] = [f"after {resume_after}"]
            return self

        def log(self, step: int, metrics: dict[str, float]) -> None:
            self.said.append((step, metrics))

        def close(self, failed: bool = False) -> None:
            self.said.append("failed" if failed else "closed")

    own, resumed = Own(), Own()
    own.on_exception(ValueError())  # before the start: nothing to close
    own.on_train_start(trainer)
    own.on_iteration_end(3, {"kl/mean": 0.1})
    own.on_evaluation(3, Evaluated(0.5))
    state = own.state_dict()
    own.on_exception(ValueError())
    own.on_train_end(None)
    assert own.said == ["after None", (3, {"kl/mean": 0.1}), (3, {"eval/reward/mean": 0.5}), "failed"]
    resumed.load_state_dict(json.loads(json.dumps(state)))
    resumed.on_train_start(trainer)
    resumed.on_train_end(None)
    assert resumed.said == ["after 3", "closed"]


def test_tensorboard_as_a_callback_writes_where_it_is_told(trainer: Trainer, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    board = TensorBoardCallback(tmp_path / "mine")
    board.on_train_start(trainer)
    board.on_iteration_end(1, {"reward/mean": 0.5})
    board.on_train_end(None)
    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.5)]


def test_a_configuration_switches_callbacks_on() -> None:
    assert [type(callback) for callback in configured_callbacks(ppo())] == [ConsoleReport]
    callbacks = configured_callbacks(
        ppo(
            early_stop={"kl": 6.0, "kl_patience": 3, "plateau": 5, "plateau_min_gain": 0.01},
            checkpoint={"best": True},
            tracking={"samples_every": 7},
        )
    )
    _, table, best, kl, plateau = callbacks
    assert isinstance(table, SampleTable)
    assert table.every == 7
    assert isinstance(best, BestModel)
    assert best.measured_on == "training samples"
    assert isinstance(kl, KLEarlyStop)
    assert (kl.threshold, kl.patience) == (6.0, 3)
    assert isinstance(plateau, RewardPlateauStop)
    assert (plateau.patience, plateau.min_gain) == (5, 0.01)


def test_the_best_model_is_measured_on_held_out_prompts_where_they_are_evaluated() -> None:
    data, best = {"path": "d", "eval_path": "e"}, {"best": True}
    for every, measured_on in ((0, "training samples"), (2, "held-out prompts")):
        config = ppo(data=data, evaluation={"every": every}, checkpoint=best)
        assert configured_callbacks(config)[1].measured_on == measured_on  # type: ignore[attr-defined]


def test_a_configured_kl_stop_without_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"early_stop.kl"):
        configured_callbacks(ppo(early_stop={"kl": 6.0}, kl={"coef": 0}))
