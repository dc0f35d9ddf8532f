"""What is wrong with rows of data: counted by kind, the first of each kind kept with number and reason."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KEPT_PER_KIND = 1000

#: Kinds of problems that a run fails on, or learns nothing or nonsense from; the others are worth a look.
ERRORS = (
    "unreadable",
    "missing column",
    "malformed",
    "preprocess",
    "empty",
    "encoding",
    "identical",
    "template",
    "too long",
    "leakage",
)
WARNINGS = ("duplicate", "contradiction", "turns", "damaged text", "tie")


class Problem(NamedTuple):
    kind: str  # one of ERRORS or WARNINGS
    reason: str


class Finding(NamedTuple):
    number: int  # line or row
    kind: str
    reason: str


@dataclass
class Findings:
    """The problems of one source."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[Finding]] = field(default_factory=dict)
    faulty: "array[int]" = field(default_factory=lambda: array("Q"))  # numbers of rows with an error or duplicates

    def add(self, number: int, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        kept = self.kept.setdefault(problem.kind, [])
        if len(kept) < KEPT_PER_KIND:
            kept.append(Finding(number, *problem))
        if problem.kind in ERRORS or problem.kind == "duplicate":
            self.faulty.append(number)

    @property
    def errors(self) -> int:
        return sum(self.counts[kind] for kind in ERRORS)

    @property
    def warnings(self) -> int:
        return sum(self.counts[kind] for kind in WARNINGS)

    def listed(self) -> list[tuple[str, list[Finding]]]:
        """(kind, first findings) in the order of ERRORS and WARNINGS."""
        return [(kind, sorted(self.kept[kind])) for kind in (*ERRORS, *WARNINGS) if kind in self.kept]

    def as_dict(self) -> dict[str, Any]:
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": dict(self.counts),
            "findings": [finding._asdict() for _, kept in self.listed() for finding in kept],
        }
