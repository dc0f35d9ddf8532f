"""Chat messages in the forms that datasets write them, to the one form used here: `{"role": ..., "content": ...}`.

Read are {"role", "content"} as the chat templates of transformers take it, {"from", "value"} as in ShareGPT, and
{"role", "text"} as in oasst's threads; roles by any of their names below.
"""

from itertools import zip_longest
from typing import Any

from rlhf_ray.errors import DataError

Message = dict[str, Any]

_FORMS = (("role", "content"), ("from", "value"), ("role", "text"))
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
}
_SPEAKERS = {"system", "user", "assistant", *_ROLES}


def role_name(role: str) -> str:
    """The role as chat templates call it; one without another name stays as it is."""
    return _ROLES.get(role, role)


def read_messages(cell: object, where: str) -> list[Message]:
    """Chat messages with text content; fields that are null in this row are left out. `where` names the cell.

    Raises DataError for anything else, naming the message.
    """
    if isinstance(cell, dict) and cell and all(isinstance(values, list) for values in cell.values()):
        # a list of structs, as the Sequence feature of `datasets` stores it: one list per field
        cell = [dict(zip(cell, values, strict=True)) for values in zip_longest(*cell.values())]
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: holds {_describe(cell)} where a string or a list of chat messages is needed.")
    return [_read_message(message, f"{where}, message {number}") for number, message in enumerate(cell)]


def _read_message(message: object, where: str) -> Message:
    fields = {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
    for speaker, text in _FORMS:
        if isinstance(fields.get(speaker), str) and isinstance(fields.get(text), str):
            break
    else:
        raise DataError(
            f"{where}: needs a 'role' and a 'content' (or 'from' and 'value', as ShareGPT has it), both strings; "
            f"got {message!r}."
        )
    if speaker == "from" and fields["from"] not in _SPEAKERS:
        raise DataError(f"{where}: 'from' is '{fields['from']}'; known are {', '.join(sorted(_SPEAKERS))}.")
    role, content = role_name(fields.pop(speaker)), fields.pop(text)
    return {"role": role, "content": content, **fields}


def _describe(cell: object) -> str:
    return "nothing (null)" if cell is None else f"{type(cell).__name__} {str(cell)[:40]!r}"
