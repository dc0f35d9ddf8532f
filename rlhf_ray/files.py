"""Files that outlive a crash: on disk before they count, whole or not there; a full disk told from other errors."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from rlhf_ray.errors import DiskFull, InfrastructureError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
UNSYNCED = (errno.EINVAL, errno.ENOTSUP)  # said of folders by file systems that cannot sync these
MIB = 2**20


@dataclass(frozen=True)
class FileDigest:
    """What a file holds: its length in bytes and its SHA-256."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileDigest":
        with path.open("rb") as file:
            return cls(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(descriptor)


def aside_name(name: str) -> str:
    """Under which a file of this name is written before it is whole."""
    return f".{name}.partial"


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by a file of `text`, on disk when this returns; a crash leaves the old one or the new one."""
    aside = path.with_name(aside_name(path.name))
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A name for a folder to be written, which takes the place of `folder` and of all in it when the block ends well.

    A crash leaves the old one whole, the new one, or neither; never some of both.
    """
    aside, old = folder.with_name(aside_name(folder.name)), folder.with_name(f".{folder.name}.old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    yield aside
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Raise errors of writing `what` into `folder` as this package's own.

    Raises:
        DiskFull: there is no room left, or no quota.
        InfrastructureError: anything else that the file system refused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _code(error)
        reason = f"cannot write {what} into {folder}: {os.strerror(code) if code else error}"
        if code in FULL:
            raise DiskFull(f"{reason} ({_free(folder)}); free space, or lower checkpoint.keep_last") from error
        if code in FORBIDDEN:
            raise InfrastructureError(f"{reason}; make it writable and resume the run") from error
        raise InfrastructureError(f"{reason}; see to the disk and resume the run") from error


def _code(error: Exception) -> int | None:
    """The system's number of the error; safetensors, in Rust, has it in the text only, older ones as `code: 28`."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(found[1]) if found else None


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free // MIB:,} MiB left"
