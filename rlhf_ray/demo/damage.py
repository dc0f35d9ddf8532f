"""Answers that a reader would reject: a real docstring, damaged. The reward model learns to tell them apart."""

import random
from collections.abc import Callable

from rlhf_ray.demo.docstrings import Example

Damage = Callable[[str, random.Random], str]


def cut_short(text: str, rng: random.Random) -> str:
    """Stop in mid-sentence; half of the time a period pretends that this was all."""
    words = text.rstrip(".").split()
    kept = " ".join(words[: rng.randint(1, max(1, len(words) * 3 // 5))]).rstrip(",;:")
    return kept + rng.choice(["", "."])


def repeat_words(text: str, rng: random.Random) -> str:
    """Say one to three words again, once to three times."""
    words = text.split()
    length = min(rng.randint(1, 3), len(words))
    start = rng.randrange(len(words) - length + 1)
    stop = start + length
    return " ".join(words[:stop] + words[start:stop] * rng.randint(1, 3) + words[stop:])


def shuffle_words(text: str, rng: random.Random) -> str:
    """All words, in another order."""
    words = text.split()
    shuffled = rng.sample(words, len(words))
    return " ".join(shuffled if shuffled != words else words[1:] + words[:1])


def garble_letters(text: str, rng: random.Random) -> str:
    """Shuffle the letters inside about half of the words."""
    words = text.split()
    for index in rng.sample(range(len(words)), (len(words) + 1) // 2):
        words[index] = "".join(rng.sample(words[index], len(words[index])))
    return " ".join(words)


def drop_period(text: str, rng: random.Random) -> str:
    """Lose the final period."""
    return text.removesuffix(".")


def lower_first(text: str, rng: random.Random) -> str:
    """Start in lower case."""
    return text[0].lower() + text[1:]


#: Damage to the answer itself, and how often each is done.
DAMAGES: dict[Damage, int] = {
    cut_short: 4,
    repeat_words: 3,
    shuffle_words: 2,
    garble_letters: 2,
    drop_period: 2,
    lower_first: 1,
}
#: Share of pairs whose rejected answer is flawless, but another function's.
OTHER_FUNCTION_SHARE = 0.3


def is_well_formed(summary: str) -> bool:
    """Whether a summary deserves to be the chosen one: capital letter, three words or more, period, no formula."""
    words = summary.rstrip(".").split()
    ends = summary.endswith(".") and not summary.endswith("..")
    return ends and len(words) >= 3 and words[0].isalpha() and words[0][0].isupper() and not {"->", "="} & set(words)


def preference_pairs(examples: list[Example], seed: int) -> list[tuple[Example, str, str]]:
    """(example, rejected answer, kind of damage) for every example whose own summary is well formed."""
    rng = random.Random(seed)
    chosen = [example for example in examples if is_well_formed(example.summary)]
    return [(example, *reject(example, chosen, rng)) for example in chosen]


def reject(example: Example, others: list[Example], rng: random.Random) -> tuple[str, str]:
    """A worse answer than the example's own, and what is wrong with it."""
    if rng.random() < OTHER_FUNCTION_SHARE:
        strangers = (rng.choice(others) for _ in range(100))
        return next(other.summary for other in strangers if other.summary != example.summary), "other_function"
    while True:
        (damage,) = rng.choices(list(DAMAGES), weights=list(DAMAGES.values()))
        rejected = damage(example.summary, rng)
        if rejected != example.summary:
            return rejected, damage.__name__
