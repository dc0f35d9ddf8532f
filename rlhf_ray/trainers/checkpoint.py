"""Checkpoints: written beside the training, aside, synced, renamed; a damaged one is skipped for the one before.

checkpoints/step-000010/
  learner/rank-00000.safetensors, rank-00000.json     shards of weights and optimiser, random states
  state.json                                          everything else
  MANIFEST.json                                       lengths and SHA-256 of all other files; written last

The training path pays for a copy of the learner's state in host memory; the ranks write it, and a thread of the driver
completes the checkpoint, while the next iterations run. At most one is in flight: the next one waits for it.
"""

import json
import math
import re
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray import __version__, faults
from rlhf_ray.config.common import CheckpointSection
from rlhf_ray.errors import DiskFull
from rlhf_ray.files import FileDigest, disk_errors, sync, write_whole
from rlhf_ray.tracking.record import now
from rlhf_ray.trainers.manifest import Damaged, Manifest, verify

STATE_FILE = "state.json"


class Sharded(Protocol):
    """A learner, seen from here."""

    def snapshot(self) -> None:
        """Copy the state, so that training may go on while it is written."""

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        """Write the last snapshot, or the state as it is; per rank the files in `folder`, which are on disk."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]
    metric: float | None = None  # what `write` was given

    @property
    def learner(self) -> Path:
        return self.folder / "learner"


class Checkpoints:
    """The checkpoints of one run: the last `keep_last`, and with `best` the one of the highest metric too.

    Its methods are for one thread. `warn` hears of checkpoints that are damaged or could not be written.
    """

    def __init__(self, folder: Path, section: CheckpointSection, warn: Callable[[str], object]) -> None:
        self.folder, self._section, self._warn = folder, section, warn
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._whole: list[Path] = []  # since the last `poll`
        self._lost: DiskFull | None = None  # why the newest one is not there

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, step: int, state: dict[str, Any], learner: Sharded, metric: float | None = None) -> None:
        """Begin checkpoint `step` of the state that `learner` has now; it exists under its name only when it is whole.

        Args:
            state: JSON values; what of the run is not in the learner.
            metric: what the policy achieved, higher is better; None: it was not measured.

        Raises:
            InfrastructureError: the one before could not be written (unless the disk was full), or this one, where
                `checkpoint.asynchronous` is off.
        """
        self._collect()
        asynchronous, text = self._section.asynchronous, json.dumps(state, indent=1)
        if asynchronous:
            learner.snapshot()
        metric = metric if metric is not None and math.isfinite(metric) else None
        draft = Manifest(step, {}, attempt=state.get("attempt"), metric=metric, package=__version__, written=now())
        self._writing = self._thread.submit(self._write, draft, text, learner, asynchronous)
        if not asynchronous:
            self._collect()

    def poll(self) -> list[Path]:
        """Checkpoints that became whole since the last call. Raises what a write has failed with, as `write` does."""
        if self._writing is not None and self._writing.done():
            self._collect()
        whole, self._whole = self._whole, []
        return whole

    def finish(self) -> list[Path]:
        """As `poll`, after the write in flight; raises DiskFull where the last one was lost to a full disk."""
        self._collect()
        if self._lost is not None:
            raise self._lost
        return self.poll()

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait for the write in flight; its failure is a warning: for a run that ends, or that goes back."""
        if self._writing is not None and wait_for([self._writing], timeout_s).not_done:
            self._warn(f"a checkpoint is still being written after {timeout_s:g} s: it will not be complete")
            return
        try:
            self._collect()
        except Exception as error:
            self._warn(f"a checkpoint could not be written: {error}")

    def _collect(self) -> None:
        """Wait for the write in flight. A full disk is a warning: there may be room the next time."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self._whole.append(writing.result())
            self._lost = None
        except DiskFull as error:
            self._lost = error
            self._warn(f"{error}. The run goes on, and tries again at its next checkpoint.")

    def _write(self, draft: Manifest, state: str, learner: Sharded, from_snapshot: bool) -> Path:
        final = self.folder / f"step-{draft.step:06d}"
        aside = _hidden(final)
        with disk_errors(f"checkpoint {draft.step}", self.folder):
            try:
                self._clear()
                (aside / "learner").mkdir(parents=True)
                ranks = learner.save(aside / "learner", from_snapshot)
                sync(aside / "learner")
                faults.reach("checkpointing")
                write_whole(aside / STATE_FILE, state)
                files = {f"learner/{name}": file for rank in ranks for name, file in rank.items()}
                files[STATE_FILE] = FileDigest.of(aside / STATE_FILE)
                replace(draft, files=files, ranks=len(ranks)).write(aside)
                old = final.rename(_hidden(final)) if final.exists() else None
                aside.rename(final)  # at once: a kill between the two leaves neither
                sync(self.folder)
                sync(self.folder.parent)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            faults.reach("checkpointed")
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
            self._prune(draft.step)
        return final

    def _prune(self, newest: int) -> None:
        """Keep the last ones up to `newest`, and the best; later ones are of a past that the run went back from."""
        folders = {step: folder for step, folder in self._folders().items() if step <= newest}
        kept = set(sorted(folders)[-self._section.keep_last :])
        if self._section.best and (best := self._best(folders)) is not None:
            kept.add(best)
        for step, folder in self._folders().items():
            if step not in kept:
                self._discard(folder)

    def _best(self, folders: dict[int, Path]) -> int | None:
        """The step of the highest metric, the earliest of several."""
        metrics = {}
        for step, folder in folders.items():
            try:
                metric = Manifest.read(folder).metric
            except Damaged:
                continue
            if metric is not None:
                metrics[step] = metric
        return max(metrics, key=lambda step: (metrics[step], -step)) if metrics else None

    def _discard(self, folder: Path) -> None:
        """Remove a checkpoint: under its name it is there whole, or not at all."""
        if folder.exists():
            gone = folder.rename(_hidden(folder))
            shutil.rmtree(gone, ignore_errors=True)  # what is left of it goes with the next checkpoint

    def _clear(self) -> None:
        """Remove what a process that was killed left."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    # -- reading -----------------------------------------------------------------------------------------------------

    def latest(self, up_to: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint (of a step `up_to` at most), after the write in flight.

        Raises:
            ConfigError: a later version of this package wrote it.
        """
        self.settle()
        for step, folder in sorted(self._folders().items(), reverse=True):
            if up_to is not None and step > up_to:
                continue
            if not (problems := verify(folder)):
                state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
                return Checkpoint(folder, step, state, Manifest.read(folder).metric)
            self._warn(f"checkpoint {folder.name} is damaged ({'; '.join(problems)}); using the one before")
        return None

    def _folders(self) -> dict[int, Path]:
        return checkpoint_folders(self.folder)


def _hidden(folder: Path) -> Path:
    """A name for what is not there yet, or no longer; a new one each time.

    Ranks of a driver that was killed may still be writing under theirs.
    """
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")


def checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint, of all in `folder`, in the order of their steps; damaged ones too."""
    named = {match: path for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))}
    return dict(sorted((int(match[1]), path) for match, path in named.items()))
