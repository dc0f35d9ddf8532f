"""Checks of data before it costs an hour: every row read, every fault with its line and reason.

Of the rows stay hashes only (32 bytes each), so that files larger than memory are checked, too.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.entries import Entry, EntryReader, Kind
from rlhf_ray.data.findings import Findings, Problem
from rlhf_ray.data.lengths import LengthCheck
from rlhf_ray.data.transcripts import HUMAN
from rlhf_ray.data.turns import Prompt
from rlhf_ray.data.walk import Visit, unit, visits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_HASH = 0  # in `swapped`, of a row that is no single pair


@dataclass
class Hashes:
    """One entry per sound row, uint64: its number, and hashes of its content, of its prompt, and of its content with
    chosen and rejected exchanged."""

    numbers: "array[int]" = field(default_factory=lambda: array("Q"))
    rows: "array[int]" = field(default_factory=lambda: array("Q"))
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    swapped: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, number: int, entries: list[Entry]) -> None:
        self.numbers.append(number)
        self.rows.append(_hash(*((entry.prompt, entry.responses) for entry in entries)))
        self.prompts.append(_hash(entries[0].prompt if entries[0].prompt is not None else entries[0].responses))
        pair = len(entries) == 1 and len(entries[0].responses) == 2
        self.swapped.append(_hash((entries[0].prompt, entries[0].responses[::-1])) if pair else NO_HASH)

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """(number of a row, number of the first row that is the same)."""
        numbers, hashes = _array(self.numbers), _array(self.rows)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
        sizes = np.diff(np.r_[starts, len(order)])
        firsts = np.repeat(order[starts], sizes)
        for at in np.flatnonzero(order != firsts):
            yield int(numbers[order[at]]), int(numbers[firsts[at]])

    def contradictions(self) -> Iterator[tuple[int, int]]:
        """(number of a row, number of an earlier one that judges the same two responses the other way round)."""
        yield from self._matches(_array(self.swapped), _array(self.numbers), earlier=True)

    def leaks(self, held_out: "Hashes") -> Iterator[tuple[int, int]]:
        """(number of a held-out row, number of a row here with the same prompt)."""
        training = Hashes(numbers=self.numbers, rows=self.prompts)
        yield from training._matches(_array(held_out.prompts), _array(held_out.numbers))

    def _matches(
        self, wanted: np.ndarray, wanted_numbers: np.ndarray, earlier: bool = False
    ) -> Iterator[tuple[int, int]]:
        """(wanted number, number of the first row here whose hash is the wanted one)."""
        numbers, hashes = _array(self.numbers), _array(self.rows)
        unique, first = np.unique(hashes, return_index=True)
        if not len(unique):
            return
        at = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
        for found in np.flatnonzero((unique[at] == wanted) & (wanted != NO_HASH)):
            number, other = int(wanted_numbers[found]), int(numbers[first[at[found]]])
            if not earlier or other < number:
                yield number, other


@dataclass(frozen=True)
class Checked:
    """What the check of one source found."""

    path: str
    kind: Kind
    unit: str  # of the numbers: line or row
    rows: int
    findings: Findings
    hashes: Hashes

    def as_dict(self) -> dict[str, Any]:
        head = {"path": self.path, "kind": self.kind, "numbers_are": f"{self.unit}s", "rows": self.rows}
        return head | self.findings.as_dict()


def check(section: DataSection, kind: Kind, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Checked:
    """Read every row of the section's source; with a tokenizer also render and measure it.

    Raises DataError for a source that cannot be read.
    """
    lengths = LengthCheck(section, tokenizer) if tokenizer is not None else None
    reader = EntryReader(section, lengths.renderer.opened) if lengths else EntryReader(section)
    findings, hashes, rows = Findings(), Hashes(), 0
    for visit in visits(section, reader):
        rows += 1
        for problem in _problems(visit):
            findings.add(visit.number, problem)
        if visit.entries:
            hashes.add(visit.number, visit.entries)
            if lengths:
                lengths.add(visit.number, visit.entries, findings)
    if lengths:
        lengths.flush(findings)
    for number, first in hashes.duplicates():
        findings.add(number, Problem("duplicate", f"the same as {unit(section)} {first}."))
    for number, other in hashes.contradictions():
        findings.add(
            number, Problem("contradiction", f"{unit(section)} {other} prefers the other of the two responses.")
        )
    return Checked(section.path, kind, unit(section), rows, findings, hashes)


def check_leakage(training: Checked, held_out: Checked) -> None:
    """Add to the held-out findings every row whose prompt is trained on."""
    for number, other in training.hashes.leaks(held_out.hashes):
        held_out.findings.add(
            number, Problem("leakage", f"its prompt is also that of {training.unit} {other} of '{training.path}'.")
        )


def _problems(visit: Visit) -> Iterator[Problem]:
    if visit.problem:
        yield visit.problem
    elif not visit.entries:
        yield Problem("tie", "neither response was judged better: no pair.")
    for entry in visit.entries[:1]:
        yield from _prompt_problems(entry.prompt)
    for text in dict.fromkeys(response for entry in visit.entries for response in entry.responses):
        yield from _text_problems(text, "a response")
        if not text.strip():
            yield Problem("empty", "a response is empty.")
        if HUMAN in text:
            yield Problem("turns", "a response goes on to speak for the human ('\\n\\nHuman:').")
    for entry in visit.entries:
        if len(entry.responses) == 2 and entry.responses[0].strip() == entry.responses[1].strip():
            yield Problem("identical", "chosen and rejected are the same.")


def _prompt_problems(prompt: Prompt | None) -> Iterator[Problem]:
    if prompt is None:
        return
    if isinstance(prompt, str):
        yield from _text_problems(prompt, "the prompt")
        if not prompt.strip():
            yield Problem("empty", "the prompt is empty.")
        return
    if not prompt:
        yield Problem("empty", "nothing comes before the response.")
    previous = ""
    for turn, message in enumerate(prompt):
        role, content = message["role"], message["content"]
        yield from _text_problems(content, f"message {turn}")
        if not content.strip():
            yield Problem("empty", f"message {turn} ({role}) is empty.")
        if role == previous:
            yield Problem("turns", f"messages {turn - 1} and {turn} are both the {role}'s.")
        if role == "system" and turn:
            yield Problem("turns", f"message {turn} is the system's, which comes first where there is one.")
        previous = role
    if previous != "user" and prompt:
        yield Problem("turns", f"the message before the response is the {previous}'s, not the user's.")


def _text_problems(text: str, what: str) -> Iterator[Problem]:
    if "\x00" in text:
        yield Problem("encoding", f"{what} holds a NUL character.")
    if "\ufffd" in text:
        yield Problem("damaged text", f"{what} holds U+FFFD, which stands for a character that was lost.")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        yield Problem(
            "encoding", f"{what} holds half a character (U+{ord(text[exc.start]):04X}), which no tokenizer takes."
        )


def _hash(*parts: object) -> int:
    return xxhash.xxh64_intdigest(repr(parts).encode())


def _array(values: "array[int]") -> np.ndarray:
    return np.frombuffer(values, dtype=np.uint64) if values else np.zeros(0, np.uint64)
