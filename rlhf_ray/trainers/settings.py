"""The settings that decide what a stage makes; not where it runs, what it logs, or how often it saves."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.config.base import Section

#: Keys, or beginnings of keys, that change nothing about what a stage makes.
IRRELEVANT = (
    *("run.name", "run.root", "resources.", "learner.ranks", "generation.replicas", "tracking."),
    *("checkpoint.every", "checkpoint.keep_last", "checkpoint.asynchronous"),
    *("data.memory_mib", "data.spill_folder", "guards.min_free_disk_mib", "show_samples", "evaluation.show_samples"),
)


def deciding_settings(section: Section) -> dict[str, Any]:
    """Dotted key -> value."""
    return {key: value for key, value in _flat(section.model_dump(mode="json")) if not key.startswith(IRRELEVANT)}


def settings_digest(section: Section) -> str:
    """Equal for runs that would make the same of the same data."""
    return hashlib.sha256(json.dumps(deciding_settings(section), sort_keys=True).encode()).hexdigest()[:16]


def _flat(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value
