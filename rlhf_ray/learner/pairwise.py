"""Reward modelling: the Bradley-Terry loss on preference pairs (Ouyang et al. 2022, eq. 1)."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.algorithms.bradley_terry import calibration_error, calibration_histogram, pairwise_loss
from rlhf_ray.algorithms.masked import Moments
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.guards import Origin
from rlhf_ray.learner.packing import Pass, Passes, check_packing
from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch


class PairwiseObjective:
    """Steps and evaluations over rows of a `schema.PREFERENCES` table."""

    def __init__(
        self,
        reward: Trainable,
        config: RewardModelConfig,
        table: pa.Table,
        eval_table: pa.Table | None,
        group: LearnerGroup,
    ) -> None:
        """Raises ConfigError when packed responses would see each other in this model; every rank calls."""
        self.reward, self.section, self.group, self._table = reward, config.reward, group, table
        self.train, self.held_out = _Pairs(table), _Pairs(eval_table) if eval_table is not None else None
        self._margins = _margins(config.reward.margin, table)
        self.passes = Passes.of(config.model, config.learner, config.reward.packing, group)
        if config.reward.packing:
            with reward.evaluating():
                check_packing(reward.network, group.device, "reward.packing")

    def step(self, rows: np.ndarray, number: int | None = None) -> dict[str, float]:
        """One optimiser step on the pairs `rows` (indices of the global minibatch); global metrics.

        `number` is the run's count of steps, from 1; None: the optimiser's, which a rollback takes back.
        """
        sums, section = Sums(), self.section
        for made in self.reward.accumulating(self.passes.plan(rows, self.train.lengths)):
            members, (chosen, rejected) = made.items, self._scores(self.train, made)
            margins = None if self._margins is None else torch.from_numpy(self._margins[members]).to(chosen.device)
            loss = pairwise_loss(chosen, rejected, margins, section.label_smoothing, section.center_coef)
            self.reward.backward(loss.loss_sum / len(rows))
            sums.add(loss=loss.loss_sum, correct=loss.correct, margin=loss.margin_sum)
        stats = self.reward.step(Origin.of_rows(number or self.reward.steps + 1, self._table, rows, self.group))
        total = sums.over(self.group)
        return {
            "loss/pairwise": total["loss"] / len(rows),
            "reward/accuracy": total["correct"] / len(rows),
            "reward/margin": total["margin"] / len(rows),
            **stats.metrics(),
        }

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy, margin and calibration error over the held-out pairs.

        The loss is the plain likelihood: without margin, smoothing and centring, so that runs can be compared.
        """
        assert self.held_out is not None
        rows, sums, histogram = np.arange(len(self.held_out.lengths)), Sums(), calibration_histogram(torch.zeros(0))
        with self.reward.evaluating():
            for made in self.passes.plan(rows, self.held_out.lengths):
                chosen, rejected = self._scores(self.held_out, made)
                loss = pairwise_loss(chosen, rejected)
                sums.add(loss=loss.loss_sum, correct=loss.correct, margin=loss.margin_sum)
                histogram += calibration_histogram(chosen - rejected).cpu()
        total = sums.over(self.group)
        return {
            "eval/loss": total["loss"] / len(rows),
            "eval/accuracy": total["correct"] / len(rows),
            "eval/margin": total["margin"] / len(rows),
            "eval/calibration_error": calibration_error(self.group.total(histogram)),
        }

    def score_moments(self) -> dict[str, float]:
        """Mean and standard deviation of the scores over the training pairs, by which they are normalised later."""
        local = Moments()
        with self.reward.evaluating():
            for made in self.passes.plan(np.arange(len(self.train.lengths)), self.train.lengths):
                scores = torch.cat(self._scores(self.train, made))
                local += Moments.of(scores, torch.ones_like(scores, dtype=torch.bool))
        total = Moments(**self.group.reduce(vars(local)))
        return {"mean": total.mean, "std": total.std}

    def _scores(self, table: "_Pairs", made: Pass) -> tuple[Tensor, Tensor]:
        """The scores of a micro-batch's chosen and of its rejected responses; a pass without pairs has none."""
        scores = self.reward.network(table.batch(made, self.group.device))[: 2 * len(made.items)]
        chosen, rejected = scores.chunk(2)
        return chosen, rejected


class _Pairs:
    """The columns of a `schema.PREFERENCES` table."""

    def __init__(self, table: pa.Table) -> None:
        self.sides = Ragged(table["chosen_tokens"]), Ragged(table["rejected_tokens"])
        self.lengths = np.stack([side.lengths for side in self.sides], 1)

    def batch(self, made: Pass, device: torch.device) -> TokenBatch:
        """Chosen sequences, then rejected ones."""
        if not made.items:
            return TokenBatch.empty(device)
        return TokenBatch.of_last_tokens([side[i] for side in self.sides for i in made.items], device, made.rows)


def _margins(margin: float | str | None, table: pa.Table) -> np.ndarray | None:
    """Float32 [pairs]: a constant, or the table's column, in which a pair without one has 0; None without margins."""
    if margin is None:
        return None
    if isinstance(margin, str):
        return table["margin"].fill_null(0.0).to_numpy().astype(np.float32)
    return np.full(table.num_rows, margin, dtype=np.float32)
