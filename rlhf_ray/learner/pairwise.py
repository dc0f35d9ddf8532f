"""Reward modelling: the Bradley-Terry loss on preference pairs (Ouyang et al. 2022, eq. 1)."""

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.algorithms.losses import pairwise_loss
from rlhf_ray.algorithms.masked import Moments
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.plan import microbatches
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch

COLUMNS = ("chosen_tokens", "rejected_tokens")


class PairwiseObjective:
    """Steps and evaluations over rows of a `schema.PREFERENCES` table."""

    def __init__(self, reward: Trainable, table: pa.Table, eval_table: pa.Table | None, group: LearnerGroup) -> None:
        self.reward, self.group = reward, group
        self.tables = {"train": table.combine_chunks(), "eval": eval_table.combine_chunks() if eval_table else None}

    def step(self, rows: np.ndarray) -> dict[str, float]:
        """One optimiser step on the pairs `rows` (indices of the global minibatch); global metrics."""
        sums = Sums()
        for chosen, rejected, real in self._scores(self.tables["train"], rows):
            loss = pairwise_loss(chosen, rejected)
            self.reward.backward(loss.loss_sum * real / len(rows))
            sums.add(loss=loss.loss_sum * real, correct=loss.correct * real, margin=loss.margin_sum * real)
        stats = self.reward.step()
        total = sums.over(self.group)
        return {
            "loss/pairwise": total["loss"] / len(rows),
            "reward/accuracy": total["correct"] / len(rows),
            "reward/margin": total["margin"] / len(rows),
            "policy/grad_norm": stats.grad_norm,
            "policy/learning_rate": stats.learning_rate,
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy and margin over the held-out pairs."""
        table = self.tables["eval"]
        rows, sums = np.arange(len(table)), Sums()
        for chosen, rejected, real in self._scores(table, rows):
            loss = pairwise_loss(chosen, rejected)
            sums.add(loss=loss.loss_sum * real, correct=loss.correct * real, margin=loss.margin_sum * real)
        total = sums.over(self.group)
        return {
            "eval/loss": total["loss"] / len(rows),
            "eval/accuracy": total["correct"] / len(rows),
            "eval/margin": total["margin"] / len(rows),
        }

    @torch.no_grad()
    def score_moments(self) -> dict[str, float]:
        """Mean and standard deviation of the scores over the training pairs, by which the scores are normalised later."""
        table, local = self.tables["train"], Moments()
        for chosen, rejected, real in self._scores(table, np.arange(len(table))):
            if real:
                scores = torch.cat([chosen, rejected])
                local += Moments.of(scores, torch.ones_like(scores, dtype=torch.bool))
        total = Moments(**self.group.reduce(vars(local)))
        return {"mean": total.mean, "std": total.std}

    def _scores(self, table: pa.Table, rows: np.ndarray):  # type: ignore[no-untyped-def]
        """(chosen scores, rejected scores, 1) per micro-batch of pairs; a pass without pairs yields a 0 as its weight."""
        lengths = sum(table[name].combine_chunks().value_lengths().to_numpy() for name in COLUMNS)
        plan = microbatches(rows, lengths, self.group.size, self.reward.section.tokens_per_microbatch)[self.group.rank]
        for members in plan:
            sequences = [table[name][i].values.to_numpy() for name in COLUMNS for i in members] or [np.zeros(2)] * 2
            scores = self.reward.network(TokenBatch.of_last_tokens(sequences, self.group.device))
            chosen, rejected = scores.chunk(2)
            yield chosen, rejected, float(bool(members))
