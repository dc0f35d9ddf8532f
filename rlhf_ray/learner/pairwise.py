"""Reward modelling: the Bradley-Terry loss on preference pairs (Ouyang et al. 2022, eq. 1)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rlhf_ray.algorithms.bradley_terry import calibration_error, calibration_histogram, pairwise_loss
from rlhf_ray.algorithms.masked import Moments
from rlhf_ray.config.reward_model import RewardModelSection
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.guards import Origin
from rlhf_ray.learner.plan import microbatches
from rlhf_ray.learner.quarantine import table_rows
from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch


class PairwiseObjective:
    """Steps and evaluations over rows of a `schema.PREFERENCES` table."""

    def __init__(
        self,
        reward: Trainable,
        section: RewardModelSection,
        table: pa.Table,
        eval_table: pa.Table | None,
        group: LearnerGroup,
    ) -> None:
        self.reward, self.section, self.group, self._table = reward, section, group, table
        self.train, self.held_out = _Pairs(table), _Pairs(eval_table) if eval_table is not None else None
        self._margins = _margins(section.margin, table)

    def step(self, rows: np.ndarray) -> dict[str, float]:
        """One optimiser step on the pairs `rows` (indices of the global minibatch); global metrics."""
        sums, section = Sums(), self.section
        for members, chosen, rejected in self._scores(self.train, rows):
            margins = None if self._margins is None else torch.from_numpy(self._margins[members]).to(chosen.device)
            loss = pairwise_loss(chosen, rejected, margins, section.label_smoothing, section.center_coef)
            self.reward.backward(loss.loss_sum / len(rows))
            sums.add(loss=loss.loss_sum, correct=loss.correct, margin=loss.margin_sum)
        stats = self.reward.step(Origin(self.reward.steps + 1, 1, lambda: table_rows(self._table, rows, self.group)))
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
            for _, chosen, rejected in self._scores(self.held_out, rows):
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
            for _, *pair in self._scores(self.train, np.arange(len(self.train.lengths))):
                scores = torch.cat(pair)
                local += Moments.of(scores, torch.ones_like(scores, dtype=torch.bool))
        total = Moments(**self.group.reduce(vars(local)))
        return {"mean": total.mean, "std": total.std}

    def _scores(self, table: "_Pairs", rows: np.ndarray) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(pairs, their chosen scores, their rejected scores) per micro-batch; a pass without pairs has none."""
        budget, group = self.reward.section.tokens_per_microbatch, self.group
        for members in microbatches(rows, table.lengths, group.size, budget)[group.rank]:
            chosen, rejected = self.reward.network(table.batch(members, group.device)).chunk(2)
            yield members, chosen, rejected


class _Pairs:
    """The columns of a `schema.PREFERENCES` table."""

    def __init__(self, table: pa.Table) -> None:
        self.chosen, self.rejected = Ragged(table["chosen_tokens"]), Ragged(table["rejected_tokens"])
        # What a pair takes in a micro-batch: both of its sequences are padded to the longest.
        self.lengths = 2 * np.maximum(self.chosen.lengths, self.rejected.lengths)

    def batch(self, members: Sequence[int], device: torch.device) -> TokenBatch:
        """Chosen sequences, then rejected ones."""
        if not members:
            return TokenBatch.empty(device)
        sequences = [column[i] for column in (self.chosen, self.rejected) for i in members]
        return TokenBatch.of_last_tokens(sequences, device)


def _margins(margin: float | str | None, table: pa.Table) -> np.ndarray | None:
    """Float32 [pairs]: a constant, or the table's column, in which a pair without one has 0; None without margins."""
    if margin is None:
        return None
    if isinstance(margin, str):
        return table["margin"].fill_null(0.0).to_numpy().astype(np.float32)
    return np.full(table.num_rows, margin, dtype=np.float32)
