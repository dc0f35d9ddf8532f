"""A reward that could not be computed: which component, which sample, and everything a person needs to see why."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: Failures of a scoring table, by (row, component).
FailuresByRow = dict[tuple[int, str], "RewardFailure"]


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """One call that gave no reward. Travels from the scorer to the driver, the composer and the quarantine file."""

    component: str
    prompt_id: int
    sample_index: int
    kind: str  # raised, not_finite, wrong_type, timeout or died
    message: str  # reads on after the component's name
    traceback: str = ""
    prompt: str = ""
    response: str = ""

    def describe(self) -> str:
        """Several lines: what happened, on which sample, its text, the traceback."""
        lines = [
            f"Reward component `{self.component}` failed on prompt {self.prompt_id}, sample {self.sample_index}: "
            f"it {self.message}.",
            f"  prompt:   {_excerpt(self.prompt)}",
            f"  response: {_excerpt(self.response)}",
        ]
        return "\n".join([*lines, self.traceback] if self.traceback else lines)


def failures_by_row(
    failures: Iterable[RewardFailure], prompt_ids: np.ndarray, sample_indices: np.ndarray
) -> FailuresByRow:
    """Place failures on the rows of a table whose key columns are given, int [samples] each.

    A small dataset may be drawn twice in one iteration: then a key, and its failure, has more than one row.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(prompt_ids.tolist(), sample_indices.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    return {(row, f.component): f for f in failures for row in rows[f.prompt_id, f.sample_index]}


def _excerpt(text: str, limit: int = 300) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]} ... {shown[-limit // 2 :]}"
