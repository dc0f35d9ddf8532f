"""Demonstrations for supervised fine-tuning: prompt and response as one row of tokens that ends with eos."""

from typing import TYPE_CHECKING

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.data.columns import Source
from rlhf_ray.data.conversation import Renderer, read_response, refuse_empty, split_conversation
from rlhf_ray.data.limits import cut_start, fit
from rlhf_ray.data.report import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_demonstrations(
    section: DemonstrationDataSection, tokenizer: "PreTrainedTokenizerBase", path: str | None = None
) -> Loaded:
    """`schema.DEMONSTRATIONS` from a column of whole conversations where there is one, else from prompt and response.

    Of a conversation the last message is the response to learn; the turns before it are the prompt. `path` replaces the
    section's (for section.eval_path). Raises DataError naming row and column.
    """
    source = Source(section, path)
    renderer = Renderer.of(section, tokenizer)
    whole = source.has(section.messages_column)
    where, pairs = _conversations(source, section) if whole else _pairs(source, section)

    prompts = renderer.prompt_tokens([renderer.prompt_text(pair[0], at) for pair, at in zip(pairs, where, strict=True)])
    refuse_empty(prompts, where)
    responses = renderer.response_tokens([response for _, response in pairs])
    fitted = fit(
        [len(row) for row in prompts],
        [len(row) for row in responses],
        section.max_tokens,
        section.too_long,
        where,
        source.rows_read,
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


Pairs = list[tuple[object, str]]  # (prompt: a string or messages, text of the response)


def _conversations(source: Source, section: DemonstrationDataSection) -> tuple[list[str], Pairs]:
    where = source.where(section.messages_column)
    return where, [split_conversation(*cell) for cell in zip(source.cells(section.messages_column), where, strict=True)]


def _pairs(source: Source, section: DemonstrationDataSection) -> tuple[list[str], Pairs]:
    source.require(section.prompt_column, section.response_column)
    response_cells = zip(source.cells(section.response_column), source.where(section.response_column), strict=True)
    responses = [read_response(*cell) for cell in response_cells]
    return source.where(section.prompt_column), list(zip(source.cells(section.prompt_column), responses, strict=True))
