"""Checkpoints: written aside, synced, renamed, with a manifest of checksums; a torn one is skipped for the one before.

checkpoints/step-000010/
  learner/rank-00000.safetensors, rank-00000.json     shards of weights and optimiser
  state.json                                          everything else
  MANIFEST.json                                       sizes and SHA-256 of all other files; written last
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray import faults

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def learner(self) -> Path:
        return self.folder / "learner"


class Checkpoints:
    """The checkpoints of one run; keeps the last `keep_last`."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def write(self, step: int, state: dict[str, Any], save_learner: Callable[[Path], None]) -> Path:
        """Write checkpoint `step`; it exists under its name only when it is whole."""
        final = self.folder / f"step-{step:06d}"
        aside = self.folder / f".step-{step:06d}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "learner").mkdir(parents=True)
        save_learner(aside / "learner")
        faults.reach("checkpointing")
        (aside / "state.json").write_text(json.dumps(state, indent=1))
        _write_manifest(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(self.folder)
        faults.reach("checkpointed")
        for old in self._folders()[: -self.keep_last]:
            shutil.rmtree(old)
        return final

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are what its manifest says; `warn` hears of each that is not."""
        for folder in reversed(self._folders()):
            problem = verify(folder)
            if problem is None:
                state = json.loads((folder / "state.json").read_text())
                return Checkpoint(folder, int(folder.name.removeprefix("step-")), state)
            warn(f"checkpoint {folder.name} is damaged ({problem}); using the one before")
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def verify(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"no readable manifest: {error}"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _digest(path) != entry["sha256"]:
            return f"{name} does not match its checksum"
    return None


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    entries = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1))
    _sync(folder / MANIFEST)
    _sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
