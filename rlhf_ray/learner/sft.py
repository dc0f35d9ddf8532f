"""Supervised fine-tuning: cross-entropy of the response tokens given the prompt."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.algorithms.losses import sft_loss
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.plan import microbatches
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch


class SFTObjective:
    """Steps and evaluations over rows of a `schema.DEMONSTRATIONS` table."""

    def __init__(self, policy: Trainable, table: pa.Table, eval_table: pa.Table | None, group: LearnerGroup) -> None:
        self.policy, self.group = policy, group
        self.tables = {"train": table.combine_chunks(), "eval": eval_table.combine_chunks() if eval_table else None}

    def step(self, rows: np.ndarray) -> dict[str, float]:
        """One optimiser step on `rows` (indices of the global minibatch); global metrics."""
        table = self.tables["train"]
        tokens = int(_response_lengths(table, rows).sum())
        sums = Sums()
        for batch in self._batches(table, rows):
            loss = sft_loss(batch.pad(self.policy.network(batch).logprobs), batch.mask)
            self.policy.backward(loss / tokens)
            sums.add(loss=loss)
        stats = self.policy.step()
        loss_mean = sums.over(self.group)["loss"] / tokens
        return {
            "loss/sft": loss_mean,
            "policy/grad_norm": stats.grad_norm,
            "policy/learning_rate": stats.learning_rate,
            "tokens": tokens,
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and perplexity over the held-out demonstrations."""
        table = self.tables["eval"]
        rows = np.arange(len(table))
        tokens, sums = int(_response_lengths(table, rows).sum()), Sums()
        for batch in self._batches(table, rows):
            sums.add(loss=sft_loss(batch.pad(self.policy.network(batch).logprobs), batch.mask))
        loss = sums.over(self.group)["loss"] / tokens
        return {"eval/loss": loss, "eval/perplexity": float(np.exp(min(loss, 50.0)))}

    def _batches(self, table: pa.Table, rows: np.ndarray) -> list[TokenBatch]:
        lengths = table["tokens"].combine_chunks().value_lengths().to_numpy()
        plan = microbatches(rows, lengths, self.group.size, self.policy.section.tokens_per_microbatch)[self.group.rank]
        return [self._batch(table, members) for members in plan]

    def _batch(self, table: pa.Table, members: Sequence[int]) -> TokenBatch:
        if not members:
            return TokenBatch.empty(self.group.device)
        sequences = [table["tokens"][i].values.to_numpy() for i in members]
        return TokenBatch.build(sequences, [table["prompt_length"][i].as_py() for i in members], self.group.device)


def _response_lengths(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    lengths = table["tokens"].combine_chunks().value_lengths().to_numpy()
    return lengths[rows] - table["prompt_length"].to_numpy()[rows]
