"""Direct losses on preference pairs: a policy's own log-ratios to its reference serve as rewards."""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Responses:
    """One response of each pair; all fields float32 `[pairs]`."""

    logprobs: Tensor  # log-prob of the whole response under the policy: the sum over its tokens
    reference_logprobs: Tensor  # the same under the reference
    tokens: Tensor  # how many tokens the response has

    @property
    def log_ratios(self) -> Tensor:
        """log policy - log reference, `[pairs]`; the gradient flows through the policy only."""
        return self.logprobs - self.reference_logprobs.detach()


@dataclass(frozen=True)
class PreferenceLoss:
    """Sums over pairs, 0-d; `loss_sum` alone carries a gradient."""

    loss_sum: Tensor
    correct: Tensor  # pairs whose chosen response has the higher implicit reward
    chosen_reward_sum: Tensor
    rejected_reward_sum: Tensor


def preference_loss(
    chosen: Responses,
    rejected: Responses,
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """The loss on pairs of responses; with h = log-ratio of the chosen one - log-ratio of the rejected one:

        sigmoid   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)     DPO, Rafailov et al. 2023, eq. 7; with
                                                                            label smoothing e: cDPO, Mitchell 2023
        ipo       (h' - 1 / (2 beta))^2                                     IPO, Azar et al. 2023, eq. 17
        hinge     max(0, 1 - beta h)                                        SLiC-HF, Zhao et al. 2023, sec. 2

    h' is h with each response's log-ratio divided by its tokens, as IPO's authors computed theirs: the squared loss
    would otherwise be about lengths. The implicit rewards are beta * log-ratio (Rafailov et al., eq. 5 without the term
    that both responses share), whatever the loss.
    """
    margins = beta * (chosen.log_ratios - rejected.log_ratios)
    match loss:
        case "sigmoid":
            losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
        case "ipo":
            per_token = chosen.log_ratios / chosen.tokens - rejected.log_ratios / rejected.tokens
            losses = (per_token - 1 / (2 * beta)).square()
        case "hinge":
            losses = F.relu(1 - margins)
        case _:
            assert_never(loss)
    return PreferenceLoss(
        loss_sum=losses.sum(),
        correct=(margins > 0).sum(),
        chosen_reward_sum=beta * chosen.log_ratios.detach().sum(),
        rejected_reward_sum=beta * rejected.log_ratios.detach().sum(),
    )
