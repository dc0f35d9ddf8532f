"""How the tokens of a minibatch weigh in the policy's loss: sum(weight * loss) / units, whatever the micro-batches.

- token: all tokens alike, long responses count more (DAPO, Yu et al. 2025, eq. 12; REINFORCE++).
- sequence: all responses alike, the tokens of a long one less (GRPO, Shao et al. 2024, eq. 3; GSPO).
- constant: each token as 1 / max_new_tokens of a response, so that length has no say (Dr. GRPO, Liu et al. 2025).
"""

from torch import Tensor

from rlhf_ray.config.algorithm import Average


def token_weights(mask: Tensor, average: Average, max_tokens: int) -> Tensor:
    """Weights `[batch, time]`, float32, 0 at padding; `mask` is `[batch, time]`, `max_tokens` the longest response."""
    weights = mask.float()
    if average == "sequence":
        return weights / mask.sum(1, keepdim=True).clamp(min=1)
    return weights / max_tokens if average == "constant" else weights


def units(lengths: Tensor, average: Average) -> Tensor:
    """What the weighted sum is divided by, 0-d: the tokens of responses of these lengths, int [samples], or the
    responses that have any."""
    return lengths.sum() if average == "token" else (lengths > 0).sum()
