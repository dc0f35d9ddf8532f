"""Run folders: refused when they would be overwritten or lost; every start is recorded."""

import io
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rlhf_ray.config import SFTConfig
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import ConfigError, DiskFull, InfrastructureError
from rlhf_ray.files import disk_errors, replaced
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.metrics_file import MetricsFile
from rlhf_ray.trainers.digests import write_digests
from rlhf_ray.trainers.failure_log import FailureLog
from rlhf_ray.trainers.run_folder import SUBMITTED_JOB_VARIABLE, RunFolder
from rlhf_ray.trainers.run_record import RunRecord, status_of

pytestmark = pytest.mark.unit


def test_a_new_folder_is_named_or_takes_stage_and_time(tmp_path: Path) -> None:
    assert RunFolder.create(RunSection(root=str(tmp_path / "deep" / "runs"), name="a"), "ppo").path.is_dir()
    folder = RunFolder.create(RunSection(root=str(tmp_path)), "ppo")
    assert re.fullmatch(r"ppo-\d{8}-\d{6}", folder.name)
    assert folder.logs.is_dir()


def test_a_relative_root_is_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SUBMITTED_JOB_VARIABLE, raising=False)
    assert RunFolder.create(RunSection(name="a"), "sft").path == tmp_path / "runs" / "a"


def test_a_relative_root_is_refused_inside_a_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SUBMITTED_JOB_VARIABLE, "{}")
    with pytest.raises(ConfigError, match=r"run.root: 'runs' is relative.*give an absolute path"):
        RunFolder.create(RunSection(name="a"), "ppo")
    assert list(tmp_path.iterdir()) == []
    assert RunFolder.create(RunSection(root=str(tmp_path), name="a"), "ppo").path.is_dir()


def test_a_folder_with_content_is_refused_and_resume_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder.create(RunSection(root=str(tmp_path), name="empty"), "ppo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(ConfigError, match=rf"--resume {tmp_path}/full, or choose another run.name"):
        RunFolder.create(RunSection(root=str(tmp_path), name="full"), "ppo")
    assert os.listdir(tmp_path / "full") == ["precious"]


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.root: cannot write .*file/a \(Not a directory\)"):
        RunFolder.create(RunSection(root=str(tmp_path / "file"), name="a"), "ppo")


def test_open_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run to resume here \(it has no config.yaml\)"):
        RunFolder.open(tmp_path)


def test_each_start_keeps_the_config_and_every_start(tmp_path: Path) -> None:
    config = SFTConfig.model_validate({"model": {"name": "m"}, "data": {"path": "d"}})
    created = RunFolder.create(RunSection(root=str(tmp_path), name="a"), "sft")
    created.write_start(config, "sft")
    folder = RunFolder.open(created.path)
    folder.write_start(config, "sft")
    assert load_config(SFTConfig, [folder.config_file]) == config
    starts = json.loads(folder.environment_file.read_text())
    assert len(starts) == 2
    assert starts[0]["packages"]["rlhf-ray"]
    assert starts[0]["cores"] >= 1
    assert starts[0]["submitted_as_job"] is False


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (ValueError("boom"), "failed")]
)
def test_what_runs_in_it_is_locked_and_its_end_noted(tmp_path: Path, error: BaseException | None, status: str) -> None:
    config = SFTConfig.model_validate({"model": {"name": "m"}, "data": {"path": "d"}})
    folder = RunFolder.create(RunSection(root=str(tmp_path), name="a"), "sft")

    def run() -> None:
        with folder.running(config, "sft", pytest.fail):
            assert status_of(folder.path) == "running"
            if error is not None:
                raise error

    with pytest.raises(type(error)) if error is not None else nullcontext():
        run()
    record = RunRecord.read(folder.path)
    assert record is not None
    assert (record.status, status_of(folder.path)) == (status, status)
    assert record.error == ("ValueError: boom" if status == "failed" else None)


def test_a_run_that_goes_further_says_so_until_it_finishes_again(tmp_path: Path) -> None:
    config = SFTConfig.model_validate({"model": {"name": "m"}, "data": {"path": "d"}})
    folder = RunFolder.create(RunSection(root=str(tmp_path), name="a"), "sft")
    assert folder.extends is None
    folder.write_start(config, "sft", extends=5)
    assert (folder.extends, status_of(folder.path)) == (5, "interrupted")  # killed
    folder.write_start(config, "sft", folder.extends)
    folder.write_end("failed", ValueError("boom"))
    assert folder.extends == 5
    folder.write_end("finished")
    assert folder.extends is None


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(name: str, error: BaseException | None = None) -> None:
        with replaced(tmp_path / "policy") as aside:
            aside.mkdir()
            (aside / name).touch()
            if error is not None:
                raise error

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert os.listdir(tmp_path / "policy") == ["old"]
    write("new")
    assert os.listdir(tmp_path / "policy") == ["new"]
    assert os.listdir(tmp_path) == ["policy"]


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", 'Os { code: 28, kind: "x" }'])
def test_a_full_disk_is_known_by_the_words_of_safetensors(tmp_path: Path, text: str) -> None:
    with pytest.raises(DiskFull, match="No space left on device"), disk_errors("a shard", tmp_path):
        raise SafetensorError(text)


def test_a_full_disk_ends_a_run_by_name_but_not_by_its_failure_log(tmp_path: Path) -> None:
    metrics = MetricsFile(Path("/dev/full"))
    with pytest.raises(DiskFull, match=r"cannot write metrics\.jsonl into /dev"):
        metrics.log(1, {"loss": 1.0})
    with pytest.raises(DiskFull):
        metrics.close()
    out = io.StringIO()
    FailureLog(Path("/dev/full"), Console(out, width=200)).record(actor="a", phase="p", cause="c", action="d")
    assert "cannot write /dev/full: No space left on device" in out.getvalue()
    (tmp_path / "digests").touch()
    with pytest.raises(InfrastructureError, match="cannot write digests of the weights"):
        write_digests(tmp_path / "digests", 1, {"w": "0"})
