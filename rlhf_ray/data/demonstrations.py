"""Demonstrations for supervised fine-tuning: prompt and response as one row of tokens that ends with eos.

conversations   {"messages": [...]}: the last message is the response, the turns before it are the prompt
pairs           {"prompt": ..., "completion": ...}
text            {"text": ...}: all of it is learnt, after the first token, which nothing predicts
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.data.answers import answer_mask
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, refuse_empty
from rlhf_ray.data.limits import TokenLimit, cut_start
from rlhf_ray.data.report import Loaded, RowCounts
from rlhf_ray.data.spool import TableSpool
from rlhf_ray.data.trees import is_tree
from rlhf_ray.data.turns import Prompt, read_response, split_conversation, unanswered
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Rows(NamedTuple):
    """Demonstrations of one part of the source as tokens, one entry per row."""

    where: list[str]
    prompts: list[list[int]]
    responses: list[list[int]]
    masks: list[list[int]]  # 1 on the prompts' tokens that the assistant said; only asked for with every_turn


def load_demonstrations(
    section: DemonstrationDataSection,
    tokenizer: "PreTrainedTokenizerBase",
    path: str | None = None,
    *,
    every_turn: bool = False,
) -> Loaded:
    """`schema.DEMONSTRATIONS` from conversations where there is a column of them, else from pairs, else from text.

    In message trees (text in the messages column) every message of the assistant ends a conversation. `every_turn`
    appends `schema.LOSS_MASK_COLUMN`, which covers what the assistant said before its last word, too. `path` replaces
    the section's (for section.eval_path). Raises DataError naming row and column.
    """
    renderer = Renderer.of(section, tokenizer)
    limit = TokenLimit(section.max_tokens, section.too_long, "data.max_tokens")
    layout = schema.DEMONSTRATIONS
    if every_turn:
        layout = layout.append(pa.field(schema.LOSS_MASK_COLUMN, schema.LOSS_MASK, nullable=False))
    spool, counts = TableSpool(layout, section.memory_mib, section.spill_folder), RowCounts()
    for source in Source.parts(section, path, tree_column=section.messages_column):
        counts += source.counts
        if source.table.num_rows:
            rows = _reader(source, section)(source, section, renderer, every_turn)
            spool.append(_fitted(rows, layout, limit, tokenizer.bos_token_id))
    report = limit.report(counts)
    table, folder = spool.finish()
    return Loaded(table, report, folder)


def _fitted(rows: _Rows, layout: pa.Schema, limit: TokenLimit, bos: int | None) -> pa.Table:
    """The rows that fit, in the layout."""
    kept, cuts = limit.fit([len(row) for row in rows.prompts], [len(row) for row in rows.responses], rows.where)
    starts = [cut_start(rows.prompts[row], cut, bos) for row, cut in zip(kept, cuts, strict=True)]
    columns = {
        "tokens": [start + rows.responses[row] for start, row in zip(starts, kept, strict=True)],
        "prompt_length": [len(start) for start in starts],
    }
    if schema.LOSS_MASK_COLUMN in layout.names:
        columns[schema.LOSS_MASK_COLUMN] = [
            [0, *rows.masks[row][cut + 1 :], *[1] * len(rows.responses[row])]  # nothing predicts the first token
            for cut, row in zip(cuts, kept, strict=True)
        ]
    return pa.table(columns, schema=layout)


Reader = Callable[[Source, DemonstrationDataSection, Renderer, bool], _Rows]


def _reader(source: Source, section: DemonstrationDataSection) -> Reader:
    pair = (section.prompt_column, section.response_column)
    if source.has(section.messages_column):
        return _conversations
    if source.has(section.text_column) and not source.has(*pair):
        if is_tree(source.table, section.text_column):
            raise DataError(
                f"'{source.path}' holds message trees, with a message in '{section.text_column}'. Set "
                f"data.messages_column={section.text_column} to learn whole conversations."
            )
        return _texts
    source.require(*pair)
    return _pairs


def _conversations(source: Source, section: DemonstrationDataSection, renderer: Renderer, every_turn: bool) -> _Rows:
    where = source.where(section.messages_column)
    cells = map(renderer.opened, source.cells(section.messages_column))
    pairs = [split_conversation(cell, at) for cell, at in zip(cells, where, strict=True)]
    return _answered(pairs, where, renderer, every_turn)


def _pairs(source: Source, section: DemonstrationDataSection, renderer: Renderer, every_turn: bool) -> _Rows:
    where = source.where(section.prompt_column)
    prompts = map(renderer.opened, source.cells(section.prompt_column))
    responses = zip(source.cells(section.response_column), source.where(section.response_column), strict=True)
    pairs = [
        (unanswered(prompt, at), read_response(*response))
        for prompt, at, response in zip(prompts, where, responses, strict=True)
    ]
    return _answered(pairs, where, renderer, every_turn)


def _answered(pairs: list[tuple[Prompt, str]], where: list[str], renderer: Renderer, every_turn: bool) -> _Rows:
    """Prompts and the responses to them as tokens."""
    prompts = [renderer.prompt(prompt, at) for (prompt, _), at in zip(pairs, where, strict=True)]
    tokens = renderer.prompt_tokens([prompt.text for prompt in prompts])
    refuse_empty(tokens, where)
    masks = [answer_mask(prompt, renderer, at) for prompt, at in zip(prompts, where, strict=True)] if every_turn else []
    return _Rows(where, tokens, renderer.response_tokens([response for _, response in pairs]), masks)


def _texts(source: Source, section: DemonstrationDataSection, renderer: Renderer, every_turn: bool) -> _Rows:
    """Text as it is: its first token stands for the prompt."""
    where, texts = source.where(section.text_column), source.cells(section.text_column)
    for text, at in zip(texts, where, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{at}: there is no text ({text!r}).")
    rows = renderer.text_tokens([str(text) for text in texts])
    return _Rows(where, [row[:1] for row in rows], [row[1:] for row in rows], [[0]] * len(rows))
