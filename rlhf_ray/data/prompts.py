"""Prompts for rollouts: rendered, tokenised, checked; the dataset's other columns travel along for the rewards."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Prompt, Renderer, refuse_empty
from rlhf_ray.data.limits import TokenLimit, cut_start
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.turns import shared_prompt, unanswered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENAMED_PREFIX = "dataset_"
DEFAULT_COLUMN, PAIR = "prompt", ("chosen", "rejected")


def load_prompts(
    section: PromptDataSection,
    tokenizer: "PreTrainedTokenizerBase",
    max_prompt_tokens: int,
    path: str | None = None,
) -> Loaded:
    """`schema.PROMPTS` plus the dataset's other columns; prompt_id is the row's position in the source.

    Of a whole conversation the prompt is all but the assistant's last word, of message trees every message of the user
    with those above it, of preference pairs without a prompt column what chosen and rejected share. Where a template
    rendered the prompt, the column `messages` (`schema.MESSAGES`) holds what it was given, system prompt included; all
    of it, even where the prompt was too long and its start was cut off.

    `max_prompt_tokens` is what the context leaves; the section's own limit applies where it is smaller. `path` replaces
    the section's (for section.eval_path, with section.eval_split). A column whose name rollouts use themselves becomes
    `dataset_<name>`.

    Raises DataError naming row and column for cells that are no prompt or too long.
    """
    if path is not None and section.eval_split:
        section = section.model_copy(update={"split": section.eval_split})
    source = Source.whole(section, path, tree_column=section.prompt_column, tree_speaker="user")
    renderer = Renderer.of(section, tokenizer)
    prompts, where = _prompts(source, section.prompt_column, renderer)
    texts = [prompt.text for prompt in prompts]
    tokens = renderer.prompt_tokens(texts)
    refuse_empty(tokens, where)

    limit = TokenLimit(
        min(max_prompt_tokens, section.max_prompt_tokens or max_prompt_tokens),
        section.too_long,
        "data.max_prompt_tokens, or the context minus generation.max_new_tokens",
    )
    kept, cuts = limit.fit([len(row) for row in tokens], [0] * len(tokens), where)
    for row, cut in zip(kept, cuts, strict=True):
        if cut:
            tokens[row] = cut_start(tokens[row], cut, tokenizer.bos_token_id)
            texts[row] = tokenizer.decode(tokens[row])
    table = pa.table(
        {
            "prompt_id": source.positions[kept],
            "prompt": [texts[row] for row in kept],
            "prompt_tokens": [tokens[row] for row in kept],
        },
        schema=schema.PROMPTS,
    )
    if renderer.template is not None:
        table = table.append_column(schema.MESSAGES_COLUMN, _messages([prompts[row] for row in kept]))
    others = [name for name in source.table.column_names if name != section.prompt_column]
    return Loaded(_with_extras(table, source.table.take(kept).select(others)), limit.report(source.counts))


def _prompts(source: Source, column: str, renderer: Renderer) -> tuple[list[Prompt], list[str]]:
    """The rendered prompts, and their names for errors."""
    if column == DEFAULT_COLUMN and not source.has(column) and source.has(*PAIR):
        columns = [map(renderer.opened, source.cells(name)) for name in PAIR]
        chosen_at, where = (source.where(name) for name in PAIR)
        cells = [shared_prompt(*row) for row in zip(*columns, chosen_at, where, strict=True)]
    else:
        source.require(column)
        where = source.where(column)
        cells = [unanswered(*row) for row in zip(map(renderer.opened, source.cells(column)), where, strict=True)]
    return [renderer.prompt(*row) for row in zip(cells, where, strict=True)], where


def _messages(prompts: list[Prompt]) -> pa.Array:
    return pa.array(
        [[{"role": m["role"], "content": m["content"]} for m in prompt.messages or []] for prompt in prompts],
        schema.MESSAGES,
    )


def _with_extras(prompts: pa.Table, extras: pa.Table) -> pa.Table:
    taken = {*schema.SAMPLES.names, *schema.REFERENCE.names, *prompts.column_names}
    for field, column in zip(extras.schema, extras.columns, strict=True):
        clash = field.name in taken or field.name.startswith(schema.REWARD_PREFIX)
        name = RENAMED_PREFIX + field.name if clash else field.name
        prompts = prompts.append_column(field.with_name(name), column)
    return prompts
