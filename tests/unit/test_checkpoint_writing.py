"""Checkpoints: beside the training, one in flight, kept by number and by merit, whole under their name or not there."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.common import CheckpointSection
from rlhf_ray.errors import DiskFull, InfrastructureError
from rlhf_ray.files import FileDigest
from rlhf_ray.trainers.checkpoint import Checkpoints, checkpoint_folders
from rlhf_ray.trainers.manifest import Manifest, verify

pytestmark = pytest.mark.unit

WAIT_S = 20


class Counter:
    """A learner whose state is one number; `saving` runs while its file is written."""

    def __init__(self) -> None:
        self.value = self.copied = 0
        self.saving: Callable[[], object] = lambda: None

    def snapshot(self) -> None:
        self.copied = self.value

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        path = folder / "rank-00000.json"
        path.write_text(str(self.copied if from_snapshot else self.value))
        self.saving()
        return [{path.name: FileDigest.of(path)}]


@pytest.fixture
def learner() -> Counter:
    return Counter()


def store(folder: Path, warnings: list[str] | None = None, **section: Any) -> Checkpoints:
    heard = warnings if warnings is not None else []
    return Checkpoints(folder / "checkpoints", CheckpointSection.model_validate(section), heard.append)


def steps(folder: Path) -> list[int]:
    return list(checkpoint_folders(folder / "checkpoints"))


def value(checkpoints: Checkpoints) -> int:
    found = checkpoints.latest()
    assert found is not None
    return int((found.learner / "rank-00000.json").read_text())


def lost() -> None:
    raise InfrastructureError("learner/0 was lost")


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- beside the training -----------------------------------------------------------------------------------------------


def test_what_is_written_is_the_state_of_the_moment_though_training_goes_on(tmp_path: Path, learner: Counter) -> None:
    trained, checkpoints, state = threading.Event(), store(tmp_path), {"kl": 0.5}
    learner.value, learner.saving = 7, lambda: trained.wait(WAIT_S) or pytest.fail("training waits for the disk")
    checkpoints.write(1, state, learner)
    assert checkpoints.poll() == []
    assert steps(tmp_path) == []  # under its name only when it is whole
    learner.value, state["kl"] = 8, 9.0
    trained.set()
    assert checkpoints.finish() == [tmp_path / "checkpoints" / "step-000001"]
    assert checkpoints.poll() == []  # told once
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.state, value(checkpoints)) == (1, {"kl": 0.5}, 7)


def test_synchronous_ones_are_whole_on_return_and_need_no_copy(tmp_path: Path, learner: Counter) -> None:
    checkpoints = store(tmp_path, asynchronous=False)
    learner.value = 3
    checkpoints.write(1, {}, learner)
    assert steps(tmp_path) == [1]
    assert (learner.copied, value(checkpoints)) == (0, 3)
    assert [path.name for path in checkpoints.poll()] == ["step-000001"]


def test_one_is_in_flight_the_next_waits_for_it(tmp_path: Path, learner: Counter) -> None:
    checkpoints, first = store(tmp_path), threading.Event()
    learner.saving = lambda: first.wait(WAIT_S) or pytest.fail("the second did not wait")
    checkpoints.write(1, {}, learner)
    threading.Timer(0.1, first.set).start()
    checkpoints.write(2, {}, learner)
    assert 1 in steps(tmp_path)
    assert [path.name for path in checkpoints.finish()] == ["step-000001", "step-000002"]


def test_a_failure_of_the_writing_is_raised_at_the_next_step(tmp_path: Path, learner: Counter) -> None:
    checkpoints = store(tmp_path)
    learner.saving = lost
    checkpoints.write(1, {}, learner)
    with pytest.raises(InfrastructureError, match="learner/0 was lost"):
        checkpoints.finish()
    assert list((tmp_path / "checkpoints").iterdir()) == []  # nothing half written is left
    learner.saving = lambda: None
    checkpoints.write(2, {}, learner)
    checkpoints.finish()
    assert steps(tmp_path) == [2]


def test_a_run_that_goes_back_is_only_warned_of_a_failed_write(tmp_path: Path, learner: Counter) -> None:
    warnings: list[str] = []
    checkpoints = store(tmp_path, warnings)
    checkpoints.write(1, {}, learner)
    checkpoints.finish()
    learner.saving = lost
    checkpoints.write(2, {}, learner)
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 1
    assert warnings == ["a checkpoint could not be written: learner/0 was lost"]


def test_a_write_that_hangs_does_not_hold_up_the_end_for_ever(tmp_path: Path, learner: Counter) -> None:
    warnings: list[str] = []
    checkpoints, released = store(tmp_path, warnings), threading.Event()
    learner.saving = lambda: released.wait(WAIT_S)
    checkpoints.write(1, {}, learner)
    checkpoints.settle(timeout_s=0.05)
    assert warnings == ["a checkpoint is still being written after 0.05 s: it will not be complete"]
    released.set()
    checkpoints.settle()
    assert steps(tmp_path) == [1]


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_one_checkpoint_not_the_run(tmp_path: Path, learner: Counter) -> None:
    warnings: list[str] = []
    checkpoints = store(tmp_path, warnings)
    learner.saving = full_disk
    checkpoints.write(1, {}, learner)
    checkpoints.settle()
    assert len(warnings) == 1
    assert "cannot write checkpoint 1 into" in warnings[0]
    assert "No space left on device" in warnings[0]
    assert "MiB left); free space, or lower checkpoint.keep_last" in warnings[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []  # its room is given back
    learner.saving = lambda: None
    checkpoints.write(2, {}, learner)
    assert [path.name for path in checkpoints.finish()] == ["step-000002"]


def test_a_last_checkpoint_lost_to_a_full_disk_is_an_error(tmp_path: Path, learner: Counter) -> None:
    checkpoints = store(tmp_path)
    learner.saving = full_disk
    checkpoints.write(1, {}, learner)
    with pytest.raises(DiskFull, match="No space left on device"):
        checkpoints.finish()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, learner: Counter) -> None:
    def read_only() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    checkpoints = store(tmp_path)
    learner.saving = read_only
    checkpoints.write(1, {}, learner)
    with pytest.raises(InfrastructureError, match=rf"into {tmp_path}/checkpoints: Read-only file system; make it"):
        checkpoints.finish()


# -- which ones are kept -----------------------------------------------------------------------------------------------


def write(checkpoints: Checkpoints, learner: Counter, metrics: dict[int, float | None]) -> None:
    for step, metric in metrics.items():
        learner.value = step
        checkpoints.write(step, {}, learner, metric)
    checkpoints.finish()


def test_the_last_ones_are_kept(tmp_path: Path, learner: Counter) -> None:
    write(store(tmp_path, keep_last=2), learner, {1: None, 2: None, 10: None, 11: None})
    assert steps(tmp_path) == [10, 11]


def test_and_the_best_one(tmp_path: Path, learner: Counter) -> None:
    write(store(tmp_path, keep_last=1, best=True), learner, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.9, 5: None, 6: 0.2})
    assert steps(tmp_path) == [2, 6]  # the first of two that are equal


def test_what_a_run_went_back_from_goes(tmp_path: Path, learner: Counter) -> None:
    warnings: list[str] = []
    write(store(tmp_path, keep_last=2), learner, {10: None, 20: None})
    (tmp_path / "checkpoints" / "step-000020" / "state.json").unlink()
    checkpoints = store(tmp_path, warnings, keep_last=1)
    assert value(checkpoints) == 10
    write(checkpoints, learner, {15: None})
    assert steps(tmp_path) == [15]  # the damaged one has not taken its place
    assert warnings == ["checkpoint step-000020 is damaged (state.json is missing); using the one before"]


def test_a_step_is_written_again_by_a_run_that_replays_it(tmp_path: Path, learner: Counter) -> None:
    checkpoints = store(tmp_path)
    write(checkpoints, learner, {1: None})
    learner.value = 5
    checkpoints.write(1, {"attempt": 2}, learner)
    checkpoints.finish()
    assert value(checkpoints) == 5
    folder = tmp_path / "checkpoints" / "step-000001"
    manifest = Manifest.read(folder)
    assert (manifest.step, manifest.attempt, manifest.ranks, manifest.format) == (1, 2, 1, 1)
    assert manifest.package
    assert manifest.bytes == sum((folder / name).stat().st_size for name in manifest.files)


def test_the_old_one_of_a_step_is_there_until_the_new_one_is(
    tmp_path: Path, learner: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To remove it takes long when it is large: a kill there must not leave none."""
    checkpoints, removed = store(tmp_path, keep_last=1, asynchronous=False), list[bool]()

    def remove(folder: Path, ignore_errors: bool) -> None:
        removed.append((tmp_path / "checkpoints" / "step-000001").exists())
        rmtree(folder, ignore_errors=ignore_errors)

    write(checkpoints, learner, {1: None})
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    write(checkpoints, learner, {1: None})
    assert removed == [True]
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def test_the_metric_is_read_back(tmp_path: Path, learner: Counter) -> None:
    checkpoints = store(tmp_path)
    for step, metric in ((1, 0.5), (2, None)):
        write(checkpoints, learner, {step: metric})
        found = checkpoints.latest()
        assert found is not None
        assert found.metric == metric


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path: Path, learner: Counter) -> None:
    half = tmp_path / "checkpoints" / ".step-000009.0123abcd" / "learner"
    half.mkdir(parents=True)
    (half / "rank-00000.json").write_text("9")
    (tmp_path / "checkpoints" / "step-notes").mkdir()  # a person's
    checkpoints = store(tmp_path)
    assert checkpoints.latest() is None
    write(checkpoints, learner, {1: None})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000001", "step-notes"]
    assert verify(tmp_path / "checkpoints" / "step-000001") == []


def test_a_state_that_is_no_json_is_refused_at_once(tmp_path: Path, learner: Counter) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        store(tmp_path).write(1, {"callbacks": object()}, learner)
