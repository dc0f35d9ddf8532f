"""Console lines at 80 and 120 columns, the metrics file and its truncation on resume, TensorBoard, W&B, MLflow."""

import io
import json
import math
import sys
from pathlib import Path

import pytest

from rlhf_ray.config import SFTConfig
from rlhf_ray.config.common import TrackingSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.console import HEADER_EVERY, PLAIN_PROGRESS_S, Console
from rlhf_ray.tracking.format import duration, fit, histogram, quantile, scientific, sparkline
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.tracking.tracker import make_trackers

pytestmark = pytest.mark.unit

METRICS = {
    "reward/mean": 0.4123,
    "reward/std": 0.1302,
    "kl/mean": 3.214,
    "loss/policy": -0.0123,
    "loss/value": 0.0456,
    "policy/clip_fraction": 0.0412,
    "response/length_mean": 23.41,
    "audit/mean_gap": 1.2e-6,
    "audit/max_gap": 3.4e-5,
    "throughput/response_tokens_per_s": 4512.3,
    "seconds/total": 6.21,
    "seconds/generate": 3.1,
    "seconds/score": 0.4,
    "seconds/train": 2.2,
    "seconds/sync": 0.5,
}
LARGE = {**METRICS, "reward/mean": -98765.4, "reward/std": 45678.9, "kl/mean": 12345.6, "loss/value": 9.9e12}


def console(width: int, clock: list[float] | None = None) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    times = clock or [0.0]
    return Console(file=out, width=width, terminal=False, clock=lambda: times[0]), out


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (100, 2), (120, 1), (200, 1)])
@pytest.mark.parametrize("total", [9, 9999, 100000, None])
@pytest.mark.parametrize("metrics", [METRICS, LARGE, {}, {"reward/mean": math.nan}])
def test_an_iteration_fits_the_console_whole(
    width: int, lines: int, total: int | None, metrics: dict[str, float]
) -> None:
    screen, out = console(width)
    screen.iteration(total or 7, total, metrics)
    header, *rows = out.getvalue().splitlines()
    assert header.split()[0] == "iteration"
    assert len(rows) == lines
    assert all(len(line) <= width and "…" not in line for line in [header, *rows])


def test_an_iteration_shows_every_number_under_its_title() -> None:
    screen, out = console(120)
    screen.iteration(12, 50, METRICS)
    header, row = out.getvalue().splitlines()
    numbers = "12/50 0.412 ±0.130 3.21 -0.0123 0.0456 4.1% 23.4 1.2e-6/3.4e-5 4,512 6.2 3.1 0.4 2.2 0.5"
    assert " ".join(row.split()) == numbers
    for title, value in [("KL", "3.21"), ("length", "23.4"), ("tok/s", "4,512"), ("sync", "0.5")]:
        assert header.index(title) + len(title) == row.index(value) + len(value)


def test_the_second_line_at_80_columns_names_its_numbers() -> None:
    screen, out = console(80)
    screen.iteration(1000, 1000, METRICS)
    assert out.getvalue().splitlines()[2].strip() == (
        "gap 1.2e-6/3.4e-5   seconds: gen 3.1  score 0.4  train 2.2  sync 0.5"
    )


def test_titles_come_again_after_a_while_and_after_other_output() -> None:
    screen, out = console(120)
    for iteration in range(HEADER_EVERY + 1):
        screen.iteration(iteration, None, METRICS)
    screen.stage("evaluation")
    screen.iteration(99, None, METRICS)
    titles = [i for i, line in enumerate(out.getvalue().splitlines()) if line.strip().startswith("iteration")]
    assert titles == [0, HEADER_EVERY + 1, HEADER_EVERY + 5]


def test_plain_progress_is_sparse_and_silent_when_quick() -> None:
    clock = [0.0]
    screen, out = console(120, clock)
    with screen.progress("quick", total=10) as advance:
        advance(10)
    assert out.getvalue() == ""
    with screen.progress("generate", total=100) as advance:
        for _ in range(100):
            clock[0] += 0.5
            advance(note="replica 0")
    assert out.getvalue().splitlines() == [
        f"  generate: 40 of 100 (40%) after {PLAIN_PROGRESS_S} s  replica 0",
        "  generate: 80 of 100 (80%) after 40.0 s  replica 0",
        "  generate: done in 50.0 s",
    ]


def test_progress_bars_nest_on_a_terminal_and_leave_nothing_behind_after_an_error() -> None:
    out = io.StringIO()
    screen = Console(file=out, width=100, terminal=True)

    def fail() -> None:
        with screen.progress("outer", 2) as outer, screen.progress("inner") as inner:
            inner(1, "busy")
            outer(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "outer" in out.getvalue()
    with screen.progress("again", 1) as advance:
        advance()
    assert "again" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_else_keeps_within_the_width(width: int) -> None:
    screen, out = console(width)
    screen.stage("PPO", "word " * 60)
    screen.facts({"batch": ["a" * 30, "word " * 40], "policy": 3})
    screen.note("word " * 60)
    screen.warn("word " * 60)
    screen.step(40, 120, {"loss": 2.81, "learning rate": 1.2e-5, "tok/s": 84123.0, "epoch": "1 of 3"})
    screen.samples([{"prompt": "def f(x): " * 20, "responses": {"SFT": ("", None), "PPO": ("text " * 40, 0.5)}}])
    screen.summary(
        "Result",
        {
            "labels": ("SFT", "PPO"),
            "rows": {"reward": (0.31, 0.82), "a_component_with_a_very_long_name_indeed": (1.0, 0.98)},
            "win_rate": 0.873,
            "distributions": {"length (tokens)": ([3.0, 8.0, 20.0], [30.0, 31.0, 64.0]), "empty": ([], [])},
            "curve": [i / 100 for i in range(300)],
            "facts": {"KL": "3.2 nats per response"},
            "paths": {"policy": "/" + "x" * 150},
        },
    )
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    for expected in ("loss 2.81   learning rate 1.2e-5   tok/s 84,123", "(empty)", "87.3%", "+0.510", "-0.020"):
        assert expected in text


def test_an_empty_summary_is_only_its_title() -> None:
    screen, out = console(80)
    screen.summary("Result", {})
    assert out.getvalue().split() == ["Result", "─" * 73]


def test_number_formats() -> None:
    assert [fit(v, 7, 3) for v in (0.5, -1234.5678, 123456.7, 1e12, math.inf, None)] == [
        "0.500",
        "-1,235",
        "123,457",
        "1.0e12",
        "inf",
        "-",
    ]
    assert [scientific(v) for v in (0.0, 1.23e-6, -4.5e10, None)] == ["0", "1.2e-6", "-4.5e10", "-"]
    assert [duration(s) for s in (6.24, 252, 7500)] == ["6.2 s", "4 min 12 s", "2 h 05 min"]
    assert sparkline([0, 1, 2, math.nan, 7]) == "▁▂▃█"
    assert sparkline([0] * 50 + [1] * 50, width=4) == "▁▁██"
    assert sparkline([]) == ""
    assert histogram([0, 0, 10], 0, 10, bins=3) == "█ ▅"
    assert [quantile([1, 2, 3, 4], share) for share in (0, 0.5, 0.95, 1)] == [1, 2, 4, 4]


def test_metrics_file_is_one_valid_json_object_per_line_at_once(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.log(1, {"reward/mean": 0.5, "kl/mean": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "reward/mean": 0.5, "kl/mean": None}
    file.close()


def test_metrics_file_takes_back_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(5):
        file.log(step, {"x": float(step)})
    file.close()
    path.write_text(path.read_text() + '{"step": 5, "x"')
    resumed = MetricsFile(path, resume_after=2)
    resumed.log(3, {"x": 33.0})
    resumed.close()
    assert [json.loads(line)["x"] for line in path.read_text().splitlines()] == [0, 1, 2, 33]


@pytest.fixture
def config() -> SFTConfig:
    return SFTConfig.model_validate({"model": {"name": "m"}, "data": {"path": "d"}})


def test_tensorboard_reads_back_what_was_logged_and_hides_what_was_redone(tmp_path: Path, config: SFTConfig) -> None:
    first = make_trackers(TrackingSection(), tmp_path, config)
    for step in range(4):
        first.log(step, {"reward/mean": float(step)})
    first.close()
    second = make_trackers(TrackingSection(), tmp_path, config, resume_after=1)
    second.log(2, {"reward/mean": 20.0})
    second.close()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(
    ("module", "section", "extra"),
    [("wandb", {"wandb_project": "p"}, "rlhf-ray[wandb]"), ("mlflow", {"mlflow_experiment": "e"}, "rlhf-ray[mlflow]")],
)
def test_a_tracker_that_is_not_installed_names_its_extra(
    tmp_path: Path,
    config: SFTConfig,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    section: dict[str, str],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.entities", None)
    with pytest.raises(ConfigError) as caught:
        make_trackers(TrackingSection.model_validate(section), tmp_path, config)
    assert extra in str(caught.value)


def test_mlflow_keeps_one_run_over_a_resume(tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    section = TrackingSection(tensorboard=False, mlflow_experiment="e", mlflow_uri=uri)
    for resume_after, step in ((None, 0), (0, 1)):
        trackers = make_trackers(section, tmp_path, config, resume_after)
        trackers.log(step, {"reward/mean": step + 0.5})
        trackers.close()
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert [(run.info.run_name, run.info.status) for run in runs] == [(tmp_path.name, "FINISHED")]
    assert runs[0].data.params["model.name"] == "m"
    history = client.get_metric_history(runs[0].info.run_id, "reward/mean")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 1.5)]


def test_mlflow_says_why_a_place_is_refused(tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    section = TrackingSection(mlflow_experiment="e", mlflow_uri=(tmp_path / "store").as_uri())
    with pytest.raises(ConfigError, match=r"tracking.mlflow_uri: MLflow cannot use file:.*MLFLOW_ALLOW_FILE_STORE"):
        make_trackers(section, tmp_path, config)


def test_wandb_works_offline_and_keeps_its_id(
    tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    section = TrackingSection(tensorboard=False, wandb_project="p")
    ids = []
    for resume_after, step in ((None, 0), (0, 1)):
        trackers = make_trackers(section, tmp_path, config, resume_after)
        trackers.log(step, {"reward/mean": 0.5})
        trackers.close()
        ids.append((tmp_path / "wandb_run_id").read_text())
    assert ids[0] == ids[1]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}/*.wandb"))) >= 1
