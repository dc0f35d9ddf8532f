"""From a dataset's cell to the text and tokens that the model sees: chat messages, templates, BOS and end of text.

A prompt is rendered with the template's generation prompt, a response is tokenised on its own and ends with the eos
token: exactly the tokens of a rollout, so that a policy is trained on what it will later be asked to continue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.data import DataSection
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True)
class Renderer:
    """How prompts and responses are written for one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    templated: bool
    system_prompt: str | None

    @classmethod
    def of(cls, section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> "Renderer":
        templated = section.chat_template == "auto" and bool(tokenizer.chat_template)
        return cls(tokenizer, templated, section.system_prompt)

    def prompt_text(self, cell: object, where: str) -> str:
        """The prompt as the model sees it. `cell` is a string or chat messages; `where` names it for the error."""
        if self.templated:
            messages = [{"role": "user", "content": cell}] if isinstance(cell, str) else read_messages(cell, where)
            return self._apply_template(messages, where)
        if not isinstance(cell, str):
            read_messages(cell, where)
            raise DataError(
                f"{where}: holds chat messages, but they would be rendered without a chat template. Choose a tokenizer "
                "that has one (and data.chat_template=auto), or a column of plain strings."
            )
        return f"{self.system_prompt}\n\n{cell}" if self.system_prompt else cell

    def prompt_tokens(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered prompts: as the template wrote them, or with the tokenizer's own BOS; never with two."""
        rows = self._encode(texts, add_special_tokens=not self.templated)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for row, text in zip(rows, texts, strict=True):
            if bos is not None and row[:2] == [bos, bos]:
                del row[0]
            if not self.templated and row[-1:] == [eos] and not text.endswith(self.tokenizer.eos_token):
                del row[-1]
        return rows

    def response_tokens(self, texts: list[str]) -> list[list[int]]:
        """Tokens of responses, each ending with exactly one eos."""
        eos = self.tokenizer.eos_token_id
        return [row if row[-1:] == [eos] else [*row, eos] for row in self._encode(texts, add_special_tokens=False)]

    def _encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]

    def _apply_template(self, messages: list[Message], where: str) -> str:
        from jinja2 import TemplateError

        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as exc:
            raise DataError(f"{where}: the tokenizer's chat template refuses these messages: {exc}") from exc


def read_messages(cell: object, where: str) -> list[Message]:
    """Chat messages with text content, checked; fields that are null in this row are left out."""
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: holds {_describe(cell)} where a string or a list of chat messages is needed.")
    for message in cell:
        fields = message if isinstance(message, dict) else {}
        if not isinstance(fields.get("role"), str) or not isinstance(fields.get("content"), str):
            raise DataError(
                f"{where}: every chat message needs a 'role' and a 'content', both strings; got {message!r}."
            )
    return [{key: value for key, value in message.items() if value is not None} for message in cell]


def read_response(cell: object, where: str) -> str:
    """A response: a string, or a list with the assistant's one message."""
    if isinstance(cell, str):
        return cell
    prompt, response = split_conversation(cell, where)
    if prompt:
        raise DataError(f"{where}: holds {len(prompt) + 1} chat messages where the assistant's answer alone is needed.")
    return response


def split_conversation(cell: object, where: str) -> tuple[list[Message], str]:
    """A whole conversation as (messages before the last, text of the last), which must be the assistant's."""
    messages = read_messages(cell, where)
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the conversation must end with the assistant's message, not '{messages[-1]['role']}'."
        )
    return messages[:-1], messages[-1]["content"]


def refuse_empty(rows: Sequence[Sequence[int]], where: Sequence[str]) -> None:
    """Raise DataError for the first prompt without a token: a model needs something to continue."""
    for row, place in zip(rows, where, strict=True):
        if not row:
            raise DataError(f"{place}: the prompt is empty.")


def _describe(cell: object) -> str:
    return "nothing (null)" if cell is None else f"{type(cell).__name__} {str(cell)[:40]!r}"
