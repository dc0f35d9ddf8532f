"""Finished vLLM outputs as an Arrow table of `schema.sample_schema`, and the small columns that the driver keeps."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray.schema import sample_schema

#: prompt tokens decoded together with a response: a first token's text can depend on what stands before it
_CONTEXT_TOKENS = 8


@dataclass(frozen=True)
class Sample:
    """One finished response: row of its prompt in the prompt table, tokens, their raw log-probs, text, why it ended."""

    row: int
    sample_index: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    text: str
    finish_reason: str


def sample_table(prompts: pa.Table, samples: Sequence[Sample], policy_version: int) -> pa.Table:
    """`samples` joined with their prompts' columns, in the order given."""
    schema = sample_schema(prompts.schema)
    chosen = prompts.take(pa.array([sample.row for sample in samples], pa.int64()))
    offsets = pa.array(np.cumsum([0, *(len(sample.tokens) for sample in samples)]), pa.int32())
    made = {
        "sample_index": pa.array([sample.sample_index for sample in samples], pa.int32()),
        "policy_version": pa.array(np.full(len(samples), policy_version), pa.int64()),
        "response": pa.array([sample.text for sample in samples], pa.string()),
        "response_tokens": _ragged(offsets, [sample.tokens for sample in samples], pa.int32()),
        "response_logprobs": _ragged(offsets, [sample.logprobs for sample in samples], pa.float32()),
        "finish_reason": pa.array([sample.finish_reason for sample in samples], pa.string()),
    }
    arrays = [made[name] if name in made else chosen[name] for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def sample_meta(table: pa.Table, samples: Sequence[Sample], policy_version: int, seconds: float) -> dict[str, Any]:
    """What the driver needs to know of a batch without reading its tokens."""
    reasons = [sample.finish_reason for sample in samples]
    return {
        "prompt_id": table["prompt_id"].to_numpy(),
        "sample_index": table["sample_index"].to_numpy(),
        "prompt_length": np.array([len(tokens) for tokens in table["prompt_tokens"]], np.int32),
        "response_length": np.array([len(sample.tokens) for sample in samples], np.int32),
        "finish_reason": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "truncated": np.array([reason == "length" for reason in reasons], bool),
        "policy_version": policy_version,
        "seconds": seconds,
    }


def continuations(tokenizer: Any, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]]) -> list[str]:
    """Text that each response adds to its prompt, without special tokens (a first space shows only in context)."""
    tails = [prompt[-_CONTEXT_TOKENS:] for prompt in prompts]
    before = tokenizer.batch_decode(tails, skip_special_tokens=True)
    joined = [[*tail, *response] for tail, response in zip(tails, responses, strict=True)]
    after = tokenizer.batch_decode(joined, skip_special_tokens=True)
    return [
        text[len(prefix) :] if text.startswith(prefix) else tokenizer.decode(response, skip_special_tokens=True)
        for text, prefix, response in zip(after, before, responses, strict=True)
    ]


def _ragged(offsets: pa.Array, rows: Sequence[Sequence[Any]], dtype: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(offsets, pa.array(list(itertools.chain.from_iterable(rows)), dtype))
