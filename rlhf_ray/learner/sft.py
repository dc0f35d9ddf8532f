"""Supervised fine-tuning: cross-entropy of the tokens to learn, given all that comes before them."""

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.algorithms.losses import sft_loss
from rlhf_ray.config.sft import LossOn, SFTConfig
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.guards import Origin
from rlhf_ray.learner.packing import Pass, Passes, check_packing
from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.schema import LOSS_MASK_COLUMN


class SFTObjective:
    """Steps and evaluations over rows of `schema.DEMONSTRATIONS` tables."""

    def __init__(
        self, policy: Trainable, config: SFTConfig, table: pa.Table, eval_table: pa.Table | None, group: LearnerGroup
    ) -> None:
        """Raises ConfigError when packed documents would see each other in this model; every rank calls."""
        self.policy, self.group, self._table = policy, group, table
        self.passes = Passes.of(config.model, config.learner, config.sft.packing, group)
        self.train, self.held_out = _Rows(table, config.sft.loss_on), None
        if eval_table is not None:
            self.held_out = _Rows(eval_table, "completion" if config.sft.loss_on == "all" else config.sft.loss_on)
        if config.sft.packing:
            with policy.evaluating():
                check_packing(policy.network, group.device, "sft.packing")

    def step(self, rows: np.ndarray, number: int | None = None) -> dict[str, float]:
        """One optimiser step on `rows` (indices of the global minibatch); global metrics.

        `number` is the run's count of steps, from 1; None: the optimiser's, which a rollback takes back.
        """
        tokens, sums = max(self.train.learned_tokens(rows), 1), Sums()
        for made in self.policy.accumulating(self._plan(self.train, rows)):
            batch = self.train.batch(made, self.group.device)
            output = self.policy.network(batch)
            loss = sft_loss(batch.pad(output.logprobs), batch.mask)
            self.policy.backward(loss / tokens)
            sums.add(loss=loss, correct=output.likeliest.sum())
        stats = self.policy.step(Origin.of_rows(number or self.policy.steps + 1, self._table, rows, self.group))
        total = sums.over(self.group)
        return {
            "loss/sft": total["loss"] / tokens,
            "sft/token_accuracy": total["correct"] / tokens,
            "tokens": tokens,
            **stats.metrics(),
        }

    def evaluate(self) -> dict[str, float]:
        """Loss, perplexity and token accuracy over the held-out demonstrations."""
        assert self.held_out is not None
        rows, sums = np.arange(len(self.held_out.tokens)), Sums()
        with self.policy.evaluating():
            for made in self._plan(self.held_out, rows):
                batch = self.held_out.batch(made, self.group.device)
                output = self.policy.network(batch)
                sums.add(loss=sft_loss(batch.pad(output.logprobs), batch.mask), correct=output.likeliest.sum())
        total, tokens = sums.over(self.group), max(self.held_out.learned_tokens(rows), 1)
        loss = total["loss"] / tokens
        return {
            "eval/loss": loss,
            "eval/perplexity": float(np.exp(min(loss, 50.0))),
            "eval/token_accuracy": total["correct"] / tokens,
        }

    def _plan(self, table: "_Rows", members: np.ndarray) -> list[Pass]:
        """This rank's micro-batches of `members`."""
        return self.passes.plan(members, table.tokens.lengths[:, None])


class _Rows:
    """The columns of a `schema.DEMONSTRATIONS` table, and which tokens of a row the loss covers."""

    def __init__(self, table: pa.Table, loss_on: LossOn) -> None:
        self.tokens, self.prompt_lengths = Ragged(table["tokens"]), table["prompt_length"].to_numpy()
        self._loss_on = loss_on
        self._masks = Ragged(table[LOSS_MASK_COLUMN]) if loss_on == "assistant" else None

    def learned(self, row: int) -> np.ndarray:
        """Bool [tokens of the row]; never the first one, which nothing predicts."""
        places = np.arange(len(self.tokens[row]))
        if self._masks is not None:
            return (self._masks[row] != 0) & (places > 0)
        return places >= (1 if self._loss_on == "all" else self.prompt_lengths[row])

    def learned_tokens(self, rows: np.ndarray) -> int:
        """Tokens of `rows` that the loss covers."""
        return sum(int(self.learned(int(row)).sum()) for row in rows)

    def batch(self, made: Pass, device: torch.device) -> TokenBatch:
        if not made.items:
            return TokenBatch.empty(device)
        tokens, learned = [self.tokens[i] for i in made.items], [self.learned(i) for i in made.items]
        return TokenBatch.of_marked(tokens, learned, device, made.rows)
