"""Rows that exceed the token limit: an error by default, or dropped, or cut; always counted."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf_ray.data.report import DataReport, RowCounts
from rlhf_ray.errors import DataError


@dataclass
class TokenLimit:
    """The limit on prompt + response tokens, applied to part after part of the rows."""

    limit: int
    too_long: Literal["error", "drop", "truncate"]
    key: str  # of the limit, for the error
    seen: int = 0
    kept: int = 0
    truncated: int = 0
    longest: int = 0

    def fit(
        self, prompt_lengths: list[int], response_lengths: list[int], where: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(indices of the rows that stay, tokens to take off the start of each one's prompt), both int64 [kept].

        Truncation takes from the start of the prompt and never from the response, which would then end mid-sentence: a
        row whose response leaves no room for a single prompt token is dropped even so.
        """
        prompts = np.array(prompt_lengths, dtype=np.int64)
        lengths = np.array(response_lengths, dtype=np.int64) + prompts
        excess = np.maximum(lengths - self.limit, 0)
        self.seen += len(lengths)
        if self.too_long == "error" and excess.any():
            first = int(np.flatnonzero(excess)[0])
            raise DataError(
                f"{where[first]}: {lengths[first]:,} tokens, over the limit of {self.limit:,} ({self.key}); "
                f"{np.count_nonzero(excess):,} of {self.seen:,} rows read so far are too long. Raise the limit, "
                "shorten the rows, or set data.too_long to 'drop' (leave such rows out) or 'truncate' (cut the start "
                "of the prompt)."
            )
        kept = np.flatnonzero(excess == 0 if self.too_long == "drop" else excess < prompts)
        cut = excess[kept]
        self.kept += len(kept)
        self.truncated += int(np.count_nonzero(cut))
        self.longest = max(self.longest, int((lengths[kept] - cut).max(initial=0)))
        return kept, cut

    def report(self, rows: RowCounts) -> DataReport:
        """The counts of all parts. Raises DataError when no row is left."""
        if not self.kept:
            raise DataError(f"All {self.seen:,} rows are longer than the limit of {self.limit:,} tokens ({self.key}).")
        return DataReport(
            rows=rows,
            kept=self.kept,
            dropped_too_long=self.seen - self.kept,
            truncated=self.truncated,
            longest_tokens=self.longest,
            token_limit=self.limit,
        )


def cut_start(tokens: list[int], cut: int, bos_token_id: int | None) -> list[int]:
    """The tokens without `cut` of their first ones; a BOS stays, as some models fall apart without it."""
    if cut and tokens[0] == bos_token_id:
        return [tokens[0], *tokens[cut + 1 :]]
    return tokens[cut:]
