"""The manifest of a checkpoint: which files it consists of, what is in them, and who wrote it.

MANIFEST.json  {"format": 1, "step": 10, "ranks": 2, ..., "files": {"state.json": {"bytes": 812, "sha256": "..."}, ...},
                "sha256": of all the rest of this file's content}

Format 0, written by 0.1.0, had the files only.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf_ray.errors import ConfigError
from rlhf_ray.files import FileDigest, write_whole

MANIFEST = "MANIFEST.json"
FORMAT = 1


class Damaged(Exception):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    files: Mapping[str, FileDigest]
    ranks: int | None = None  # None, here and below: format 0 does not say
    attempt: int | None = None
    metric: float | None = None  # higher is better; None also where nothing was measured
    package: str | None = None  # version of rlhf-ray that wrote it
    written: str | None = None  # ISO 8601
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def write(self, folder: Path) -> None:
        """Last of all files: a checkpoint without it is none."""
        content = asdict(self) | {"files": {name: asdict(file) for name, file in self.files.items()}}
        write_whole(folder / MANIFEST, json.dumps(content | {"sha256": _digest(content)}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of the checkpoint in `folder`.

        Raises:
            Damaged: it is missing, or not as it was written.
            ConfigError: a later version of this package wrote it.
        """
        try:
            content = json.loads((folder / MANIFEST).read_bytes())
            files = {name: FileDigest(**file) for name, file in content["files"].items()}
        except FileNotFoundError:
            raise Damaged(f"{MANIFEST} is missing") from None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise Damaged(f"{MANIFEST} is unreadable ({error})") from error
        if content.keys() == {"files"}:
            return cls(int(folder.name.removeprefix("step-")), files, format=0)
        if content.pop("sha256", None) != _digest(content):
            raise Damaged(f"{MANIFEST} does not match its own checksum")
        if content["format"] > FORMAT:
            raise ConfigError(
                f"{folder} has format {content['format']}, written by rlhf-ray {content.get('package')}; this version "
                f"reads up to format {FORMAT}: update rlhf-ray"
            )
        return cls(**content | {"files": files})

    def problems(self, folder: Path) -> Iterator[str]:
        """What is wrong with the files in `folder`, one line each."""
        for name, expected in self.files.items():
            try:
                yield from _problems(folder / name, name, expected)
            except OSError as error:  # of a disk that fails, or gone since: another process prunes
                yield f"{name} is unreadable ({error.strerror})"


def _problems(path: Path, name: str, expected: FileDigest) -> Iterator[str]:
    """At most one. Raises OSError for a file that cannot be read."""
    if not path.is_file():
        yield f"{name} is missing"
    elif (size := path.stat().st_size) != expected.bytes:
        yield f"{name} has {size:,} bytes instead of {expected.bytes:,}"
    elif FileDigest.of(path) != expected:
        yield f"{name} does not match its checksum{_unreadable(path)}"


def verify(folder: Path) -> list[str]:
    """What is wrong with the checkpoint in `folder`, one line per file; every byte is read.

    Raises ConfigError for one that a later version of this package wrote.
    """
    try:
        return list(Manifest.read(folder).problems(folder))
    except Damaged as damage:
        return [str(damage)]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unreadable(path: Path) -> str:
    """Whether a damaged file cannot even be read, as a part of the sentence."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safe_open(path, "np"):
                pass
    except ValueError as error:
        return f", it is no JSON ({error})"
    except SafetensorError as error:
        return f", its header is unreadable ({error})"
    return ""
