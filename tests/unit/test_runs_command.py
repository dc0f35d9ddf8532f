"""`rlhf-ray runs` and `--resume auto`, on folders as runs leave them."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rlhf_ray.cli.main import main
from rlhf_ray.config import SFTConfig
from rlhf_ray.config.common import CheckpointSection, RunSection
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.files import FileDigest
from rlhf_ray.trainers import run_lock
from rlhf_ray.trainers.checkpoint import Checkpoints
from rlhf_ray.trainers.resume import run_to_resume
from rlhf_ray.trainers.run_folder import RunFolder
from rlhf_ray.trainers.run_lock import RunLock
from rlhf_ray.trainers.run_record import RunRecord, Status, status_of

pytestmark = pytest.mark.unit


def config(root: Path, **changes: Any) -> SFTConfig:
    values = {"model": {"name": "m"}, "data": {"path": "d"}, "run": {"root": str(root)}, **changes}
    return SFTConfig.model_validate(values)


class Rank:
    """Writes one small file."""

    def snapshot(self) -> None: ...

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        (folder / "rank-00000.json").write_text('{"ranks": 1}')
        return [{"rank-00000.json": FileDigest.of(folder / "rank-00000.json")}]


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run that has ended as told, with checkpoints of these steps."""

    def make(name: str, status: Status = "interrupted", steps: tuple[int, ...] = (), **changes: Any) -> Path:
        folder = RunFolder.create(RunSection(root=str(tmp_path), name=name), "sft")
        folder.write_start(config(tmp_path, **changes), "sft")
        checkpoints = Checkpoints(folder.checkpoints, CheckpointSection(asynchronous=False, keep_last=9), pytest.fail)
        for step in steps:
            checkpoints.write(step, {"attempt": 1}, Rank(), metric=0.5)
        folder.metrics_file.write_text("".join(f'{{"step": {step}, "loss/sft": 0.25}}\n' for step in range(1, 4)))
        folder.write_end(status, ValueError("boom") if status == "failed" else None)
        return folder.path

    return make


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


# -- list and show -----------------------------------------------------------------------------------------------------


def test_each_run_is_listed_with_how_it_went(tmp_path: Path, make: Make) -> None:
    make("done", "finished", (2, 4))
    make("broken", "failed", (2,))
    make("killed", "running")  # says so, but nobody holds its lock
    with RunLock(make("alive", "running")).held(pytest.fail):
        listed = json.loads(call("list", tmp_path, "--json").output)
        text = call("list", tmp_path).output
    by_name = {run["name"]: run for run in listed}
    assert {name: run["status"] for name, run in by_name.items()} == {
        "done": "finished",
        "broken": "failed",
        "killed": "interrupted",
        "alive": "running",
    }
    assert [by_name["done"][key] for key in ("stage", "step", "checkpoint", "error")] == ["sft", 3, 4, None]
    assert by_name["broken"]["error"] == "ValueError: boom"
    for word in ("done", "finished", "broken", "failed", "checkpoint"):
        assert word in text


def test_the_stages_of_a_pipeline_are_runs_of_theirs(tmp_path: Path, make: Make) -> None:
    run = make("sft", "finished")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "pipeline.yaml").touch()
    run.rename(tmp_path / "all" / "sft")
    assert [run["name"] for run in json.loads(call("list", tmp_path, "--json").output)] == ["all/sft"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = call("list", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "no such folder" in result.output


def test_one_run_is_shown_with_its_checkpoints(make: Make) -> None:
    folder = make("one", "failed", (2, 4))
    (folder / "checkpoints" / "step-000002" / "MANIFEST.json").write_text("{")
    shown = json.loads(call("show", folder, "--json").output)
    assert [checkpoint["step"] for checkpoint in shown["checkpoints"]] == [2, 4]
    assert "unreadable" in shown["checkpoints"][0]["problem"]
    assert (shown["checkpoints"][1]["metric"], shown["checkpoints"][1]["attempt"]) == (0.5, 1)
    assert (shown["metrics"], len(shown["starts"]), shown["held_by"]) == ({"step": 3, "loss/sft": 0.25}, 1, None)
    text = call("show", folder).output
    for word in ("failed", "ValueError: boom", "step 4", "loss/sft"):
        assert word in text


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_whole_run_is_verified(make: Make) -> None:
    result = call("verify", make("one", "finished", (2,)))
    assert (result.exit_code, "step-000002  ok" in result.output) == (0, True)


def test_damage_is_named_by_file_and_has_its_exit_code(make: Make) -> None:
    whole, folder = make("whole", "finished", (2,)), make("damaged", "finished", (2, 4))
    os.truncate(folder / "checkpoints" / "step-000004" / "state.json", 3)
    (folder / "checkpoints" / "step-000002" / "learner" / "rank-00000.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (folder / "policy").mkdir()
    (folder / "policy" / "model.safetensors").write_bytes(b"no header")
    result = call("verify", whole, folder, "--json")
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert not any(found[str(whole)].values())
    damaged = found[str(folder)]
    assert damaged["step-000002"] == ["learner/rank-00000.json is missing"]
    assert damaged["step-000004"][0].startswith("state.json has 3 bytes instead of")
    assert damaged["metrics.jsonl"][0].startswith("line 4 is no JSON")
    assert damaged["policy"][0].startswith("model.safetensors is unreadable")


# -- other versions ----------------------------------------------------------------------------------------------------


def test_a_folder_of_a_later_version_is_refused(make: Make, tmp_path: Path) -> None:
    folder = make("later")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"format": 2, "package": "9.9", "new": "field"}))
    with pytest.raises(ConfigError, match=r"has format 2, written by rlhf-ray 9\.9; .*: update rlhf-ray"):
        RunFolder.open(folder)
    assert json.loads(call("list", tmp_path, "--json").output)[0]["status"] == "unreadable"


def test_a_folder_of_format_0_is_read_and_gets_a_record_when_it_goes_on(make: Make, tmp_path: Path) -> None:
    folder = make("old")
    (folder / "run.json").unlink()
    assert status_of(folder) == "interrupted"
    (folder / "policy").mkdir()
    (folder / "policy" / "config.json").touch()
    assert status_of(folder) == "finished"
    RunFolder.open(folder, "ppo").write_start(config(tmp_path), "sft")
    record = RunRecord.read(folder)
    assert record is not None
    assert (record.stage, record.format) == ("sft", 1)


def test_a_damaged_record_is_named(make: Make) -> None:
    folder = make("torn")
    os.truncate(folder / "run.json", 20)
    with pytest.raises(DataError, match=r"run\.json is damaged .*; delete it"):
        RunFolder.open(folder)
    assert call("verify", folder).exit_code == 1


def test_a_run_of_another_stage_is_not_resumed(make: Make) -> None:
    with pytest.raises(ConfigError, match="is a run of sft, not of ppo: rlhf-ray sft --resume"):
        RunFolder.open(make("one"), "ppo")


# -- resume auto -------------------------------------------------------------------------------------------------------


def found(config: SFTConfig) -> Path | None:
    return run_to_resume(config, config.run, "sft")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_auto_finds_the_newest_unfinished_run_of_the_same_settings(tmp_path: Path, make: Make) -> None:
    ours = config(tmp_path, checkpoint={"every": 3})  # how often it saves is no matter
    assert found(ours) is None
    make("finished", "finished")
    make("another", learner={"learning_rate": 0.5})
    assert found(ours) is None
    older, newer = make("older", "failed"), make("newer", "interrupted")
    past = time.time() - 60
    os.utime(older / "run.json", (past, past))
    assert found(ours) == newer
    with RunLock(newer).held(pytest.fail):
        assert found(ours) == older
    assert run_to_resume(ours, ours.run, "dpo") is None


def test_auto_waits_for_a_killed_run_to_let_go(tmp_path: Path, make: Make) -> None:
    folder = make("killed", "running")
    lock = RunLock(folder)
    lock.acquire(pytest.fail)
    threading.Timer(0.2, lock.release).start()
    assert found(config(tmp_path)) == folder


def test_auto_finds_a_run_of_another_number_of_ranks(tmp_path: Path, make: Make) -> None:
    folder = make("two-ranks", learner={"ranks": 2})
    assert found(config(tmp_path)) == folder


def test_auto_goes_by_the_name_where_there_is_one(tmp_path: Path, make: Make) -> None:
    named = config(tmp_path, run={"root": str(tmp_path), "name": "mine"})
    make("other")
    assert found(named) is None
    folder = make("mine", "finished")
    assert found(named) == folder
    with pytest.raises(ConfigError, match=r"made with other settings \(sft\.epochs\); .* --resume .*/mine, or choose"):
        found(config(tmp_path, run={"root": str(tmp_path), "name": "mine"}, sft={"epochs": 9}))


def test_a_run_that_was_killed_before_it_began_is_no_obstacle(tmp_path: Path) -> None:
    run = RunSection(root=str(tmp_path), name="mine")
    with RunLock(RunFolder.create(run, "sft").path).held(pytest.fail):
        pass
    for name in ("environment.json", "run.json", "config.yaml"):  # in the middle of writing one of these
        (tmp_path / "mine" / f".{name}.partial").touch()
    assert found(config(tmp_path, run=run.model_dump())) is None
    assert RunFolder.create(run, "sft").path == tmp_path / "mine"


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """What the command asked the trainer to resume."""
    asked: list[Path | None] = []

    class Trainer:
        def __init__(self, config: SFTConfig, resume: Path | None) -> None:
            asked.append(resume)

        def train(self) -> None: ...

    monkeypatch.setitem(sys.modules, "rlhf_ray.trainers.sft", SimpleNamespace(SFTTrainer=Trainer))  # torch is slow
    return asked


def test_the_command_goes_on_starts_or_ends(tmp_path: Path, make: Make, resumed: list[Path | None]) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {{name: m}}\ndata: {{path: d}}\nrun: {{root: {tmp_path}}}\n")
    command = ["sft", "--config", str(tmp_path / "c.yaml"), "--resume", "auto"]
    assert "no unfinished run of this configuration: starting one" in CliRunner().invoke(main, command).output
    folder = make("one")
    assert f"resuming {folder}" in CliRunner().invoke(main, command).output
    assert resumed == [None, folder]
    RunFolder.open(folder).write_end("finished")
    result = CliRunner().invoke(main, [*command, "run.name=one"])
    assert (result.exit_code, "has finished: nothing to resume" in result.output) == (0, True)
    assert len(resumed) == 2
    assert CliRunner().invoke(main, ["sft", "--resume", "auto", "model.name=m"]).exit_code == 2


def test_a_run_is_resumed_by_its_folder(make: Make, resumed: list[Path | None]) -> None:
    folder = make("one")
    assert CliRunner().invoke(main, ["sft", "--resume", str(folder)]).exit_code == 0
    assert resumed == [folder]
    result = CliRunner().invoke(main, ["ppo", "--resume", str(folder)])
    assert (result.exit_code, "is a run of sft, not of ppo" in result.output) == (2, True)


def test_a_pipeline_is_resumed_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was set in its configuration and no more: a stage's seed is still the pipeline's."""
    folder, ran = tmp_path / "elsewhere" / "mine", list[RLHFConfig]()
    folder.mkdir(parents=True)
    stages = {"sft": {"model": {"name": "m"}, "data": {"path": "d"}}}
    (folder / "pipeline.yaml").write_text(yaml.dump({"run": {"name": "first", "root": "r", "seed": 7}, **stages}))

    class Trainer:
        def __init__(self, config: RLHFConfig) -> None:
            ran.append(config)

        def train(self, start: str | None) -> None: ...

    monkeypatch.setitem(sys.modules, "rlhf_ray.trainers.rlhf", SimpleNamespace(RLHFTrainer=Trainer))
    assert CliRunner().invoke(main, ["pipeline", "--resume", str(folder)]).exit_code == 0
    (config,) = ran
    assert (config.run.root, config.run.name, config.run.seed) == (str(folder.parent), "mine", 7)
    assert config.sft is not None
    assert "seed" not in config.sft.run.model_fields_set
    result = CliRunner().invoke(main, ["pipeline", "--resume", str(tmp_path)])
    assert (result.exit_code, "no pipeline to resume here" in result.output) == (2, True)
    assert CliRunner().invoke(main, ["pipeline", "--resume", "auto"]).exit_code == 2
