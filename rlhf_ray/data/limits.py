"""Rows that exceed the token limit: an error by default, or dropped, or cut; always counted."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf_ray.data.report import DataReport, RowCounts
from rlhf_ray.errors import DataError


@dataclass(frozen=True)
class Fit:
    """Which rows stay and how much of their prompts goes."""

    kept: np.ndarray  # int64 [kept], indices into the rows given
    cut: np.ndarray  # int64 [kept], tokens to take off the start of each kept row's prompt
    report: DataReport


def fit(
    prompt_lengths: list[int],
    response_lengths: list[int],
    limit: int,
    too_long: Literal["error", "drop", "truncate"],
    where: list[str],
    rows: RowCounts,
    limit_key: str,
) -> Fit:
    """Apply the limit on prompt + response tokens to every row.

    Truncation takes from the start of the prompt and never from the response, which would then end mid-sentence: a row
    whose response leaves no room for a single prompt token is dropped even so.
    """
    prompts, lengths = np.array(prompt_lengths, dtype=np.int64), np.array(response_lengths, dtype=np.int64)
    lengths = lengths + prompts
    excess = np.maximum(lengths - limit, 0)
    if too_long == "error" and excess.any():
        first = int(np.flatnonzero(excess)[0])
        raise DataError(
            f"{where[first]}: {lengths[first]:,} tokens, over the limit of {limit:,} ({limit_key}); "
            f"{np.count_nonzero(excess):,} of {len(lengths):,} rows are too long. Raise the limit, shorten the rows, "
            "or set data.too_long to 'drop' (leave such rows out) or 'truncate' (cut the start of the prompt)."
        )
    kept = np.flatnonzero(excess == 0 if too_long == "drop" else excess < prompts)
    if not len(kept):
        raise DataError(f"All {len(lengths):,} rows are longer than the limit of {limit:,} tokens ({limit_key}).")
    cut = excess[kept]
    report = DataReport(
        rows=rows,
        kept=len(kept),
        dropped_too_long=len(lengths) - len(kept),
        truncated=int(np.count_nonzero(cut)),
        longest_tokens=int((lengths[kept] - cut).max()),
        token_limit=limit,
    )
    return Fit(kept, cut, report)


def cut_start(tokens: list[int], cut: int, bos_token_id: int | None) -> list[int]:
    """The tokens without `cut` of their first ones; a BOS stays, as some models fall apart without it."""
    if cut and tokens[0] == bos_token_id:
        return [tokens[0], *tokens[cut + 1 :]]
    return tokens[cut:]
