"""What a run's result says, in numbers and in text; evaluations as files; the names that `rlhf_ray` exports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlhf_ray
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.trainers.callbacks_builtin.best_model import Best
from rlhf_ray.trainers.evaluation import Evaluation
from rlhf_ray.trainers.results import INTERRUPTED, PPOResult, compare, read_history
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit

NAN = float("nan")
LONG = "hf_OpenAssistant_reward_model_deberta_v3_large_v2"


def iteration(reward: float, short: float | None) -> dict[str, float]:
    """`short` None: it applied to no sample."""
    metrics = {"reward/mean": reward, "reward/short/applied": 8.0, f"reward/{LONG}/applied": 8.0, "kl/mean": 1.25}
    metrics |= {f"reward/{LONG}/mean": 12345.678, "reward/short/fmt/applied": 8.0, "reward/short/fmt/mean": 0.5}
    return metrics if short is None else metrics | {"reward/short/mean": short}


def evaluation(*rewards: float) -> Evaluation:
    count = len(rewards)
    return Evaluation(
        prompts=[f"prompt {i}" for i in range(count)],
        responses=[f"response {i}" for i in range(count)],
        reward=np.array(rewards),
        components={"short": np.array(rewards) / 2, LONG: np.full(count, NAN)},
        lengths=np.arange(count, dtype=np.int32),
        truncated=np.arange(count) % 2 == 1,
    )


@pytest.fixture
def result(tmp_path: Path) -> PPOResult:
    history = [iteration(0.25, 0.1), iteration(0.75, None), iteration(0.5, 0.3)]
    before, after = evaluation(0.0, 0.5, NAN, 1.0), evaluation(1.0, 0.5, 2.0, 1.5)
    policy = tmp_path / "run" / "policy"
    return PPOResult(policy, tmp_path / "run", 3, "mean KL above 1", history, before, after)


def test_curves_components_and_best(result: PPOResult) -> None:
    assert result.curves["reward/mean"].tolist() == [0.25, 0.75, 0.5]
    np.testing.assert_array_equal(result.curves["reward/short/mean"], [0.1, NAN, 0.3])
    assert list(result.components) == ["short", LONG, "short/fmt"]
    np.testing.assert_array_equal(result.components["short"], [0.1, NAN, 0.3])
    assert result.best == Best(2, 0.75)
    assert result.final is result.history[-1]
    table = result.to_pandas()
    assert table.index.tolist() == [1, 2, 3]
    assert table.loc[2, "reward/mean"] == 0.75


def test_the_summary_reads_well_at_80_columns(result: PPOResult) -> None:
    lines = result.summary().splitlines()
    assert all(len(line) <= 80 for line in lines if str(result.folder) not in line)
    assert lines[0] == "PPO: 3 iterations, stopped early: mean KL above 1"
    values = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert lines[2].split() == ["training", "samples", "first", "best", "final"]
    assert values["short"] == ["0.250", "0.625", "0.375"]  # the last table is the held-out one
    training = dict(line.split(maxsplit=1) for line in lines[3:7])
    assert training["reward"].split() == ["0.250", "0.750", "0.500"]
    assert training["short"].split() == ["0.100", "-", "0.300"]
    assert training[LONG[:31] + "..."].split() == ["12,345.68"] * 3
    assert "  better than before on 83.3% of 4 prompts" in lines  # two wins and a tie, of three that have both
    assert "  KL from the reference: 1.25 nats per response" in lines


def test_a_run_without_evaluation_or_iterations_has_a_summary(tmp_path: Path) -> None:
    empty = PPOResult(tmp_path / "policy", tmp_path, 0)
    assert empty.summary().startswith("PPO: 0 iterations, the full length\n")
    assert (empty.best, empty.final, empty.curves, empty.components) == (None, {}, {}, {})
    assert not empty.interrupted
    assert PPOResult(tmp_path, tmp_path, 1, INTERRUPTED).interrupted
    assert set(compare(empty, RunFolder(tmp_path))) == {"facts", "paths"}


def test_the_console_s_comparison(result: PPOResult) -> None:
    shown = compare(result, RunFolder(result.folder))
    assert shown["best"] == (2, 0.75)
    assert shown["curve"] == [0.25, 0.75, 0.5]
    assert shown["rows"]["reward"] == (0.5, 1.25)
    assert shown["facts"]["stopped early"] == "mean KL above 1"
    assert "best policy" not in shown["paths"]


def test_history_is_read_back_from_the_run_s_metrics(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log(0, {"eval/reward/mean": 0.1})
    history = [iteration(0.25, 0.1), iteration(0.5, NAN), iteration(0.75, 0.2)]
    for number, metrics in enumerate(history, start=1):
        file.log(number, metrics)
    file.log(2, {"eval/reward/mean": 0.2})
    file.close()
    read = read_history(tmp_path / "metrics.jsonl", 2)
    assert read[0] == history[0]
    assert len(read) == 2
    assert np.isnan(read[1].pop("reward/short/mean"))
    assert read[1] == {name: value for name, value in history[1].items() if name != "reward/short/mean"}


def test_an_evaluation_is_a_parquet_file(tmp_path: Path) -> None:
    written = evaluation(0.1, NAN, 1 / 3)
    written.write(tmp_path / "evaluations" / "iteration-000000.parquet")
    read = Evaluation.read(tmp_path / "evaluations" / "iteration-000000.parquet")
    assert (read.prompts, read.responses) == (written.prompts, written.responses)
    np.testing.assert_array_equal(read.reward, written.reward)
    assert list(read.components) == list(written.components)
    for name, values in written.components.items():
        np.testing.assert_array_equal(read.components[name], values)
    np.testing.assert_array_equal(read.lengths, written.lengths)
    np.testing.assert_array_equal(read.truncated, written.truncated)
    assert written.to_pandas()["reward"].isna().tolist() == [False, True, False]
    means = written.metrics()
    assert means["eval/reward/mean"] == pytest.approx((0.1 + 1 / 3) / 2)
    assert np.isnan(means[f"eval/reward/{LONG}/mean"])


def test_every_exported_name_is_there() -> None:
    for name in rlhf_ray.__all__:
        assert getattr(rlhf_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainr'"):
        rlhf_ray.PPOTrainr  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, rlhf_ray; print(sorted({'torch', 'ray', 'pydantic', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
