"""Prompts for rollouts: rendered, tokenised, checked; the dataset's other columns travel along for the rewards."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, refuse_empty
from rlhf_ray.data.limits import cut_start, fit
from rlhf_ray.data.report import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENAMED_PREFIX = "dataset_"


def load_prompts(
    section: PromptDataSection,
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_tokens: int,
    path: str | None = None,
) -> Loaded:
    """`schema.PROMPTS` plus the dataset's other columns; prompt_id is the row's position in the source.

    `max_prompt_tokens` is what the context leaves; the section's own limit applies where it is smaller. `path` replaces
    the section's (for section.eval_path, with section.eval_split). A column whose name rollouts use themselves becomes
    `dataset_<name>`.
    Raises DataError naming row and column for cells that are no prompt or too long.
    """
    if path is not None and section.eval_split:
        section = section.model_copy(update={"split": section.eval_split})
    source = Source(section, path)
    source.require(section.prompt_column)
    where = source.where(section.prompt_column)
    renderer = Renderer.of(section, tokenizer)
    texts = [renderer.prompt_text(*cell) for cell in zip(source.cells(section.prompt_column), where, strict=True)]
    tokens = renderer.prompt_tokens(texts)
    refuse_empty(tokens, where)

    limit = min(max_prompt_tokens, section.max_prompt_tokens or max_prompt_tokens)
    fitted = fit(
        [len(row) for row in tokens],
        [0] * len(tokens),
        limit,
        section.too_long,
        where,
        source.rows_read,
        "data.max_prompt_tokens, or the context minus generation.max_new_tokens",
    )
    for row, cut in zip(fitted.kept, fitted.cut, strict=True):
        if cut:
            tokens[row] = cut_start(tokens[row], cut, tokenizer.bos_token_id)
            texts[row] = tokenizer.decode(tokens[row])
    table = pa.table(
        {
            "prompt_id": source.positions[fitted.kept],
            "prompt": [texts[row] for row in fitted.kept],
            "prompt_tokens": [tokens[row] for row in fitted.kept],
        },
        schema=schema.PROMPTS,
    )
    return Loaded(
        _with_extras(table, source.table.take(fitted.kept).drop_columns([section.prompt_column])), fitted.report
    )


def _with_extras(prompts: pa.Table, extras: pa.Table) -> pa.Table:
    taken = {*schema.SAMPLES.names, *schema.REFERENCE.names}
    for field, column in zip(extras.schema, extras.columns, strict=True):
        clash = field.name in taken or field.name.startswith(schema.REWARD_PREFIX)
        name = RENAMED_PREFIX + field.name if clash else field.name
        prompts = prompts.append_column(field.with_name(name), column)
    return prompts
