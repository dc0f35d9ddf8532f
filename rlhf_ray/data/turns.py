"""Where a prompt ends and a response begins, in whole conversations and in pairs of them.

A prompt is text or chat messages. Conversations are chat messages (`messages.py`) or transcripts (`transcripts.py`).
"""

import re
from collections.abc import Sequence

from rlhf_ray.data.messages import Message, read_messages
from rlhf_ray.data.rows import describe
from rlhf_ray.data.transcripts import ASSISTANT, HUMAN, is_transcript, split_transcript
from rlhf_ray.errors import DataError

Prompt = str | list[Message]
Triple = tuple[Prompt, str, str]  # (prompt, chosen response, rejected response)

_UP_TO_LAST_SPACE = re.compile(r".*\s", re.DOTALL)


def unanswered(cell: object, where: str) -> Prompt:
    """The prompt in a cell: text as it is, a conversation without the assistant's last word."""
    if isinstance(cell, str):
        return split_transcript(cell)[0] if is_transcript(cell) else cell
    return _without_answer(read_messages(cell, where), where)


def read_response(cell: object, where: str) -> str:
    """A response: a string, or a list with the assistant's one message."""
    if isinstance(cell, str):
        return cell
    prompt, response = split_conversation(cell, where)
    if prompt:
        raise DataError(f"{where}: holds {len(prompt) + 1} chat messages where the assistant's answer alone is needed.")
    return response


def split_conversation(cell: object, where: str) -> tuple[Prompt, str]:
    """A whole conversation as (all before the last message, its text); the last must be the assistant's."""
    if isinstance(cell, str) and is_transcript(cell):
        prompt, response = split_transcript(cell)
        if not response.strip():
            raise DataError(f"{where}: the conversation must end with what the assistant says.")
        return prompt, response
    messages = read_messages(cell, where)
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the conversation must end with the assistant's message, not '{messages[-1]['role']}'."
        )
    return messages[:-1], messages[-1]["content"]


def split_pair(chosen: object, rejected: object, where_chosen: str, where_rejected: str) -> Triple:
    """Two whole conversations, or two texts that begin alike, as one prompt and two responses."""
    prompt: Prompt
    if texts := _both_text(chosen, rejected, where_rejected):
        prompt = _shared_text(*texts, where_rejected)
        better, worse = (text[len(prompt) :] for text in texts)
        same = HUMAN not in better and HUMAN not in worse
    else:
        prompt, better = split_conversation(chosen, where_chosen)
        other_prompt, worse = split_conversation(rejected, where_rejected)
        same = prompt == other_prompt
    if not prompt:
        raise DataError(f"{where_chosen}: holds the answer alone. Name the column of prompts with data.prompt_column.")
    if not same:
        raise DataError(
            f"{where_rejected}: answers another conversation than the chosen one does. "
            "Correct such rows, or leave them out with data.preprocess."
        )
    return prompt, better, worse


def shared_prompt(chosen: object, rejected: object, where_chosen: str, where_rejected: str) -> Prompt:
    """The prompt that two answers, each with what came before it, have in common."""
    if texts := _both_text(chosen, rejected, where_rejected):
        return _shared_text(*texts, where_rejected)
    one, other = read_messages(chosen, where_chosen), read_messages(rejected, where_rejected)
    return _without_answer(one[: _alike(one, other)], where_rejected)


def _without_answer(messages: list[Message], where: str) -> list[Message]:
    turns = list(messages)
    while turns and turns[-1]["role"] == "assistant":
        del turns[-1]
    if all(message["role"] == "system" for message in turns):
        raise DataError(f"{where}: the conversation has no message of the user to respond to.")
    return turns


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """How many first elements are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _both_text(chosen: object, rejected: object, where: str) -> tuple[str, str] | None:
    """Both where they are text, None where neither is. Raises DataError where they differ in that."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        return chosen, rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError(f"{where}: holds {describe(rejected)}, but the chosen one holds {describe(chosen)}.")
    return None


def _shared_text(chosen: str, rejected: str, where: str) -> str:
    """The longest common beginning that ends with "Assistant:" (transcripts) or between two words.

    A last space is left to the responses: tokenizers make it part of the next word.
    """
    shared = chosen[: _alike(chosen, rejected)]
    if is_transcript(shared) and ASSISTANT in shared:
        return shared[: shared.rfind(ASSISTANT) + len(ASSISTANT)]
    words = _UP_TO_LAST_SPACE.match(shared)
    if words is None or not words.group().strip():
        raise DataError(
            f"{where}: begins otherwise than the chosen one, so they do not hold their prompt; and there is no column "
            "of prompts. Name it with data.prompt_column."
        )
    return words.group().removesuffix(" ")
