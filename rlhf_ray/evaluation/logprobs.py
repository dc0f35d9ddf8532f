"""What log-probs of whole responses say: the KL between two models, and the perplexity of a text."""

from collections.abc import Sequence

import numpy as np

from rlhf_ray.evaluation.estimates import Estimate
from rlhf_ray.evaluation.text import Measures

Ragged = Sequence[np.ndarray]  # float [response tokens] for each response


def kl(policy: Ragged, reference: Ragged) -> Measures:
    """KL(policy || reference) in nats, per response and per token, from responses that the policy drew.

    The mean of log policy - log reference over the policy's own draws (k1 of Schulman 2020): unbiased, and negative
    now and then where the two are close; its interval says how much that means.
    """
    sums = np.array([float(np.sum(p - r)) for p, r in zip(policy, reference, strict=True)])
    return {"kl/response": Estimate.mean(sums), "kl/token": Estimate.ratio(sums, _lengths(policy))}


def perplexity(logprobs: Ragged) -> Measures:
    """exp of the mean negative log-prob per token. Models compare only where they share a tokenizer."""
    nats = np.array([-float(np.sum(values)) for values in logprobs])
    mean = Estimate.ratio(nats, _lengths(logprobs))
    return {"perplexity": mean.exp() if mean else None, "perplexity/nats_per_token": mean}


def _lengths(ragged: Ragged) -> np.ndarray:
    return np.array([len(values) for values in ragged], dtype=np.float64)
