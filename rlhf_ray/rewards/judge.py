"""A language model as judge, behind any OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, hosted ones).

The rubric is a text file, sent as one user message with {prompt}, {response} and the sample's columns filled in
(`{{name}}` stands for the text {name}). The reward is (grade - minimum) / (maximum - minimum).

Structured, the answer is JSON held to a schema with the grade alone: cheap, and a model of any size answers in form
(vLLM lets a weak one fill its answer with blanks, unless it is served with `--structured-outputs-config
'{"backend": "xgrammar", "disable_any_whitespace": true}'`).
A judge that should reason first is a reasoning model (whose server keeps its thoughts apart), or is asked in plain text
with `structured: false` and a rubric that ends with "Finish with `Grade: <number>`" (cf. Liu et al. 2023, G-Eval).
An answer without a grade in the range is a failure that shows the answer; it never becomes a number.
"""

import asyncio
import difflib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_ray.config.rewards import JudgeRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.endpoint import Endpoint, Rows
from rlhf_ray.rewards.http import NotThere, RequestFailed, excerpt
from rlhf_ray.rewards.outcome import CallFailure, Outcome

MESSAGES = "messages"  # the column with the conversation that a prompt was rendered from


class JudgeScorer:
    """One judge. Raises ConfigError for a rubric that cannot be read or filled in, or an absent token."""

    def __init__(
        self, name: str, section: JudgeRewardSection, columns: Sequence[str], where: str | None = None
    ) -> None:
        """`columns`: names of the sample table's columns; `where`: the section's key, default `rewards.<name>`."""
        self._where, self._section = where or f"rewards.{name}", section
        self._rubric = Rubric.read(self._where, section.rubric, columns)
        self._reads_messages = "prompt" in self._rubric.names and MESSAGES in columns
        self._endpoint = Endpoint(self._where, section)
        self._url = section.base_url.rstrip("/")

    def start(self) -> None:
        """See that the endpoint has the model. Raises ConfigError or InfrastructureError."""
        known = self._endpoint.probe(self._models)
        if known and self._section.model not in known:
            nearest = difflib.get_close_matches(self._section.model, known, n=1)
            raise ConfigError(
                f"{self._where}.model: {self._url} has no model `{self._section.model}`."
                + (f" Did you mean `{nearest[0]}`?" if nearest else f" It has {', '.join(known[:10])}.")
            )

    def score(self, table: pa.Table) -> list[Outcome]:
        """The outcome of every row of a `SAMPLES` table, in its order."""
        names = [*self._rubric.names, *([MESSAGES] if self._reads_messages else [])]
        cells = {name: table.column(name).to_pylist() for name in names}
        texts = [self._fill(dict(zip(cells, row, strict=True))) for row in zip(*cells.values(), strict=True)]

        async def ask(rows: Rows, deadline: float) -> list[Outcome]:
            return [await self._ask(texts[row], deadline) for row in rows]

        return self._endpoint.outcomes(len(texts), 1, ask)

    def close(self) -> None:
        """Close the connections; the next `score` would open others."""
        self._endpoint.close()

    def _fill(self, sample: dict[str, Any]) -> str:
        if self._reads_messages and sample[MESSAGES]:
            sample["prompt"] = conversation_text(sample[MESSAGES])
        return self._rubric.fill(sample)

    async def _models(self, deadline: float) -> list[str]:
        """The names that the endpoint lists; not all endpoints do."""
        try:
            answer = await self._endpoint.client.get(f"{self._url}/models", deadline)
            return [str(model["id"]) for model in answer["data"]]
        except (NotThere, KeyError, TypeError):
            return []

    async def _ask(self, text: str, deadline: float) -> Outcome:
        started = asyncio.get_running_loop().time()
        answer = await self._endpoint.client.post(f"{self._url}/chat/completions", self._request(text), deadline)
        seconds = asyncio.get_running_loop().time() - started
        try:
            choice = answer["choices"][0]
            content, finished = choice["message"]["content"], choice.get("finish_reason")
        except (KeyError, IndexError, TypeError):
            shown = excerpt(json.dumps(answer, ensure_ascii=False))
            raise RequestFailed("wrong_type", f"got an answer that is no chat completion: {shown}") from None
        return self._outcome(content or "", finished == "length", seconds)

    def _request(self, text: str) -> dict[str, Any]:
        section = self._section
        request: dict[str, Any] = {
            "model": section.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": section.max_new_tokens,
            "temperature": section.temperature,
        }
        if section.temperature > 0:
            request["seed"] = zlib.crc32(text.encode())  # the same sample gets the same grade
        if section.structured:
            schema = {"name": "grade", "strict": True, "schema": grade_schema(section.minimum, section.maximum)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return request

    def _outcome(self, content: str, cut: bool, seconds: float) -> Outcome:
        low, high = self._section.minimum, self._section.maximum
        grade = structured_grade(content) if self._section.structured else plain_grade(content)
        if grade is not None and low <= grade <= high:
            return Outcome(value=(grade - low) / (high - low), seconds=seconds)
        why = "without a grade" if grade is None else f"with the grade {grade:g}, outside {low:g} to {high:g}"
        hint = f"; it was cut at max_new_tokens ({self._section.max_new_tokens})" if cut else ""
        return Outcome(failure=CallFailure("wrong_type", f"answered {why}{hint}: {excerpt(content)}"), seconds=seconds)


class Rubric:
    """The judge's instructions, with places for the sample."""

    _PLACE = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")

    def __init__(self, text: str) -> None:
        self._text = text
        self.names = tuple(dict.fromkeys(match[2] for match in self._PLACE.finditer(text) if match[2]))

    @classmethod
    def read(cls, where: str, path: str, columns: Sequence[str]) -> "Rubric":
        """The rubric in a file. Raises ConfigError when it is not there, or has a place that nothing fills."""
        try:
            rubric = cls(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}.rubric: cannot read {Path(path).resolve()}: {error}") from None
        known = ", ".join(f"{{{column}}}" for column in columns)
        if unknown := [name for name in rubric.names if name not in columns]:
            raise ConfigError(
                f"{where}.rubric: {path} has {{{unknown[0]}}}, but the samples have {known}. "
                f"Write {{{{{unknown[0]}}}}} for the text itself."
            )
        if "response" not in rubric.names:
            raise ConfigError(f"{where}.rubric: {path} has no {{response}}: the judge would not see what it grades.")
        return rubric

    def fill(self, sample: Mapping[str, Any]) -> str:
        """The text for one sample, in one pass: a {prompt} inside a response stays what it is."""
        return self._PLACE.sub(lambda match: _as_text(sample[match[2]]) if match[2] else f"{{{match[1]}}}", self._text)


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation for a reader: a single message as it is, several with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def grade_schema(minimum: float, maximum: float) -> dict[str, Any]:
    """JSON schema of an answer; whole grades where both ends are whole, listed, so that nothing else can be said."""
    if minimum == int(minimum) and maximum == int(maximum) and maximum - minimum <= 100:
        grade: dict[str, Any] = {"type": "integer", "enum": list(range(int(minimum), int(maximum) + 1))}
    else:
        grade = {"type": "number", "minimum": minimum, "maximum": maximum}
    return {"type": "object", "properties": {"grade": grade}, "required": ["grade"], "additionalProperties": False}


def structured_grade(content: str) -> float | None:
    """The `grade` of a JSON object; None where there is none."""
    try:
        grade = json.loads(_without_thoughts(content))["grade"]
    except (ValueError, KeyError, TypeError):
        return None
    number = isinstance(grade, (int, float)) and not isinstance(grade, bool)
    return float(grade) if number and math.isfinite(grade) else None


_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_RANGE = r"(?!\s*(?:-|–|to)\s*\d)"  # "Score (1-10): 7" is a 7
_NAMED = re.compile(
    rf"\b(?:grade|score|rating)\b(?:\s*\([^)]*\))?\W{{0,5}}?(?:(?:is|of)\b)?\W{{0,5}}?({_NUMBER})\b{_RANGE}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"\W*?({_NUMBER})(?:\s*/\s*\d+)?\W*")


def plain_grade(content: str) -> float | None:
    """The last "grade: 7" (or score, rating; "7/10" too) of a text, or a number that is all of it; else None."""
    text = _without_thoughts(content)
    if named := _NAMED.findall(text):
        return float(named[-1])
    alone = _ALONE.fullmatch(text)
    return float(alone[1]) if alone else None


def _without_thoughts(content: str) -> str:
    """What follows the thinking of a model whose server does not keep it apart."""
    return content.rpartition("</think>")[2].strip()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
