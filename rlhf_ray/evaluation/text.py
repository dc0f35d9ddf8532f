"""What can be said about responses without a model: their lengths, and how much they repeat each other."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rlhf_ray.evaluation.estimates import Estimate, share_of

Measures = dict[str, Estimate | None]


def lengths(responses: Sequence[str], tokens: np.ndarray, truncated: np.ndarray) -> Measures:
    """Of responses: their texts, int tokens [responses], bool truncated [responses] (ended by the limit)."""
    if not tokens.size:
        return {}
    middle, late = np.quantile(tokens, [0.5, 0.95])
    return {
        "length/mean": Estimate.mean(tokens),
        "length/median": Estimate(float(middle), count=tokens.size),
        "length/p95": Estimate(float(late), count=tokens.size),
        "length/truncated": share_of(truncated),
        "length/empty": share_of(np.array([not response.strip() for response in responses], bool)),
    }


def diversity(responses: Sequence[str]) -> Measures:
    """How varied a set of responses is, over words in lower case. Comparable between models on the same prompts.

    - `distinct_n`: different n-grams over all n-grams (Li et al. 2016), 1 when nothing is said twice;
    - `entropy_2`: entropy of the bigrams in nats (Zhang et al. 2018); unlike distinct_n it sees how often;
    - `repeated`: the share of responses that another one equals, word for word.
    """
    words = [response.lower().split() for response in responses]
    counts = {n: Counter(gram for text in words for gram in ngrams(text, n)) for n in (1, 2, 3)}
    measures: Measures = {f"diversity/distinct_{n}": _distinct(grams) for n, grams in counts.items()}
    measures["diversity/entropy_2"] = Estimate(entropy(counts[2].values())) if counts[2] else None
    same = Counter(map(tuple, words))
    measures["diversity/repeated"] = share_of(np.array([same[tuple(text)] > 1 for text in words], bool))
    return measures


def ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """All runs of `n` successive words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def entropy(counts: Iterable[int]) -> float:
    """Entropy in nats of the distribution that positive counts describe."""
    counts = list(counts)
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)


def _distinct(grams: "Counter[tuple[str, ...]]") -> Estimate | None:
    return Estimate(len(grams) / grams.total(), count=grams.total()) if grams else None
