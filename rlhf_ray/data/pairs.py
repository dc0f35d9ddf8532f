"""Preferences as people record them, to pairs: one prompt, the better response and the worse one.

    pairs       {"prompt": ..., "chosen": ..., "rejected": ...}; without a prompt column, what both begin with
    ratings     {"prompt": ..., "response_a": ..., "response_b": ..., "preference": "a"}; also "b" and "tie"
    rankings    {"prompt": ..., "responses": [...], "ranking": [2, 1, 3]}, rank 1 being the best; or, with
                "scores": [0.1, 0.9, 0.4], the highest being the best. All pairs of unequal ones (Ouyang et al. 2022)

Prompts and responses are text, chat messages or transcripts. The names of the columns are the section's.
"""

import math
from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any, Literal, NamedTuple

from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.data.rows import describe
from rlhf_ray.data.transcripts import is_transcript
from rlhf_ray.data.turns import Prompt, read_response, split_pair, unanswered
from rlhf_ray.errors import DataError

Form = Literal["pairs", "ratings", "rankings"]
Row = dict[str, Any]
Where = Callable[[str], str]  # name of a column -> name of the row's cell there, for errors

_PREFIXES = ("response_", "model_", "answer_", "assistant_")
_VERDICTS = {"a": 1, "b": -1, "tie": 0, "equal": 0, "both": 0, "neither": 0, "tie (bothbad)": 0}


class Pair(NamedTuple):
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None  # how much better the chosen one was judged


def find_form(section: PreferenceDataSection, columns: Collection[str]) -> Form | None:
    """Which form a row or table with these columns has."""
    if {section.chosen_column, section.rejected_column} <= {*columns}:
        return "pairs"
    if {section.first_column, section.second_column, section.preference_column} <= {*columns}:
        return "ratings"
    if section.responses_column in columns and {section.ranking_column, section.scores_column} & {*columns}:
        return "rankings"
    return None


def missing_columns(section: PreferenceDataSection, columns: Collection[str]) -> str:
    """What is required and what was found, for columns that have no form."""
    pairs = (section.chosen_column, section.rejected_column)
    ratings = (section.first_column, section.second_column, section.preference_column)
    rankings = (section.responses_column, section.ranking_column)
    meant = max((pairs, ratings, rankings), key=lambda names: len({*names} & {*columns}))
    missing = [name for name in meant if name not in columns]
    return (
        f"no column {_names(missing)}: required are {_names(pairs)}, or {_names(ratings)}, or {_names(rankings)} "
        f"(or '{section.scores_column}'); found are {_names(columns)}. Set data.*_column to the names used there."
    )


class PairReader:
    """Rows of one source to pairs."""

    def __init__(
        self,
        section: PreferenceDataSection,
        columns: Collection[str],
        opened: Callable[[object], object] = lambda cell: cell,
        margin_column: str | None = None,
    ) -> None:
        """`columns` are those of the source, `opened` reads cells before anything else does, `margin_column` holds a
        number per row, or is the column of scores, whose differences are then the margins."""
        form = find_form(section, columns)
        if form is None:
            raise DataError(missing_columns(section, columns))
        self.section, self.columns, self.opened, self.margin_column = section, {*columns}, opened, margin_column
        self._read = {"pairs": self._pair, "ratings": self._rating, "rankings": self._ranking}[form]
        self.ties = 0  # comparisons left out so far

    def __call__(self, row: Row, where: Where) -> list[Pair]:
        """The row's pairs; none for a tie that is not kept. Raises DataError naming the cell."""
        margin, column = None, self.margin_column
        if column is not None and column != self.section.scores_column:
            margin = _number(row.get(column), where(column))
        return [pair if margin is None else pair._replace(margin=margin) for pair in self._read(row, where)]

    def _pair(self, row: Row, where: Where) -> list[Pair]:
        return [self._compared(row, self.section.chosen_column, self.section.rejected_column, where)]

    def _rating(self, row: Row, where: Where) -> list[Pair]:
        section = self.section
        first, second = section.first_column, section.second_column
        verdict = _verdict(row[section.preference_column], where(section.preference_column))
        if verdict:
            return [self._compared(row, *((first, second) if verdict > 0 else (second, first)), where)]
        return self._tied(self._compared(row, first, second, where))

    def _compared(self, row: Row, better: str, worse: str, where: Where) -> Pair:
        """The responses in two columns, each alone or with the prompt before it."""
        chosen, rejected = self.opened(row[better]), self.opened(row[worse])
        column = self.section.prompt_column
        if column not in self.columns or _is_conversation(chosen):
            return Pair(*split_pair(chosen, rejected, where(better), where(worse)))
        prompt = unanswered(self.opened(row[column]), where(column))
        return Pair(prompt, read_response(chosen, where(better)), read_response(rejected, where(worse)))

    def _ranking(self, row: Row, where: Where) -> list[Pair]:
        section = self.section
        if section.prompt_column not in self.columns:
            raise DataError(f"{where(section.prompt_column)}: rankings need a column of prompts.")
        prompt = unanswered(self.opened(row[section.prompt_column]), where(section.prompt_column))
        cells = row[section.responses_column]
        if not isinstance(cells, list) or len(cells) < 2:
            raise DataError(f"{where(section.responses_column)}: holds {describe(cells)}, not two responses or more.")
        responses = [
            read_response(self.opened(cell), f"{where(section.responses_column)}, response {number}")
            for number, cell in enumerate(cells)
        ]
        scored = section.ranking_column not in self.columns
        column = section.scores_column if scored else section.ranking_column
        goodness = _numbers(row[column], len(responses), where(column))
        if not scored:
            goodness = [-rank for rank in goodness]
        with_margin = scored and self.margin_column == column
        pairs: list[Pair] = []
        for (good, one), (other_good, other) in combinations(zip(goodness, responses, strict=True), 2):
            margin = abs(good - other_good) if with_margin else None
            if good == other_good:
                pairs += self._tied(Pair(prompt, one, other, margin))
            else:
                pairs.append(Pair(prompt, *((one, other) if good > other_good else (other, one)), margin))
        return pairs

    def _tied(self, pair: Pair) -> list[Pair]:
        """In each order, which teaches that neither is better, or nothing."""
        if self.section.ties == "keep":
            return [pair, pair._replace(chosen=pair.rejected, rejected=pair.chosen)]
        self.ties += 1
        return []


def _is_conversation(cell: object) -> bool:
    """Whether an answer holds its prompt, too."""
    return is_transcript(cell) or (isinstance(cell, list) and len(cell) > 1)


def _verdict(cell: object, where: str) -> int:
    """1 where the first response is better, -1 where the second is, 0 where neither is."""
    name = cell.strip().lower() if isinstance(cell, str) else ""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name not in _VERDICTS:
        raise DataError(
            f"{where}: is {cell!r}; known are {', '.join(_VERDICTS)} (and response_a, model_b and the like)."
        )
    return _VERDICTS[name]


def _numbers(cell: object, count: int, where: str) -> list[float]:
    if not isinstance(cell, list) or len(cell) != count:
        held = f"{len(cell)} numbers" if isinstance(cell, list) else describe(cell)
        raise DataError(f"{where}: holds {held} for {count} responses.")
    return [_number(number, where) for number in cell]


def _number(cell: object, where: str) -> float:
    if isinstance(cell, bool) or not isinstance(cell, int | float) or not math.isfinite(cell):
        raise DataError(f"{where}: holds {cell!r} where a finite number is needed.")
    return float(cell)


def _names(columns: Collection[str]) -> str:
    return ", ".join(f"'{column}'" for column in columns)
