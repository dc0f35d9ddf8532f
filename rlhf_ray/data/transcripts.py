"""Conversations written as plain text in the form of Anthropic's hh-rlhf: "\\n\\nHuman: ...\\n\\nAssistant: ...".

The blank line before the first "Human:" may be missing, as it is where somebody stripped the text.
"""

import re
from typing import TypeGuard

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(cell: object) -> TypeGuard[str]:
    return isinstance(cell, str) and (cell.startswith(HUMAN) or (cell.startswith(HUMAN.lstrip()) and ASSISTANT in cell))


def read_transcript(text: str) -> list[dict[str, str]]:
    """The turns as chat messages. An empty last turn of the assistant, which a response would fill, is left out."""
    parts = _SPEAKER.split(text)[1:]
    turns = [(_ROLES[speaker], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1] == ("assistant", ""):
        del turns[-1]
    return [{"role": role, "content": content} for role, content in turns]


def open_transcript(cell: object) -> object:
    """The cell; a transcript as chat messages."""
    return read_transcript(cell) if is_transcript(cell) else cell


def split_transcript(text: str) -> tuple[str, str]:
    """(the text up to and with the last "Assistant:", the rest); where the human speaks last, the rest is empty."""
    if text.rfind(ASSISTANT) < text.rfind(HUMAN):
        return text + ASSISTANT, ""
    end = text.rfind(ASSISTANT) + len(ASSISTANT)
    return text[:end], text[end:]


def answers(text: str) -> list[tuple[int, int]]:
    """[start, end) of everything that the assistant says, in characters of the transcript."""
    turns = list(_SPEAKER.finditer(text))
    ends = [*(turn.start() for turn in turns[1:]), len(text)]
    return [(turn.end(), end) for turn, end in zip(turns, ends, strict=True) if turn[1] == "Assistant"]
