"""Rewards of `configs/instruction_following_llama2_7b.yaml`: three rules beside the neural reward model.

Each gives a number in [0, 1]; an empty response earns nothing.
"""

import re
from typing import Any

from rlhf_ray.rewards import RewardComposer, llm_reward

#: Words that say how a text hangs together.
_CONNECTING = """
also although because but example finally first hence however instead later last next second since so then therefore
third though thus when while
"""
#: Words of an instruction that an answer need not repeat.
_ASKED_WITH = """
about and answer are briefly can could describe does explain following for from give given how into list name
please sentence tell that the them this what when which why with words write you your
"""
CONNECTIVES, _ASKING = frozenset(_CONNECTING.split()), frozenset(_ASKED_WITH.split())
_WORD = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]?")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


class InstructionRewards(RewardComposer):
    """Three rules about form; whether an answer is any good is the neural model's to say."""

    min_words, max_words = 5, 250  # the length of a good answer

    @llm_reward
    def format_compliance(self, prompt: str, response: str) -> float:
        """A third each: begins like a sentence or a list, ends like one, is neither too short nor too long."""
        text = response.strip()
        if not text:
            return 0.0
        begins = text[0].isupper() or bool(_LIST_ITEM.match(text))
        ends = text[-1] in ".!?" or bool(_LIST_ITEM.match(text.splitlines()[-1]))
        fits = self.min_words <= len(text.split()) <= self.max_words
        return (begins + ends + fits) / 3

    @llm_reward
    def instruction_acknowledgment(
        self, prompt: str, response: str, messages: list[dict[str, str]] | None = None
    ) -> float:
        """The share of the instruction's own words that the answer takes up; two thirds of them are enough."""
        asked = messages[-1]["content"] if messages else prompt
        words = {word for word in _WORD.findall(asked.lower()) if len(word) > 2} - _ASKING
        said = set(_WORD.findall(response.lower()))
        if not words or not said:
            return float(bool(said))
        taken = sum(any(_akin(word, spoken) for spoken in said) for word in words)
        return min(1.0, 1.5 * taken / len(words))

    @llm_reward
    def response_structure(self, prompt: str, response: str) -> float:
        """A third each: more than one sentence or item, a connective or a list, nothing said twice."""
        sentences = [" ".join(_WORD.findall(part.lower())) for part in _SENTENCE.findall(response)]
        sentences = [sentence for sentence in sentences if sentence]
        if not sentences:
            return 0.0
        listed = bool(_LIST_ITEM.search(response))
        words = " ".join(sentences).split()
        connected = listed or not CONNECTIVES.isdisjoint(words)
        triples = list(zip(words, words[1:], words[2:], strict=False))
        fresh = len(set(sentences)) == len(sentences) and len(set(triples)) == len(triples)
        return ((len(sentences) > 1) + connected + fresh) / 3


def with_input(row: dict[str, Any]) -> dict[str, Any]:
    """Instruction and input as one prompt: `data.preprocess` of the recipe, for rows like those of tatsu-lab/alpaca."""
    parts = [row["instruction"], row.get("input") or ""]
    return {"instruction": "\n\n".join(part for part in parts if part)}


def _akin(word: str, spoken: str) -> bool:
    """Whether two words are forms of one: equal, or with four or more letters in common at the start of both."""
    return word == spoken or (len(word) > 4 and len(spoken) > 3 and spoken[: len(word) - 2] == word[:-2])
