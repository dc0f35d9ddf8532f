"""From a prompt to the text and tokens that the model sees: chat messages, templates, BOS and end of text.

A prompt is rendered with the template's generation prompt, a response is tokenised on its own and ends with the eos
token: exactly the tokens of a rollout, so that a policy is trained on what it will later be asked to continue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.messages import Message, read_messages
from rlhf_ray.data.templates import choose_template
from rlhf_ray.data.transcripts import open_transcript
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it, and the messages it was rendered from (None: it was text from the start)."""

    text: str
    messages: list[Message] | None


@dataclass(frozen=True)
class Renderer:
    """How prompts and responses are written for one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None  # Jinja; None: text as it is
    system_prompt: str | None

    @classmethod
    def of(cls, section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> "Renderer":
        return cls(tokenizer, choose_template(section, tokenizer), section.system_prompt)

    def opened(self, cell: object) -> object:
        """The cell; a transcript ("\\n\\nHuman: ...") as messages where there is a template to render them."""
        return open_transcript(cell) if self.template is not None else cell

    def prompt(self, cell: object, where: str) -> Prompt:
        """The prompt that `cell` holds: a string, or chat messages. `where` names it for the error."""
        if self.template is not None:
            messages = [{"role": "user", "content": cell}] if isinstance(cell, str) else read_messages(cell, where)
            if self.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.system_prompt}, *messages]
            return Prompt(self.render(messages, where), messages)
        if not isinstance(cell, str):
            read_messages(cell, where)
            raise DataError(
                f"{where}: holds chat messages, but they would be rendered without a chat template. Choose one with "
                "data.chat_template, a tokenizer that has one (and data.chat_template=auto), or a column of plain "
                "strings."
            )
        return Prompt(f"{self.system_prompt}\n\n{cell}" if self.system_prompt else cell, None)

    def prompt_tokens(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered prompts: as the template wrote them, or with the tokenizer's own BOS; never with two."""
        rows = self._encode(texts, add_special_tokens=self.template is None)
        return [row[self._own(row, text)] for row, text in zip(rows, texts, strict=True)]

    def prompt_offsets(self, text: str, where: str) -> list[tuple[int, int]]:
        """[start, end) in the text of each of its prompt tokens; (0, 0) for those that stand for none of it."""
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{where}: this tokenizer cannot say where in a text its tokens stand, so that earlier answers cannot "
                "be found. Learn the last one only (sft.loss_on=completion), or use a fast tokenizer."
            )
        encoded = self.tokenizer(
            text, add_special_tokens=self.template is None, return_offsets_mapping=True, verbose=False
        )
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        return offsets[self._own(encoded["input_ids"], text)]

    def response_tokens(self, texts: list[str]) -> list[list[int]]:
        """Tokens of responses, each ending with exactly one eos."""
        return [self._ended(row) for row in self._encode(texts, add_special_tokens=False)]

    def text_tokens(self, texts: list[str]) -> list[list[int]]:
        """Tokens of whole texts, with the tokenizer's own BOS and exactly one eos."""
        rows = self._encode(texts, add_special_tokens=True)
        return [self._ended(row[self._own(row, text)]) for row, text in zip(rows, texts, strict=True)]

    def render(self, messages: list[Message], where: str, open_answer: bool = True) -> str:
        """The template's text, up to where an answer begins; without `open_answer`, to the last message's end."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=open_answer
            )
        except TemplateError as exc:
            raise DataError(f"{where}: the chat template refuses these messages: {exc}") from exc

    def _encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]

    def _own(self, row: list[int], text: str) -> slice:
        """The tokens without a second BOS, and without an eos that the tokenizer put after text taken as it is."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        start, stop = 0, len(row)
        while bos is not None and row[start : start + 2] == [bos, bos]:
            start += 1
        if self.template is None and row[-1:] == [eos] and not text.endswith(self.tokenizer.eos_token):
            stop -= 1
        return slice(start, stop)

    def _ended(self, row: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return row if row[-1:] == [eos] else [*row, eos]


def refuse_empty(rows: Sequence[Sequence[int]], where: Sequence[str]) -> None:
    """Raise DataError for the first prompt without a token: a model needs something to continue."""
    for row, place in zip(rows, where, strict=True):
        if not row:
            raise DataError(f"{place}: the prompt is empty.")
