"""What data is like: lengths, turns, how many responses per prompt, how often the longer response was preferred."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.entries import Entry, EntryReader, Kind
from rlhf_ray.data.findings import Findings
from rlhf_ray.data.lengths import BATCH, LengthCheck
from rlhf_ray.data.walk import visits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS: dict[Kind, tuple[str, ...]] = {
    "preferences": ("prompt", "chosen", "rejected"),
    "demonstrations": ("prompt", "response"),
    "prompts": ("prompt",),
}
_QUANTILES = {"min": 0, "median": 50, "p95": 95, "max": 100}


@dataclass
class Stats:
    """Of each entry (a pair, a demonstration, a prompt) stay a few numbers: 4 bytes per length, 8 for its prompt."""

    kind: Kind
    rows: int = 0
    unread: int = 0  # rows with an error: see check
    entries: int = 0
    ties: int = 0
    chosen_longer: int = 0
    turns: Counter[int] = field(default_factory=Counter)  # messages of a prompt -> entries
    characters: dict[str, "array[int]"] = field(default_factory=dict)
    tokens: dict[str, "array[int]"] = field(default_factory=dict)
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))  # hashes

    def add(self, entry: Entry) -> None:
        prompt = "" if entry.prompt is None else entry.prompt
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        lengths = [sum(map(len, texts)), *map(len, entry.responses)]
        _extend(self.characters, PARTS[self.kind], lengths)
        self.entries += 1
        self.turns[len(texts)] += 1
        self.prompts.append(xxhash.xxh64_intdigest(repr(entry.prompt).encode()))
        if self.kind == "preferences":
            self.chosen_longer += lengths[1] > lengths[2]

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": self.kind,
            "rows": self.rows,
            "unread": self.unread,
            "entries": self.entries,
            "different_prompts": len(np.unique(np.frombuffer(self.prompts, np.uint64))) if self.prompts else 0,
            "messages_per_prompt": dict(sorted(self.turns.items())),
            "characters": {part: _summary(values) for part, values in self.characters.items()},
        }
        if self.tokens:
            found["tokens"] = {part: _summary(values) for part, values in self.tokens.items()}
        if self.kind == "preferences":
            found |= {"ties": self.ties, "chosen_is_longer": self.chosen_longer / max(self.entries, 1)}
        return found


def stats(section: DataSection, kind: Kind, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Stats:
    """Read every row of the section's source; with a tokenizer lengths are in tokens, too."""
    result = Stats(kind)
    lengths = LengthCheck(section, tokenizer) if tokenizer is not None else None
    reader = EntryReader(section, lengths.renderer.opened) if lengths else EntryReader(section)
    for visit in visits(section, reader):
        result.rows += 1
        result.unread += visit.problem is not None
        for entry in visit.entries:
            result.add(entry)
        if lengths and visit.entries:
            lengths.wait(visit.number, visit.entries, Findings())
            if lengths.waiting >= BATCH:
                _measure(result, lengths)
    if lengths:
        _measure(result, lengths)
    result.ties = reader.ties
    return result


def _measure(result: Stats, lengths: LengthCheck) -> None:
    for _, tokens in lengths.measured():
        _extend(result.tokens, PARTS[result.kind], tokens)


def _extend(columns: dict[str, "array[int]"], parts: tuple[str, ...], lengths: list[int]) -> None:
    for part, length in zip(parts, lengths, strict=True):
        columns.setdefault(part, array("I")).append(length)


def _summary(values: "array[int]") -> dict[str, float]:
    numbers = np.frombuffer(values, np.uint32)
    quantiles = np.percentile(numbers, list(_QUANTILES.values()))
    return {"mean": float(numbers.mean()), **dict(zip(_QUANTILES, map(float, quantiles), strict=True))}
