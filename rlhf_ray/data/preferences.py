"""Preference pairs for the reward model: two answers to one prompt, each a whole conversation as tokens."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, read_response, refuse_empty, split_conversation
from rlhf_ray.data.limits import cut_start, fit
from rlhf_ray.data.report import Loaded
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_preferences(
    section: PreferenceDataSection, tokenizer: "PreTrainedTokenizerBase", path: str | None = None
) -> Loaded:
    """`schema.PREFERENCES` from prompt, chosen and rejected, or from chosen and rejected as whole conversations.

    Both answers end with eos and follow the same prompt tokens; a limit that cuts the prompt cuts it equally for both.
    `path` replaces the section's (for section.eval_path). Raises DataError naming row and column.
    """
    source = Source(section, path)
    renderer = Renderer.of(section, tokenizer)
    where, triples = _read(source, section)

    prompts = renderer.prompt_tokens([renderer.prompt_text(row[0], at) for row, at in zip(triples, where, strict=True)])
    refuse_empty(prompts, where)
    chosen = renderer.response_tokens([row[1] for row in triples])
    rejected = renderer.response_tokens([row[2] for row in triples])
    fitted = fit(
        [len(row) for row in prompts],
        [max(len(one), len(other)) for one, other in zip(chosen, rejected, strict=True)],
        section.max_tokens,
        section.too_long,
        where,
        source.rows_read,
        "data.max_tokens",
    )
    starts = [
        cut_start(prompts[row], cut, tokenizer.bos_token_id) for row, cut in zip(fitted.kept, fitted.cut, strict=True)
    ]
    table = pa.table(
        {
            "chosen_tokens": [start + chosen[row] for start, row in zip(starts, fitted.kept, strict=True)],
            "rejected_tokens": [start + rejected[row] for start, row in zip(starts, fitted.kept, strict=True)],
        },
        schema=schema.PREFERENCES,
    )
    return Loaded(table, fitted.report)


Triple = tuple[object, str, str]  # (prompt: a string or messages, chosen text, rejected text)


def _read(source: Source, section: PreferenceDataSection) -> tuple[list[str], list[Triple]]:
    source.require(section.chosen_column, section.rejected_column)
    where_chosen, where_rejected = source.where(section.chosen_column), source.where(section.rejected_column)
    answers = zip(
        source.cells(section.chosen_column),
        where_chosen,
        source.cells(section.rejected_column),
        where_rejected,
        strict=True,
    )
    first = source.table.column(section.chosen_column)[0].as_py()
    if isinstance(first, list) and len(first) > 1:
        return where_chosen, [_split_both(*answer) for answer in answers]
    source.require(section.prompt_column, section.chosen_column, section.rejected_column)
    prompts = source.cells(section.prompt_column)
    return source.where(section.prompt_column), [
        (prompt, read_response(chosen, at), read_response(rejected, rejected_at))
        for prompt, (chosen, at, rejected, rejected_at) in zip(prompts, answers, strict=True)
    ]


def _split_both(chosen: object, where_chosen: str, rejected: object, where_rejected: str) -> Triple:
    """Two whole conversations as one prompt and two answers."""
    prompt, better = split_conversation(chosen, where_chosen)
    other_prompt, worse = split_conversation(rejected, where_rejected)
    if prompt != other_prompt:
        raise DataError(f"{where_rejected}: answers another conversation than the chosen one does.")
    return prompt, better, worse
