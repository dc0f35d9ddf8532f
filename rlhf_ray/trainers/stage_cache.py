"""Which stages of a pipeline need not run again: what each was made from, held against what it would be made from now.

    cache = StageCache(Path("runs/all"))
    ingredients = Ingredients.of(section, models)
    plan = cache.plan("sft", ingredients)        # skip it, go on with it, or begin anew; and why

A stage is made from its resolved configuration and from the content of all that it names: data, local models, what
earlier stages left, the source files of functions. `<run>/pipeline.json` keeps that for every stage. Models and
datasets of the hub count by name and revision. Where a run lies, on what it runs, what it logs and how often it saves
do not count.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import xxhash

from rlhf_ray.config.base import Section
from rlhf_ray.config.load import code_carriers
from rlhf_ray.config.rlhf import stage_named
from rlhf_ray.importing import walk
from rlhf_ray.trainers.run_folder import CONFIG_FILE
from rlhf_ray.trainers.settings import deciding_settings

RECORD = "pipeline.json"
#: Stages that were run anew leave their earlier run in this folder.
EARLIER = "earlier"
#: How long a stage is. One that only became longer goes on from its last checkpoint.
LENGTHS = {"sft.epochs", "reward.epochs", "dpo.epochs", "ppo.epochs", "ppo.iterations"}
_FUNCTIONS = ("function", "preprocess")
_CHUNK, _LARGE = 1 << 24, 1 << 26  # bytes


@dataclass(frozen=True)
class Ingredients:
    """What a stage is made from."""

    settings: dict[str, Any]  # dotted key -> value
    contents: dict[str, str]  # path, import path or placeholder -> digest

    @classmethod
    def of(cls, section: Section, models: Mapping[str, Path]) -> "Ingredients":
        """Of a stage whose placeholders stand for these models. Raises ConfigError for a function that is not there."""
        settings = deciding_settings(section)
        carried = code_carriers(section)
        contents = {f"{name}.function": _digest(one.code or b"") for name, one in carried.items()}
        for key, value in settings.items():
            if key not in contents:
                contents |= _contents(key, value, models)
        return cls(settings, contents)

    def changes(self, since: "Ingredients") -> dict[str, str]:
        """What is different now: the key or content that changed, and how."""
        found = {}
        for key in dict.fromkeys([*since.settings, *self.settings]):
            before, now = since.settings.get(key), self.settings.get(key)
            if before != now:
                found[key] = f"{key} was {before!r}, is {now!r}"
        for name in self.contents:
            if name in since.contents and since.contents[name] != self.contents[name]:
                found[name] = f"the content of {name} changed"
        return found

    def only_longer(self, since: "Ingredients") -> bool:
        """Whether this is the stage as it was, but longer: its first steps would be the same ones."""
        changed = self.changes(since)
        return (
            bool(changed)
            and changed.keys() <= LENGTHS
            and self.settings.get("learner.schedule") == "constant"
            and not self.settings.get("learner.warmup_ratio")
            and all((since.settings[key] or 0) < (self.settings[key] or 0) for key in changed)
        )


@dataclass(frozen=True)
class Plan:
    """What to do with a stage, and why."""

    action: Literal["run", "resume", "skip"]
    why: str


class StageCache:
    """The stages in the folder of a pipeline, and what they were made from."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def plan(self, stage: str, ingredients: Ingredients, anew: bool = False) -> Plan:
        """Skip a stage that is as it would become, go on with one that is not finished, else run it."""
        entry, folder = self._entries().get(stage), self.root / stage
        if not (folder / CONFIG_FILE).is_file() and not (entry and entry["finished"]):
            return Plan("run", "it has not run yet")
        if anew:
            return Plan("run", "it is asked for")
        if entry is None:
            return Plan("run", f"{RECORD} does not say what the run in {folder} was made from")
        since = Ingredients(entry["settings"], entry["contents"])
        if ingredients.only_longer(since):
            return Plan("resume", "it became longer")
        if changes := ingredients.changes(since):
            return Plan("run", "; ".join(changes.values()))
        if not entry["finished"]:
            return Plan("resume", "it did not finish")
        if missing := [name for name in entry["leaves"] if not (folder / name).exists()]:
            return Plan("run", f"its {', '.join(missing)} is gone")
        return Plan("skip", f"unchanged since {entry['finished']}")

    def begin(self, stage: str, ingredients: Ingredients, action: str) -> Path | None:
        """Note that the stage starts now. A run to be replaced moves aside: returns where it lies then."""
        aside = self._set_aside(stage) if action == "run" else None
        self._write(stage, {**asdict(ingredients), "finished": None})
        return aside

    def finish(self, stage: str, leaves: list[str]) -> None:
        """Note that the stage is complete; `leaves` are the names in its folder without which it is not."""
        entry = self._entries()[stage]
        self._write(stage, {**entry, "finished": time.strftime("%Y-%m-%d %H:%M:%S"), "leaves": leaves})

    def finished(self, stage: str) -> bool:
        return bool(self._entries().get(stage, {}).get("finished"))

    def _set_aside(self, stage: str) -> Path | None:
        folder = self.root / stage
        if not folder.is_dir():
            return None
        if not (folder / CONFIG_FILE).is_file():  # it never began
            shutil.rmtree(folder)
            return None
        number = 1 + sum(1 for _ in self.root.glob(f"{EARLIER}/{stage}-*"))
        aside = self.root / EARLIER / f"{stage}-{number}"
        aside.parent.mkdir(exist_ok=True)
        return folder.rename(aside)

    def _entries(self) -> dict[str, Any]:
        record = self.root / RECORD
        return json.loads(record.read_text()) if record.is_file() else {}

    def _write(self, stage: str, entry: dict[str, Any]) -> None:
        """Whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        aside = self.root / f".{RECORD}"
        aside.write_text(json.dumps(self._entries() | {stage: entry}, indent=1))
        aside.replace(self.root / RECORD)


def content_digest(path: Path) -> str:
    """Of a file's bytes, or of a folder's files with their names; hidden ones and links to nowhere are left out."""
    if path.is_file():
        return _file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    named = (f"{file.relative_to(path)}\0{_file_digest(file)}\n" for file in files)
    return _digest("".join(named).encode())


def _contents(key: str, value: Any, models: Mapping[str, Path]) -> dict[str, str]:
    """The digests of what a setting names; none for one that names nothing."""
    if isinstance(value, list):
        return {name: digest for item in value for name, digest in _contents(key, item, models).items()}
    if not isinstance(value, str):
        return {}
    if (stage := stage_named(value)) is not None:
        return {value: content_digest(models[stage])}
    if os.path.exists(os.path.expanduser(value)):
        return {value: content_digest(Path(value).expanduser())}
    if key.rpartition(".")[2] in _FUNCTIONS and ":" in value:
        source = walk(value, key)[0].__file__
        return {value: _file_digest(Path(source))} if source else {}
    return {}


def _file_digest(path: Path) -> str:
    """A large file is read once per process and date: several stages may name the same model."""
    found = path.stat()
    return _read(path) if found.st_size < _LARGE else _read_once(path.absolute(), found.st_size, found.st_mtime_ns)


@cache
def _read_once(path: Path, size: int, changed_ns: int) -> str:
    return _read(path)


def _read(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)
