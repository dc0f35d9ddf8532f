"""Preference pairs for the reward model and DPO: two answers to one prompt, each a whole conversation as tokens."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.data.columns import Source, row_name
from rlhf_ray.data.conversation import Renderer, refuse_empty
from rlhf_ray.data.limits import TokenLimit, cut_start
from rlhf_ray.data.pairs import Pair, PairReader, find_form, missing_columns
from rlhf_ray.data.report import Loaded, RowCounts
from rlhf_ray.data.spool import TableSpool
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_preferences(
    section: PreferenceDataSection,
    tokenizer: "PreTrainedTokenizerBase",
    path: str | None = None,
    *,
    margin_column: str | None = None,
) -> Loaded:
    """`schema.PREFERENCES` from pairs, ratings or rankings (see `rlhf_ray.data.pairs`).

    Both answers end with eos and follow the same prompt tokens; a limit that cuts the prompt cuts it equally for both.
    `margin_column` fills the margins: a column of numbers, or the one of a ranking's scores. `path` replaces the
    section's (for section.eval_path). Raises DataError naming row and column.
    """
    renderer = Renderer.of(section, tokenizer)
    limit = TokenLimit(section.max_tokens, section.too_long, "data.max_tokens")
    spool, counts = TableSpool(schema.PREFERENCES, section.memory_mib, section.spill_folder), RowCounts()
    for source in Source.parts(section, path):
        counts += source.counts
        if source.table.num_rows:
            reader = _reader(source, section, renderer, margin_column)
            spool.append(_tokenised(list(_pairs(source, section, reader)), renderer, limit))
            counts += RowCounts(ties=reader.ties)
    if not limit.seen:
        raise DataError(f"All {counts.ties:,} comparisons in '{path or section.path}' are ties. Set data.ties=keep.")
    report = limit.report(counts)
    table, folder = spool.finish()
    return Loaded(table, report, folder)


def _reader(
    source: Source, section: PreferenceDataSection, renderer: Renderer, margin_column: str | None
) -> PairReader:
    columns = source.table.column_names
    if find_form(section, columns) is None:
        raise DataError(f"'{source.path}' has {missing_columns(section, columns)}")
    if margin_column is not None:
        source.require(margin_column)
    return PairReader(section, columns, renderer.opened, margin_column)


def _pairs(source: Source, section: PreferenceDataSection, reader: PairReader) -> Iterator[tuple[Pair, str]]:
    """The pairs of all rows, each with its prompt's name for errors."""
    column = section.prompt_column if source.has(section.prompt_column) else section.chosen_column
    for position, row in zip(source.positions, source.table.to_pylist(), strict=True):
        name = row_name(source.path, position)
        for pair in reader(row, lambda column, name=name: f"{name}, column '{column}'"):  # type: ignore[misc]
            yield pair, f"{name}, column '{column}'"


def _tokenised(named: list[tuple[Pair, str]], renderer: Renderer, limit: TokenLimit) -> pa.Table:
    pairs, where = [pair for pair, _ in named], [name for _, name in named]
    prompts = renderer.prompt_tokens([renderer.prompt(pair.prompt, at).text for pair, at in named])
    refuse_empty(prompts, where)
    chosen = renderer.response_tokens([_after_template(pair.chosen, renderer) for pair in pairs])
    rejected = renderer.response_tokens([_after_template(pair.rejected, renderer) for pair in pairs])
    longer = [max(len(one), len(other)) for one, other in zip(chosen, rejected, strict=True)]
    kept, cuts = limit.fit([len(row) for row in prompts], longer, where)
    bos = renderer.tokenizer.bos_token_id
    starts = [cut_start(prompts[row], cut, bos) for row, cut in zip(kept, cuts, strict=True)]
    return pa.table(
        {
            "chosen_tokens": [start + chosen[row] for start, row in zip(starts, kept, strict=True)],
            "rejected_tokens": [start + rejected[row] for start, row in zip(starts, kept, strict=True)],
            "prompt_length": [len(start) for start in starts],
            "margin": [pairs[row].margin for row in kept],
        },
        schema=schema.PREFERENCES,
    )


def _after_template(response: str, renderer: Renderer) -> str:
    """Without the space between prompt and responses: the template ends where a response begins."""
    return response.removeprefix(" ") if renderer.template else response
