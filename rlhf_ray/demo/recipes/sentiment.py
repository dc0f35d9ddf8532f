"""Rewards of `configs/sentiment_gpt2.yaml`: reviews that are positive, short and do not go round in circles.

Plain rules over words, so that a reader can check every number by hand.
"""

import re
from collections import Counter
from itertools import pairwise
from typing import Any

from rlhf_ray.rewards import RewardComposer, llm_reward

_POSITIVE = """
amazing beautiful best brilliant charming clever delightful enjoy enjoyed excellent exciting fantastic fine fun
funny good gorgeous great happy impressive joy liked lovely loved magnificent memorable moving perfect pleasant
powerful recommend remarkable stunning superb sweet terrific thrilling touching warm witty wonderful
"""
_NEGATIVE = """
annoying awful awkward bad bland bored boring cheap clumsy confusing dire disappointing dreadful dull empty failed
flat forgettable hate hated horrible lame lazy mediocre mess messy pointless poor predictable ridiculous sad silly
slow stupid terrible tedious tired ugly unfunny waste weak worse worst
"""
POSITIVE, NEGATIVE = frozenset(_POSITIVE.split()), frozenset(_NEGATIVE.split())
_WORD = re.compile(r"[a-z']+")


class SentimentRewards(RewardComposer):
    """Three rules; the composer's `reward_weights` or the YAML's `weight` balance them."""

    max_chars = 300  # a response this long earns no brevity
    enough = 3  # so many positive words earn all that positivity gives

    @llm_reward
    def brevity_bonus(self, prompt: str, response: str) -> float:
        """From 1 for nothing said down to 0 at `max_chars` characters."""
        return max(0.0, 1.0 - len(response) / self.max_chars)

    @llm_reward
    def positivity_reward(self, prompt: str, response: str) -> float:
        """Positive minus negative words, as a share of `enough`, within [-1, 1]. A word counts once."""
        said = set(_words(response))
        return max(-1.0, min(1.0, (len(said & POSITIVE) - len(said & NEGATIVE)) / self.enough))

    @llm_reward
    def coherence_penalty(self, prompt: str, response: str) -> float:
        """Minus the share of words that continue a pair of words already said; -1 where nothing is said."""
        words = _words(response)
        if not words:
            return -1.0
        pairs = Counter(pairwise(words))
        return -sum(count - 1 for count in pairs.values()) / len(words)


def opening(row: dict[str, Any], words: int = 12) -> dict[str, Any]:
    """A review's first words, as the prompt: `data.preprocess` of the recipe. Line breaks of the web are dropped."""
    text = row["text"].replace("<br />", " ")
    return {"text": " ".join(text.split()[:words])}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
