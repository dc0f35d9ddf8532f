"""Metrics file and its truncation on resume; TensorBoard, W&B and MLflow, written and read back."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
import wandb_file

from rlhf_ray.config import SFTConfig
from rlhf_ray.config.common import TrackingSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.tracking.tracker import Trackers, make_trackers, restore_tracker_ids, tracker_ids

pytestmark = pytest.mark.unit


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
    for part in {module, *(name for name in sys.modules if name.startswith(f"{module}."))}:
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(ConfigError) as caught:
        make_trackers(TrackingSection.model_validate(section), tmp_path, config)
    assert extra in str(caught.value)


def test_mlflow_keeps_one_run_over_a_resume(tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a"
    folder.mkdir()
    from mlflow.tracking import MlflowClient

    section = TrackingSection(tensorboard=False, mlflow_experiment="e")
    for resume_after, step, status in ((None, 0, "FAILED"), (0, 1, "FINISHED")):
        trackers = make_trackers(section, folder, config, resume_after)
        trackers.log(step, {"reward/mean": step + 0.5, "reward/rules/tone (0 to 1)/mean": 1.0, "x": math.nan})
        trackers.close(failed=status == "FAILED")
        client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
        runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
        assert [(run.info.run_name, run.info.status) for run in runs] == [("a", status)]
    assert runs[0].data.params["model.name"] == "m"
    history = client.get_metric_history(runs[0].info.run_id, "reward/mean")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 1.5)]
    assert runs[0].data.metrics["reward/rules/tone _0 to 1_/mean"] == 1.0


def test_mlflow_says_why_a_place_is_refused(tmp_path: Path, config: SFTConfig) -> None:
    pytest.importorskip("mlflow")
    section = TrackingSection(mlflow_experiment="e", mlflow_uri="gopher://somewhere")
    with pytest.raises(ConfigError, match=r"tracking.mlflow_uri: MLflow cannot use gopher://somewhere: .*unsupported"):
        make_trackers(section, tmp_path, config)


def test_wandb_offline_holds_every_step_and_the_configuration(
    tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    section = TrackingSection(tensorboard=False, wandb_project="p")
    for resume_after, steps in ((None, (1, 2)), (1, (2,))):
        time.sleep(1.1 if resume_after else 0)  # offline folders are named by the second
        trackers = make_trackers(section, tmp_path, config, resume_after)
        for step in steps:
            trackers.log(step, {"reward/mean": step + 0.5 * len(steps), "reward/rules/mean": math.nan})
        trackers.close()
    wandb.teardown()  # its service writes the last bytes when it ends
    name = (tmp_path / "wandb_run_id").read_text()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}/*.wandb"))
    rows = [[(row["iteration"], row["reward/mean"]) for row in wandb_file.history(file)] for file in files]
    assert rows == [[(1, 2.0), (2, 3.0)], [(2, 2.5)]]
    assert wandb_file.config(files[0])["model"]["name"] == "m"


def test_wandb_says_what_to_do_without_a_login(
    tmp_path: Path, config: SFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb").teardown()  # it keeps the mode of the process's first run
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"W&B does not start: [\s\S]*`wandb login`, or set WANDB_MODE=offline"):
        make_trackers(TrackingSection(wandb_project="p"), tmp_path, config)


class Memory:
    """A tracker that fails at the steps in `broken`."""

    def __init__(self, *broken: int) -> None:
        self.broken, self.steps, self.closed = broken, list[int](), False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step in self.broken:
            raise ConnectionError("server away")
        self.steps.append(step)

    def close(self, failed: bool = False) -> None:
        self.closed = True
        if self.broken:
            raise ConnectionError("server away")


def test_a_service_that_fails_is_a_warning_and_tried_again() -> None:
    file, first, second = Memory(), Memory(2, 3, 5), Memory()
    said: list[str] = []
    trackers = Trackers(file, [first, second], said.append)
    for step in range(1, 6):
        trackers.log(step, {})
    trackers.close()
    assert file.steps == second.steps == [1, 2, 3, 4, 5]
    assert first.steps == [1, 4]
    assert said == [
        "Memory did not take step 2 (ConnectionError: server away); metrics.jsonl has it",
        "Memory did not take step 5 (ConnectionError: server away); metrics.jsonl has it",
    ]
    assert file.closed
    assert second.closed


def test_a_metrics_file_that_fails_ends_the_run() -> None:
    with pytest.raises(ConnectionError):
        Trackers(Memory(1), [], lambda text: None).log(1, {})


def test_the_ids_of_services_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    assert tracker_ids(tmp_path) == {}
    (tmp_path / "wandb_run_id").write_text("abc\n")
    (tmp_path / "mlflow_run_id").write_text("def")
    ids = tracker_ids(tmp_path)
    assert ids == {"wandb_run_id": "abc", "mlflow_run_id": "def"}
    (tmp_path / "wandb_run_id").unlink()
    (tmp_path / "mlflow_run_id").write_text("newer")
    restore_tracker_ids(tmp_path, {**ids, "../elsewhere": "x"})
    assert tracker_ids(tmp_path) == {"wandb_run_id": "abc", "mlflow_run_id": "newer"}
    assert not (tmp_path.parent / "elsewhere").exists()
