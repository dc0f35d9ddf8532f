"""Rows against the model's chat template and the token limit, a few hundred at a time."""

from typing import TYPE_CHECKING

from rlhf_ray.config.data import DataSection, PromptDataSection
from rlhf_ray.data.conversation import Renderer
from rlhf_ray.data.entries import Entry
from rlhf_ray.data.findings import Findings, Problem
from rlhf_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 512


def token_limit(section: DataSection) -> int | None:
    """The section's own limit on prompt + response; None where it leaves that to the run."""
    return section.max_prompt_tokens if isinstance(section, PromptDataSection) else getattr(section, "max_tokens", None)


class LengthCheck:
    """Measures entries as a run would write them."""

    def __init__(self, section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.renderer, self.limit = Renderer.of(section, tokenizer), token_limit(section)
        self._waiting: list[tuple[int, str, Entry]] = []  # number, rendered prompt

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, number: int, entries: list[Entry], findings: Findings) -> None:
        """Take a row's entries; what is found may be added later, at the latest by `flush`."""
        self.wait(number, entries, findings)
        if self.waiting >= BATCH:
            self.flush(findings)

    def wait(self, number: int, entries: list[Entry], findings: Findings) -> None:
        """Render a row's entries; what the template refuses is found at once."""
        try:
            for entry in entries:
                text = "" if entry.prompt is None else self.renderer.prompt(entry.prompt, "the prompt").text
                self._waiting.append((number, text, entry))
        except DataError as exc:
            findings.add(number, Problem("template", str(exc)))

    def flush(self, findings: Findings) -> None:
        for number, lengths in self.measured():
            if self.limit is not None and (total := lengths[0] + max(lengths[1:], default=0)) > self.limit:
                findings.add(number, Problem("too long", f"{total:,} tokens, over the limit of {self.limit:,}."))

    def measured(self) -> list[tuple[int, list[int]]]:
        """(number, tokens of the prompt and of each response) of the entries that wait, in their order."""
        waiting = [row for row in self._waiting if _is_text(row)]
        self._waiting = []
        prompts = self.renderer.prompt_tokens([prompt for _, prompt, _ in waiting])
        texts = [text for _, _, entry in waiting for text in entry.responses]
        responses = iter(self.renderer.response_tokens(texts))
        return [
            (number, [len(prompt), *(len(next(responses)) for _ in entry.responses)])
            for (number, _, entry), prompt in zip(waiting, prompts, strict=True)
        ]


def _is_text(row: tuple[int, str, Entry]) -> bool:
    """Whether a tokenizer takes it; what is not has been found by then."""
    try:
        "".join((row[1], *row[2].responses)).encode()
    except UnicodeEncodeError:
        return False
    return True
