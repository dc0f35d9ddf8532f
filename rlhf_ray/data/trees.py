"""Message trees in the form of OpenAssistant's oasst: one message per row, each naming the message it answers.

    {"message_id": "b", "parent_id": "a", "role": "prompter", "text": "And on the moon?"}

Every row becomes the conversation from the root down to it.
"""

from collections.abc import Callable, Collection

import pyarrow as pa

from rlhf_ray import schema
from rlhf_ray.data.messages import Message, role_name
from rlhf_ray.errors import DataError

_COLUMNS = ("message_id", "parent_id", "role")


def are_messages(columns: Collection[str]) -> bool:
    """Whether rows with these columns are single messages of trees."""
    return {*_COLUMNS} <= {*columns}


def is_tree(table: pa.Table, text_column: str) -> bool:
    """Whether the rows are single messages of trees, their text in `text_column`."""
    if not are_messages(table.column_names) or text_column not in table.column_names:
        return False
    return pa.types.is_string(table[text_column].type) or pa.types.is_large_string(table[text_column].type)


def grow(table: pa.Table, text_column: str, speaker: str, where: Callable[[int], str]) -> tuple[pa.Table, list[int]]:
    """The rows whose message is `speaker`'s (user or assistant), and their indices in `table`.

    In `text_column` stands the conversation that ends with the row's message. `where` names a row for the DataError:
    of a message without text, with an unknown role or parent, with another's id, or that answers itself.
    """
    tree = _Tree(table, text_column, where)
    rows = [row for row, message in enumerate(tree.messages) if message["role"] == speaker]
    conversations = pa.array([tree.conversation(row) for row in rows], schema.MESSAGES)
    index = table.column_names.index(text_column)
    return table.take(pa.array(rows, pa.int64())).set_column(index, text_column, conversations), rows


class _Tree:
    def __init__(self, table: pa.Table, text_column: str, where: Callable[[int], str]) -> None:
        self.where = where
        self.ids, self.parents, roles = (table[name].to_pylist() for name in _COLUMNS)
        texts = table[text_column].to_pylist()
        self.messages = [
            self._message(row, role, text) for row, (role, text) in enumerate(zip(roles, texts, strict=True))
        ]
        self.row_of: dict[object, int] = {}
        for row, identity in enumerate(self.ids):
            if self.row_of.setdefault(identity, row) != row:
                raise DataError(
                    f"{where(row)}: its message_id '{identity}' is also that of {where(self.row_of[identity])}."
                )

    def _message(self, row: int, role: object, text: object) -> Message:
        name = role_name(role) if isinstance(role, str) else None
        if name not in ("user", "assistant", "system"):
            raise DataError(f"{self.where(row)}: the message's role is {role!r}; known are prompter and assistant.")
        if not isinstance(text, str):
            raise DataError(f"{self.where(row)}: the message has no text.")
        return {"role": name, "content": text}

    def conversation(self, row: int) -> list[Message]:
        """The messages from the root to this row."""
        path, at = [row], row
        while (parent := self.parents[at]) is not None:
            if parent not in self.row_of:
                raise DataError(
                    f"{self.where(at)}: answers message '{parent}', which is not in the data. Leave such messages out "
                    "with data.preprocess, or add the one they answer."
                )
            at = self.row_of[parent]
            if at in path:
                raise DataError(f"{self.where(at)}: the message is among the answers to itself (parent_id).")
            path.append(at)
        return [self.messages[at] for at in reversed(path)]
