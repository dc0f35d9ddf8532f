"""All rows of a source one after the other, the faulty ones among them: nothing stops at the first fault."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.entries import SECTIONS, Entry, EntryReader, Kind, MissingColumnError, find_kind
from rlhf_ray.data.files import json_lines
from rlhf_ray.data.findings import Problem
from rlhf_ray.data.preprocess import Preprocess, find_preprocess
from rlhf_ray.data.rows import describe
from rlhf_ray.data.sources import stream_tables
from rlhf_ray.data.trees import are_messages
from rlhf_ray.errors import ConfigError, DataError

_LOOKED_AT = 100  # rows that may be faulty before one tells the kind


@dataclass(frozen=True)
class Visit:
    """One row: where it stands, what it holds, and what it comes to or what is wrong with it."""

    number: int  # line of a JSONL file, from 1; else the row's position, from 0
    row: dict[str, Any]
    entries: list[Entry]
    problem: Problem | None = None


def visits(section: DataSection, reader: EntryReader) -> Iterator[Visit]:
    """Every row that section.preprocess keeps, in the source's order; rows are read as they are asked for.

    Raises DataError for a source that cannot be read at all, or not beyond some row.
    """
    function = find_preprocess(section.preprocess) if section.preprocess else None
    for number, value in numbered_rows(section):
        row, problem = _row(value, function)
        if row is None and problem is None:
            continue
        entries: list[Entry] = []
        if row is not None:
            try:
                entries = reader(row)
            except MissingColumnError as exc:
                problem = Problem("missing column", str(exc))
            except DataError as exc:
                problem = Problem("malformed", str(exc))
        yield Visit(number, row or {}, entries, problem)


def numbered_rows(section: DataSection) -> Iterator[tuple[int, Any]]:
    """(line number or position, row); in place of a row that cannot be read what is there, or a DataError."""
    path = Path(section.path).expanduser()
    if path.is_file() and path.suffix.lower() == ".jsonl":
        yield from json_lines(path)
        return
    number = 0
    for table in stream_tables(section.path, section.split, section.subset):
        for row in table.to_pylist():
            yield number, row
            number += 1


def unit(section: DataSection) -> str:
    """What the numbers count."""
    return "line" if Path(section.path).suffix.lower() == ".jsonl" else "row"


def find_section(path: str, overrides: dict[str, Any], kind: Kind | None) -> tuple[Kind, DataSection]:
    """The kind of the data at `path`, as asked for or as its columns tell, and its section with these overrides.

    Raises ConfigError for overrides that no kind has, DataError for columns that tell no kind.
    """
    sections: dict[Kind, DataSection] = {}
    problems: list[ConfigError] = []
    for name in [kind] if kind else SECTIONS:
        try:
            sections[name] = _section(SECTIONS[name], path, overrides)
        except ConfigError as exc:
            problems.append(exc)
    if not sections:
        raise problems[0]
    if kind:
        return kind, sections[kind]
    any_section = next(iter(sections.values()))
    function = find_preprocess(any_section.preprocess) if any_section.preprocess else None
    seen: list[str] = []
    for looked_at, (_, value) in enumerate(numbered_rows(any_section)):
        row, _ = _row(value, function)
        seen = seen or list(row or ())
        if row and are_messages(row):
            raise DataError(
                f"'{path}' holds message trees, whose rows make sense together only: loading them checks them as a "
                "whole (data.messages_column or data.prompt_column names the text). Here rows are read one by one."
            )
        if row and (found := find_kind(sections, row)):
            return found, sections[found]
        if looked_at == _LOOKED_AT:
            break
    raise DataError(
        f"'{path}' holds neither preferences (columns 'chosen' and 'rejected', or ratings, or rankings) nor "
        f"demonstrations ('messages', or 'prompt' and 'completion', or 'text') nor prompts ('prompt'); found are "
        f"{', '.join(map(repr, seen)) or 'no rows with columns'}. Name the columns, as in prompt_column=question."
    )


def _section(cls: type[DataSection], path: str, overrides: dict[str, Any]) -> DataSection:
    from rlhf_ray.config.load import merge_config

    return merge_config(cls, [("the command line", {"path": path, **overrides})])


def _row(value: Any, function: Preprocess | None) -> tuple[dict[str, Any] | None, Problem | None]:
    """The row after preprocessing, or what is wrong with it; neither where it is left out."""
    if isinstance(value, DataError):
        return None, Problem("unreadable", str(value).partition(": ")[2])
    if not isinstance(value, dict):
        return None, Problem("unreadable", f"holds {describe(value)} where an object with columns is needed.")
    if function is None:
        return value, None
    try:
        row = function(value)
    except Exception as exc:
        return None, Problem("preprocess", f"data.preprocess raised {type(exc).__name__}: {exc}")
    if row is not None and not isinstance(row, dict):
        return None, Problem("preprocess", f"data.preprocess must return a row (dict) or None, not {describe(row)}.")
    return row, None
