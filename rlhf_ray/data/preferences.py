"""Preference pairs for the reward model: two answers to one prompt, each a whole conversation as tokens."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import PreferenceDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, refuse_empty
from rlhf_ray.data.limits import cut_start, fit
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.transcripts import is_transcript
from rlhf_ray.data.turns import Triple, read_response, split_pair, unanswered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_preferences(
    section: PreferenceDataSection, tokenizer: "PreTrainedTokenizerBase", path: str | None = None
) -> Loaded:
    """`schema.PREFERENCES` from prompt, chosen and rejected, or from chosen and rejected that both hold the prompt.

    Both answers end with eos and follow the same prompt tokens; a limit that cuts the prompt cuts it equally for both.
    `path` replaces the section's (for section.eval_path). Raises DataError naming row and column.
    """
    source = Source(section, path)
    renderer = Renderer.of(section, tokenizer)
    where, triples = _read(source, section, renderer)

    prompts = renderer.prompt_tokens([renderer.prompt(row[0], at).text for row, at in zip(triples, where, strict=True)])
    refuse_empty(prompts, where)
    chosen = renderer.response_tokens([row[1] for row in triples])
    rejected = renderer.response_tokens([row[2] for row in triples])
    fitted = fit(
        [len(row) for row in prompts],
        [max(len(one), len(other)) for one, other in zip(chosen, rejected, strict=True)],
        section.max_tokens,
        section.too_long,
        where,
        source.counts,
        "data.max_tokens",
    )
    starts = [
        cut_start(prompts[row], cut, tokenizer.bos_token_id) for row, cut in zip(fitted.kept, fitted.cut, strict=True)
    ]
    table = pa.table(
        {
            "chosen_tokens": [start + chosen[row] for start, row in zip(starts, fitted.kept, strict=True)],
            "rejected_tokens": [start + rejected[row] for start, row in zip(starts, fitted.kept, strict=True)],
            "prompt_length": [len(start) for start in starts],
            "margin": [None] * len(starts),
        },
        schema=schema.PREFERENCES,
    )
    return Loaded(table, fitted.report)


def _read(source: Source, section: PreferenceDataSection, renderer: Renderer) -> tuple[list[str], list[Triple]]:
    """Names for errors, and (prompt, chosen, rejected) of every row."""
    pair = (section.chosen_column, section.rejected_column)
    source.require(*pair)
    chosen, rejected = (renderer.opened(source.cells(column)) for column in pair)
    where_chosen, where_rejected = (source.where(column) for column in pair)
    if not source.has(section.prompt_column) or _is_conversation(chosen[0]):
        triples = [split_pair(*row) for row in zip(chosen, rejected, where_chosen, where_rejected, strict=True)]
        return where_chosen, [_after_template(triple) for triple in triples] if renderer.template else triples
    where = source.where(section.prompt_column)
    prompts = renderer.opened(source.cells(section.prompt_column))
    return where, [
        (unanswered(prompt, at), read_response(better, better_at), read_response(worse, worse_at))
        for prompt, at, better, better_at, worse, worse_at in zip(
            prompts, where, chosen, where_chosen, rejected, where_rejected, strict=True
        )
    ]


def _is_conversation(cell: object) -> bool:
    """Whether an answer holds its prompt, too."""
    return is_transcript(cell) or (isinstance(cell, list) and len(cell) > 1)


def _after_template(triple: Triple) -> Triple:
    """Without the space between prompt and responses: the template ends where a response begins."""
    prompt, better, worse = triple
    return prompt, better.removeprefix(" "), worse.removeprefix(" ")
