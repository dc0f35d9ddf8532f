"""What travels between actors in bulk: the Arrow schemas, in one place.

A *sample* is one response to one prompt, keyed by (prompt_id, sample_index). Generators produce `SAMPLES` tables (the
dataset's own extra columns follow the fixed ones); scorers and the reference answer with narrow tables that hold the
key and their own column, so that token data is never copied to add a number to it.
"""

from collections.abc import Sequence

import pyarrow as pa

KEY = [pa.field("prompt_id", pa.int64(), nullable=False), pa.field("sample_index", pa.int32(), nullable=False)]

#: Prompts, tokenised and checked. `prompt_id` is the row's position in the dataset, stable over epochs and runs.
PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.int64(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # the text the model sees, template applied
        pa.field("prompt_tokens", pa.list_(pa.int32()), nullable=False),
    ]
)

#: Column that follows the prompt's own where a chat template rendered it: the messages that the template was given.
MESSAGES_COLUMN = "messages"
MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))

#: Demonstrations for SFT: `tokens` is prompt + response, and tokens[prompt_length:] is what the last answer says.
DEMONSTRATIONS = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
    ]
)

#: Column that follows where every answer is to be learnt, [tokens]: 1 on what the assistant says, else 0.
LOSS_MASK_COLUMN = "loss_mask"
LOSS_MASK = pa.list_(pa.int8())

#: Preference pairs, whole conversations as tokens; the first `prompt_length` tokens of both are the same prompt.
PREFERENCES = pa.schema(
    [
        pa.field("chosen_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("rejected_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("margin", pa.float32()),  # how much better the chosen one was judged; null: not said
    ]
)

#: Finished rollouts, as a generator streams them.
SAMPLES = pa.schema(
    [
        *KEY,
        pa.field("policy_version", pa.int64(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("response_tokens", pa.list_(pa.int32()), nullable=False),
        # Raw log-probs (temperature 1, before top-k/top-p) of the sampled tokens, [response tokens].
        pa.field("response_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),  # "stop" or "length"
    ]
)

#: The reference's answer: log-probs of the response tokens at the sampling temperature, [response tokens].
REFERENCE = pa.schema([*KEY, pa.field("reference_logprobs", pa.list_(pa.float32()), nullable=False)])

REWARD_PREFIX = "reward/"


def reward_schema(component: str, parts: Sequence[str] = ()) -> pa.Schema:
    """Schema of one scorer's answer: the key, `reward/<component>` and `reward/<component>/<part>` for each part.

    Null means "did not apply", or that the call failed.
    """
    names = [component, *(f"{component}/{part}" for part in parts)]
    return pa.schema([*KEY, *(pa.field(REWARD_PREFIX + name, pa.float64()) for name in names)])


def sample_schema(prompts: pa.Schema) -> pa.Schema:
    """`SAMPLES` plus the extra columns that the prompt table brought from the dataset."""
    known = set(PROMPTS.names)
    return pa.schema([*SAMPLES, *(field for field in prompts if field.name not in known)])
