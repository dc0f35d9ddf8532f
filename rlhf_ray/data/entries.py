"""One row of any kind of data as what it comes to: a prompt and the responses to it.

What `rlhf-ray data` reads, row by row; the loaders read the same cells with the same functions.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

from rlhf_ray.config.data import DataSection, DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.data.pairs import PairReader, Row, Where, find_form, missing_columns
from rlhf_ray.data.prompts import DEFAULT_COLUMN, PAIR
from rlhf_ray.data.transcripts import open_transcript
from rlhf_ray.data.turns import Prompt, read_response, shared_prompt, split_conversation, unanswered
from rlhf_ray.errors import DataError

Kind = Literal["preferences", "demonstrations", "prompts"]
Open = Callable[[object], object]

SECTIONS: dict[Kind, type[DataSection]] = {
    "preferences": PreferenceDataSection,
    "demonstrations": DemonstrationDataSection,
    "prompts": PromptDataSection,
}


class Entry(NamedTuple):
    """A prompt (None: text without one) and its responses: chosen and rejected, the one to learn, or none."""

    prompt: Prompt | None
    responses: tuple[str, ...] = ()
    margin: float | None = None


class MissingColumnError(DataError):
    """A row lacks what its kind requires."""


class EntryReader:
    """Rows of one kind to entries; the columns of each row decide how it is read."""

    def __init__(self, section: DataSection, opened: Open = open_transcript) -> None:
        self.section, self.opened = section, opened
        self._pairs: dict[tuple[str, ...], PairReader] = {}

    @property
    def ties(self) -> int:
        """Comparisons left out so far, neither response having been judged better."""
        return sum(reader.ties for reader in self._pairs.values())

    def __call__(self, row: Row) -> list[Entry]:
        """What the row comes to; nothing for a tie. Raises DataError naming the column, MissingColumnError."""
        section = self.section
        if isinstance(section, PreferenceDataSection):
            return self._preferences(row, section)
        if isinstance(section, DemonstrationDataSection):
            return [self._demonstration(row, section)]
        assert isinstance(section, PromptDataSection)
        return [self._prompt(row, section)]

    def _preferences(self, row: Row, section: PreferenceDataSection) -> list[Entry]:
        reader = self._pairs.get(columns := tuple(row))
        if reader is None:
            if find_form(section, columns) is None:
                raise MissingColumnError(missing_columns(section, columns))
            margin_column = section.scores_column if section.ranking_column not in row else None
            reader = self._pairs[columns] = PairReader(section, columns, self.opened, margin_column)
        return [Entry(pair.prompt, (pair.chosen, pair.rejected), pair.margin) for pair in reader(row, _cell)]

    def _demonstration(self, row: Row, section: DemonstrationDataSection) -> Entry:
        if (column := section.messages_column) in row:
            prompt, response = split_conversation(self.opened(row[column]), _cell(column))
            return Entry(prompt, (response,))
        pair = (section.prompt_column, section.response_column)
        if {*pair} <= {*row}:
            prompt = unanswered(self.opened(row[pair[0]]), _cell(pair[0]))
            return Entry(prompt, (read_response(row[pair[1]], _cell(pair[1])),))
        if (column := section.text_column) not in row:
            _refuse(row, section.messages_column, " and ".join(pair), column)
        if not isinstance(row[column], str):
            raise DataError(f"{_cell(column)}: holds {row[column]!r} where text is needed.")
        return Entry(None, (row[column],))

    def _prompt(self, row: Row, section: PromptDataSection) -> Entry:
        column = section.prompt_column
        if column == DEFAULT_COLUMN and column not in row and {*PAIR} <= {*row}:
            chosen, rejected = (self.opened(row[name]) for name in PAIR)
            return Entry(shared_prompt(chosen, rejected, *map(_cell, PAIR)))
        if column not in row:
            _refuse(row, column)
        return Entry(unanswered(self.opened(row[column]), _cell(column)))


def find_kind(sections: Mapping[Kind, DataSection], columns: Collection[str]) -> Kind | None:
    """What rows with these columns are, preferences before demonstrations before prompts."""
    if isinstance(section := sections.get("preferences"), PreferenceDataSection) and find_form(section, columns):
        return "preferences"
    if isinstance(section := sections.get("demonstrations"), DemonstrationDataSection):
        pair = {section.prompt_column, section.response_column}
        if pair <= {*columns} or {section.messages_column, section.text_column} & {*columns}:
            return "demonstrations"
    if isinstance(section := sections.get("prompts"), PromptDataSection) and section.prompt_column in columns:
        return "prompts"
    return None


_cell: Where = "column '{}'".format


def _refuse(row: Row, *required: str) -> None:
    raise MissingColumnError(
        f"no column {', or '.join(required)}; found are {', '.join(map(repr, row)) or 'none'}. Set data.*_column to "
        "the names used there."
    )
