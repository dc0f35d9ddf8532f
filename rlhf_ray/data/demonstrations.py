"""Demonstrations for supervised fine-tuning: prompt and response as one row of tokens that ends with eos."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, refuse_empty
from rlhf_ray.data.limits import cut_start, fit
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.turns import Prompt, read_response, split_conversation, unanswered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_demonstrations(
    section: DemonstrationDataSection, tokenizer: "PreTrainedTokenizerBase", path: str | None = None
) -> Loaded:
    """`schema.DEMONSTRATIONS` from a column of whole conversations where there is one, else from prompt and response.

    Of a conversation the last message is the response to learn; the turns before it are the prompt. In message trees
    (text in the messages column) every message of the assistant is such a last one. `path` replaces the section's (for
    section.eval_path). Raises DataError naming row and column.
    """
    source = Source(section, path, tree_column=section.messages_column, tree_speaker="assistant")
    renderer = Renderer.of(section, tokenizer)
    read = _conversations if source.has(section.messages_column) else _pairs
    where, pairs = read(source, section, renderer)

    prompts = renderer.prompt_tokens([renderer.prompt(pair[0], at).text for pair, at in zip(pairs, where, strict=True)])
    refuse_empty(prompts, where)
    responses = renderer.response_tokens([response for _, response in pairs])
    fitted = fit(
        [len(row) for row in prompts],
        [len(row) for row in responses],
        section.max_tokens,
        section.too_long,
        where,
        source.counts,
        "data.max_tokens",
    )
    kept = [
        (cut_start(prompts[row], cut, tokenizer.bos_token_id), responses[row])
        for row, cut in zip(fitted.kept, fitted.cut, strict=True)
    ]
    table = pa.table(
        {
            "tokens": [prompt + response for prompt, response in kept],
            "prompt_length": [len(prompt) for prompt, _ in kept],
        },
        schema=schema.DEMONSTRATIONS,
    )
    return Loaded(table, fitted.report)


Pairs = list[tuple[Prompt, str]]  # (prompt, text of the response)


def _conversations(source: Source, section: DemonstrationDataSection, renderer: Renderer) -> tuple[list[str], Pairs]:
    where = source.where(section.messages_column)
    cells = renderer.opened(source.cells(section.messages_column))
    return where, [split_conversation(*cell) for cell in zip(cells, where, strict=True)]


def _pairs(source: Source, section: DemonstrationDataSection, renderer: Renderer) -> tuple[list[str], Pairs]:
    source.require(section.prompt_column, section.response_column)
    where = source.where(section.prompt_column)
    prompts = renderer.opened(source.cells(section.prompt_column))
    responses = zip(source.cells(section.response_column), source.where(section.response_column), strict=True)
    return where, [
        (unanswered(prompt, at), read_response(*response))
        for prompt, at, response in zip(prompts, where, responses, strict=True)
    ]
