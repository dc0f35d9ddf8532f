"""A checkpoint that is not byte for byte what was written is found out, and the one before is used."""

import errno
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_ray.config.common import CheckpointSection
from rlhf_ray.errors import ConfigError, DiskFull, InfrastructureError
from rlhf_ray.files import FileDigest, disk_errors, write_whole
from rlhf_ray.trainers.checkpoint import Checkpoint, Checkpoints
from rlhf_ray.trainers.manifest import FORMAT, MANIFEST, Manifest, verify
from rlhf_ray.trainers.run_lock import RunLock, is_held

pytestmark = pytest.mark.unit

TENSORS, DESCRIPTION, STATE = "learner/rank-00000.safetensors", "learner/rank-00000.json", "state.json"
FILES = (TENSORS, DESCRIPTION, STATE, MANIFEST)


class Rank:
    """A learner of one rank with a few weights, in the formats of the real one."""

    weight = 0.0

    def snapshot(self) -> None: ...

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        save_file({"policy/weight/w": np.full((3, 4), self.weight, np.float32)}, folder / "rank-00000.safetensors")
        (folder / "rank-00000.json").write_text(json.dumps({"offsets": {"policy/weight/w": 0}, "ranks": 1}))
        return [{path.name: FileDigest.of(path) for path in folder.iterdir()}]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints, rank = Checkpoints(folder, CheckpointSection(asynchronous=False), pytest.fail), Rank()
    for step in (1, 2):
        rank.weight = float(step)
        checkpoints.write(step, {"attempt": 0, "kl": {"coef": 0.1 * step}}, rank, metric=0.5)
    checkpoints.finish()
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole one, and what was said on the way to it."""
    warnings: list[str] = []
    return Checkpoints(folder, CheckpointSection(), warnings.append).latest(), warnings


def assert_the_one_before_is_used(folder: Path, said: str) -> None:
    found, (warning,) = latest(folder)
    assert found is not None
    assert (found.step, found.state["kl"]["coef"]) == (1, 0.1)
    assert load_file(found.folder / TENSORS)["policy/weight/w"][0, 0] == 1.0
    assert warning.startswith("checkpoint step-000002 is damaged (")
    assert warning.endswith("); using the one before")
    assert said in warning


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / "step-000002" / name).unlink()
    assert_the_one_before_is_used(folder, f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file(folder: Path, name: str) -> None:
    (folder / "step-000002" / name).unlink()
    (folder / "step-000002" / name).mkdir()
    assert_the_one_before_is_used(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == folder / "step-000002" / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    assert_the_one_before_is_used(folder, f"{name} is unreadable (")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_off(folder: Path, name: str, keep: float) -> None:
    path = folder / "step-000002" / name
    os.truncate(path, int(path.stat().st_size * keep))
    assert_the_one_before_is_used(folder, f"{name} is unreadable" if name == MANIFEST else f"{name} has ")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_grown(folder: Path, name: str) -> None:
    with (folder / "step-000002" / name).open("ab") as file:
        file.write(b"x")
    assert_the_one_before_is_used(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_is_flipped_anywhere(folder: Path, name: str) -> None:
    path = folder / "step-000002" / name
    content = path.read_bytes()
    for place in range(0, len(content), max(len(content) // 300, 1)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        problems = verify(folder / "step-000002")
        assert len(problems) == 1, f"byte {place}"
        assert name in problems[0]
    assert_the_one_before_is_used(folder, name)


def test_what_is_wrong_with_a_file_is_said(folder: Path) -> None:
    step = folder / "step-000002"
    header, state = bytearray((step / TENSORS).read_bytes()), bytearray((step / STATE).read_bytes())
    header[0] ^= 0xFF  # the length of the header
    state[0] ^= 0xFF
    (step / TENSORS).write_bytes(header)
    (step / STATE).write_bytes(state)
    os.truncate(step / DESCRIPTION, 3)
    problems = {problem.split()[0]: problem for problem in verify(step)}
    assert "does not match its checksum, its header is unreadable" in problems[TENSORS]
    assert "has 3 bytes instead of" in problems[DESCRIPTION]
    assert "does not match its checksum, it is no JSON" in problems[STATE]


def test_all_damaged_means_none(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-00000{step}" / STATE).unlink()
    found, warnings = latest(folder)
    assert found is None
    assert len(warnings) == 2


def test_an_undamaged_one_has_no_problems_and_may_be_asked_for(folder: Path) -> None:
    assert verify(folder / "step-000002") == []
    found = Checkpoints(folder, CheckpointSection(), pytest.fail).latest(up_to=1)
    assert found is not None
    assert found.step == 1


# -- versions of the format --------------------------------------------------------------------------------------------


def test_a_later_format_is_refused_and_not_skipped(folder: Path) -> None:
    step = folder / "step-000002"
    written = Manifest.read(step)
    Manifest(2, written.files, package="9.9", format=FORMAT + 1).write(step)
    with pytest.raises(ConfigError, match=r"step-000002 has format 2, written by rlhf-ray 9\.9; .*: update rlhf-ray"):
        latest(folder)


def test_format_0_is_read(folder: Path) -> None:
    step = folder / "step-000002"
    files = json.loads((step / MANIFEST).read_text())["files"]
    (step / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    found, warnings = latest(folder)
    assert found is not None
    assert (found.step, warnings) == (2, [])
    assert Manifest.read(step).format == 0
    os.truncate(step / STATE, 5)
    assert_the_one_before_is_used(folder, "state.json has 5 bytes")


# -- nothing is unpickled ----------------------------------------------------------------------------------------------


def test_a_pickled_object_in_a_checkpoint_is_never_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    step = folder / "step-000002"
    (step / "state.pkl").write_bytes(pickle.dumps({"x": 1}))  # no file of the manifest: nobody looks at it
    found, warnings = latest(folder)
    assert found is not None
    assert (found.step, warnings) == (2, [])
    (step / STATE).write_bytes(pickle.dumps({"x": 1}))
    assert_the_one_before_is_used(folder, "state.json has")


# -- a disk that is really full ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


class LargeRank(Rank):
    """Two megabytes."""

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        with disk_errors("the state of learner rank 0", folder):
            save_file({"w": np.zeros(1 << 19, np.float32)}, folder / "rank-00000.safetensors")
        return []


def test_a_full_disk_leaves_no_half_checkpoint_and_room_for_the_next(small_disk: Path) -> None:
    warnings: list[str] = []
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointSection(), warnings.append)
    checkpoints.write(1, {}, LargeRank())
    checkpoints.settle()
    assert "No space left on device" in warnings[0]
    assert list((small_disk / "checkpoints").iterdir()) == []
    checkpoints.write(2, {}, Rank())
    assert [path.name for path in checkpoints.finish()] == ["step-000002"]
    checkpoints.write(3, {}, LargeRank())
    with pytest.raises(DiskFull, match=r"the state of learner rank 0 into .*\(\d+ MiB left\)"):
        checkpoints.finish()


def test_a_text_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    write_whole(small_disk / "state.json", "old")
    with pytest.raises(DiskFull), disk_errors("a text", small_disk):
        write_whole(small_disk / "state.json", "new" * (1 << 20))
    assert (small_disk / "state.json").read_text() == "old"
    assert os.listdir(small_disk) == ["state.json"]


def test_a_read_only_folder_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointSection(), pytest.fail)
    checkpoints.write(1, {}, Rank())
    with pytest.raises(InfrastructureError, match=r"into .*/checkpoints: Read-only file system; make it writable"):
        checkpoints.finish()
    with pytest.raises(InfrastructureError, match=r"cannot write its lock into .*: Read-only file system"):
        RunLock(small_disk).acquire(pytest.fail)
    assert not is_held(small_disk)
