"""One process per run folder: who holds it is named, and who is dead does not."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers import run_lock
from rlhf_ray.trainers.run_lock import Holder, RunLock, is_held

pytestmark = pytest.mark.unit

#: A process with the lock of its argument, and a child of its own that outlives it.
HOLDER = """
import subprocess, sys
from pathlib import Path
from rlhf_ray.trainers.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire(print)
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.05)


def test_a_second_run_is_refused_and_the_holder_named(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire(pytest.fail)
    me = f"process {os.getpid()} on {platform.node()}, since 20"
    with pytest.raises(ConfigError, match=f"{tmp_path} is in use by {me}.*choose another run.name"):
        second.acquire(pytest.fail)
    holder = is_held(tmp_path)
    assert isinstance(holder, Holder)
    assert str(holder).startswith(me)
    first.release()
    assert is_held(tmp_path) is False
    second.acquire(pytest.fail)
    second.release()


def test_it_is_held_for_as_long_as_a_block_runs(tmp_path: Path) -> None:
    def fail() -> None:
        with RunLock(tmp_path).held(pytest.fail):
            assert is_held(tmp_path)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert not is_held(tmp_path)


def test_to_look_at_it_takes_nothing(tmp_path: Path) -> None:
    assert is_held(tmp_path) is False
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_was_killed_holds_no_longer(tmp_path: Path) -> None:
    """Its child, which lives on, has not inherited the lock."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        held = is_held(tmp_path)
        assert isinstance(held, Holder)
        assert held.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        RunLock(tmp_path).acquire(pytest.fail)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_holder_that_is_not_named_is_one_too(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(tmp_path) is True
        with pytest.raises(ConfigError, match="is in use by another process"):
            RunLock(tmp_path).acquire(pytest.fail)


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    warnings: list[str] = []
    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = RunLock(tmp_path)
    lock.acquire(warnings.append)
    lock.release()
    assert warnings == [f"the file system of {tmp_path} has no locks: nothing keeps a second run out of it"]
