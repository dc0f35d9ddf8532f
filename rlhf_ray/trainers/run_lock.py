"""One process per run folder: a lock that the system takes back when its holder is gone, however that ended.

`<run>/lock` is locked by flock(2) while the run goes on. Its content only names the holder; the file itself stays.
"""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rlhf_ray.errors import ConfigError
from rlhf_ray.files import disk_errors
from rlhf_ray.tracking.record import now

LOCK_FILE = "lock"
#: A holder that was killed is gone by then, and who only looked at the lock too.
PATIENCE_S = 2.0
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Holder:
    """The process that runs in a folder."""

    pid: int
    host: str
    started: str  # ISO 8601

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


class RunLock:
    """The lock of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: IO[str] | None = None

    def acquire(self, warn: Callable[[str], object]) -> None:
        """Hold the lock until `release`, or until this process ends. `warn` hears of a file system without locks.

        Raises:
            ConfigError: another process holds it, or this one already does.
        """
        with disk_errors("its lock", self._path.parent):
            file = self._path.open("a+", encoding="utf-8")
            try:
                if not _lock(file, PATIENCE_S):
                    raise ConfigError(
                        f"{self._path.parent} is in use by {_read(file) or 'another process'}; wait for its end, or "
                        "choose another run.name"
                    )
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                warn(f"the file system of {self._path.parent} has no locks: nothing keeps a second run out of it")
            except ConfigError:
                file.close()
                raise
            file.truncate(0)
            file.write(json.dumps(asdict(Holder(os.getpid(), platform.node(), now()))))
            file.flush()
        self._file = file

    @contextmanager
    def held(self, warn: Callable[[str], object]) -> Iterator[None]:
        """`acquire` it for as long as the block runs."""
        self.acquire(warn)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()  # and with it the lock
            self._file = None


def is_held(folder: Path, patient: bool = False) -> Holder | bool:
    """Who runs in `folder`: the holder of its lock, True for one that is not named, False for nobody.

    `patient`: a holder is given PATIENCE_S to be gone.
    """
    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            return False if _lock(file, PATIENCE_S if patient else 0.0, shared=True) else _read(file) or True
    except OSError:
        return False


def _lock(file: IO[str], patience_s: float = 0.0, shared: bool = False) -> bool:
    """Lock `file`, trying so long; whether that succeeded."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _read(file: IO[str]) -> Holder | None:
    file.seek(0)
    try:
        return Holder(**json.load(file))
    except (ValueError, TypeError):
        return None
