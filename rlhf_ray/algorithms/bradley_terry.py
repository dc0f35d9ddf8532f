"""Reward modelling on preference pairs: the Bradley-Terry likelihood, and how far its probabilities can be believed.

The model says that the chosen response is better with probability sigmoid(chosen - rejected).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class PairwiseLoss:
    """Sums over pairs, 0-d; `loss_sum` alone carries a gradient."""

    loss_sum: Tensor
    correct: Tensor  # pairs in which the chosen response scores higher
    margin_sum: Tensor  # of chosen - rejected


def pairwise_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    center_coef: float = 0.0,
) -> PairwiseLoss:
    """Bradley-Terry negative log-likelihood of scores, all tensors `[pairs]` (Christiano et al. 2017).

        loss = -(1 - e) log sigmoid(chosen - rejected - m) - e log sigmoid(rejected - chosen - m)
               + c (chosen + rejected)^2

    m: by how much a pair's better response should win (Touvron et al. 2023, eq. 2); e: the probability that a label is
    swapped; c: what keeps scores near zero, which pairs alone leave open (Eisenstein et al. 2023, sec. 5, with 0.01).
    """
    difference = chosen - rejected
    distance = 0.0 if margin is None else margin
    losses = -(1 - label_smoothing) * F.logsigmoid(difference - distance)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-difference - distance)
    if center_coef:
        losses = losses + center_coef * (chosen + rejected).square()
    return PairwiseLoss(
        loss_sum=losses.sum(),
        correct=(difference > 0).sum(),
        margin_sum=difference.detach().sum(),
    )


def calibration_histogram(differences: Tensor) -> Tensor:
    """Float64 `[bins, 3]`: pairs, summed confidence and correct answers per bin; those of parts add up.

    A pair's answer is the response that scores higher, its confidence sigmoid(|chosen - rejected|); the bins divide
    [0.5, 1] evenly. `differences` `[pairs]` are chosen - rejected.
    """
    differences = differences.detach().double()
    confidence = torch.sigmoid(differences.abs())
    bins = ((confidence - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    rows = torch.stack([torch.ones_like(confidence), confidence, (differences > 0).double()], dim=1)
    return rows.new_zeros(CALIBRATION_BINS, 3).index_add(0, bins, rows)


def calibration_error(histogram: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): the mean gap of a bin's confidence and its share of correct
    answers, weighted by pairs; in [0, 1], and 0 without pairs."""
    pairs, confidence, correct = histogram.unbind(1)
    return float((confidence - correct).abs().sum() / pairs.sum().clamp(min=1))
