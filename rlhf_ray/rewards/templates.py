"""How a reward model reads a sample: the text or texts that it gets, as token ids of its own tokenizer.

    None      prompt followed by response, as one text
    pair      prompt and response as two texts, with the tokenizer's separators (cross-encoders)
    chat      the tokenizer's chat template on the messages and the response
    "..."     any text with {prompt} and {response}

But for the first, a prompt that was rendered from messages is what they say, without the policy's template. A sample
that is too long loses its start, so that the response is read.
"""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.outcome import CallFailure
from rlhf_ray.schema import MESSAGES_COLUMN


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample, int64 [tokens], and which of its two texts each belongs to, where there are two."""

    ids: np.ndarray
    types: np.ndarray | None = None


class SampleReader:
    """Turns rows of a sample table into tokens. Raises ConfigError for a template that cannot be followed."""

    def __init__(self, template: str | None, tokenizer: Any, max_tokens: int, model: str) -> None:
        """`model` names the reward model in errors."""
        self._template, self._tokenizer, self._max_tokens = template, tokenizer, max_tokens
        tokenizer.truncation_side = "left"
        if template == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"template: `chat`, but the tokenizer of reward model {model} has no chat template. Write one out with "
                "{prompt} and {response}, or leave `template` empty: the model then reads prompt + response."
            )
        if template not in (None, "pair", "chat"):
            _check_fields(str(template))

    def read(self, table: pa.Table) -> list[Encoded | CallFailure]:
        """One entry per row; a failure where the chat template refuses the row's messages."""
        if not table.num_rows:
            return []
        prompts, responses = table.column("prompt").to_pylist(), table.column("response").to_pylist()
        if self._template is None:
            return [*self._texts([prompt + response for prompt, response in zip(prompts, responses, strict=True)])]
        if self._template == "chat":
            return self._chats(_conversations(table, prompts, responses))
        said = _said(table, prompts)
        if self._template == "pair":
            return list(self._pairs(said, responses))
        return [
            *self._texts([self._template.format(prompt=p, response=r) for p, r in zip(said, responses, strict=True)])
        ]

    def _texts(self, texts: Sequence[str], special: bool = True) -> list[Encoded]:
        """One text each; `special`: with the tokens that the tokenizer puts around a text."""
        if not texts:
            return []
        rows = self._tokenizer(texts, truncation=True, max_length=self._max_tokens, add_special_tokens=special)
        bos = self._tokenizer.bos_token_id
        # A chat template already wrote the BOS that the tokenizer adds again.
        return [_encoded(ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids) for ids in rows["input_ids"]]

    def _chats(self, conversations: Sequence[list[dict[str, str]]]) -> list[Encoded | CallFailure]:
        rendered: list[str | CallFailure] = []
        for messages in conversations:
            try:
                rendered.append(self._tokenizer.apply_chat_template(messages, tokenize=False))
            except TemplateError as error:
                message = f"was not asked: its chat template refuses the messages ({error})"
                rendered.append(CallFailure("raised", message))
        encoded = iter(self._texts([text for text in rendered if isinstance(text, str)], special=False))
        return [next(encoded) if isinstance(text, str) else text for text in rendered]

    def _pairs(self, prompts: Sequence[str], responses: Sequence[str]) -> Iterator[Encoded]:
        rows = self._tokenizer(prompts, responses, return_token_type_ids=True)
        for row, (ids, types) in enumerate(zip(rows["input_ids"], rows["token_type_ids"], strict=True)):
            if len(ids) > self._max_tokens:
                yield self._short_pair(prompts[row], responses[row])
            else:
                yield _encoded(ids, types)

    def _short_pair(self, prompt: str, response: str) -> Encoded:
        """The prompt loses its start; both texts do where the response alone is too long."""
        response_tokens = len(self._tokenizer(response, add_special_tokens=False)["input_ids"])
        room = self._max_tokens - self._tokenizer.num_special_tokens_to_add(pair=True)
        cut = self._tokenizer(
            prompt,
            response,
            truncation="only_first" if response_tokens < room else "longest_first",
            max_length=self._max_tokens,
            return_token_type_ids=True,
        )
        return _encoded(cut["input_ids"], cut["token_type_ids"])


def _encoded(ids: Sequence[int], types: Sequence[int] | None = None) -> Encoded:
    return Encoded(np.array(ids, dtype=np.int64), None if types is None else np.array(types, dtype=np.int64))


def _conversations(table: pa.Table, prompts: Sequence[str], responses: Sequence[str]) -> list[list[dict[str, str]]]:
    """Each row's messages and the assistant's answer; a prompt without messages is one message of the user."""
    known = MESSAGES_COLUMN in table.column_names
    starts: list[Any] = table.column(MESSAGES_COLUMN).to_pylist() if known else [None] * len(prompts)
    return [
        [*(start or [{"role": "user", "content": prompt}]), {"role": "assistant", "content": response}]
        for start, prompt, response in zip(starts, prompts, responses, strict=True)
    ]


def _said(table: pa.Table, prompts: Sequence[str]) -> list[str]:
    """The text of each row's messages; a prompt without messages is the text itself."""
    if MESSAGES_COLUMN not in table.column_names:
        return list(prompts)
    cells = zip(table.column(MESSAGES_COLUMN).to_pylist(), prompts, strict=True)
    return ["\n\n".join(message["content"] for message in messages) if messages else p for messages, p in cells]


def _check_fields(template: str) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ConfigError(
            f"template: {template!r} is no format string ({error}); write a literal brace twice"
        ) from None
    if unknown := sorted(fields - {"prompt", "response"}):
        raise ConfigError(
            f"template: {template!r} has the field {{{unknown[0]}}}; there are {{prompt}} and {{response}} (a literal "
            "brace is written twice)"
        )
    if "response" not in fields:
        raise ConfigError(
            f"template: {template!r} never shows the {{response}}. Give `pair`, `chat`, or text with {{prompt}} and "
            "{response}."
        )
