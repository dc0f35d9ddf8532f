"""Supervised fine-tuning: cross-entropy of the response tokens given the prompt."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.algorithms.losses import sft_loss
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.plan import microbatches
from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch


class SFTObjective:
    """Steps and evaluations over rows of a `schema.DEMONSTRATIONS` table."""

    def __init__(self, policy: Trainable, table: pa.Table, eval_table: pa.Table | None, group: LearnerGroup) -> None:
        self.policy, self.group = policy, group
        self.train, self.held_out = _Rows(table), _Rows(eval_table) if eval_table is not None else None

    def step(self, rows: np.ndarray) -> dict[str, float]:
        """One optimiser step on `rows` (indices of the global minibatch); global metrics."""
        tokens, sums = self.train.response_tokens(rows), Sums()
        for batch in self._batches(self.train, rows):
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

    def evaluate(self) -> dict[str, float]:
        """Loss and perplexity over the held-out demonstrations."""
        assert self.held_out is not None
        rows, sums = np.arange(len(self.held_out.tokens)), Sums()
        with self.policy.evaluating():
            for batch in self._batches(self.held_out, rows):
                sums.add(loss=sft_loss(batch.pad(self.policy.network(batch).logprobs), batch.mask))
        loss = sums.over(self.group)["loss"] / self.held_out.response_tokens(rows)
        return {"eval/loss": loss, "eval/perplexity": float(np.exp(min(loss, 50.0)))}

    def _batches(self, table: "_Rows", rows: np.ndarray) -> Iterator[TokenBatch]:
        """This rank's micro-batches of `rows`."""
        budget = self.policy.section.tokens_per_microbatch
        for members in microbatches(rows, table.tokens.lengths, self.group.size, budget)[self.group.rank]:
            yield table.batch(members, self.group.device)


class _Rows:
    """The columns of a `schema.DEMONSTRATIONS` table."""

    def __init__(self, table: pa.Table) -> None:
        self.tokens, self.prompt_lengths = Ragged(table["tokens"]), table["prompt_length"].to_numpy()

    def response_tokens(self, rows: np.ndarray) -> int:
        """Tokens of `rows` that the loss covers."""
        return int((self.tokens.lengths[rows] - self.prompt_lengths[rows]).sum())

    def batch(self, members: Sequence[int], device: torch.device) -> TokenBatch:
        if not members:
            return TokenBatch.empty(device)
        return TokenBatch.build([self.tokens[i] for i in members], self.prompt_lengths[members], device)
