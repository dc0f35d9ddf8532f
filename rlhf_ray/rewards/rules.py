"""Small rules that need nothing but the response: its length, repetitions, how it ended, words it must not have.

Used by import path, for example `rlhf_ray.rewards.rules:length_penalty`, with limits as the component's `arguments`.
"""

import re
from collections.abc import Sequence


def length_penalty(prompt: str, response: str, response_tokens: Sequence[int], free: int, maximum: int) -> float:
    """0 up to `free` tokens, falling evenly to -1 at `maximum` tokens and staying there.

    The soft overlong punishment of DAPO (Yu et al. 2025, eq. 13), with free = maximum - its cache length.
    """
    if not 0 <= free < maximum:
        raise ValueError(f"free ({free}) must be at least 0 and less than maximum ({maximum})")
    return -min(1.0, max(0.0, (len(response_tokens) - free) / (maximum - free)))


def repetition_penalty(prompt: str, response: str, words: int = 4) -> float:
    """Minus the share of runs of `words` words that the response has said before: 0 if none, towards -1 if it loops."""
    if words < 1:
        raise ValueError(f"words must be at least 1, not {words}")
    said = re.findall(r"\w+", response.lower())
    runs = [tuple(said[start : start + words]) for start in range(len(said) - words + 1)]
    return -(1 - len(set(runs)) / len(runs)) if runs else 0.0


def finished(prompt: str, response: str, finish_reason: str) -> float:
    """1 if the response ended by itself, 0 if it was cut off at the token limit."""
    return float(finish_reason == "stop")


def without_words(prompt: str, response: str, words: Sequence[str]) -> float:
    """1 if the response has none of `words` (whole words, upper or lower case), else 0."""
    if isinstance(words, str):
        raise ValueError(f"words must be a list, not the text {words!r}")
    said = response.casefold()
    return float(not any(re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", said) for word in words))
