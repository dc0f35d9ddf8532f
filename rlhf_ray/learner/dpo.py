"""Direct preference optimisation (Rafailov et al. 2023): a policy trained on pairs, without a reward model.

The reference's log-probs never change, so one pass before the first step can take them: by the policy itself, which is
its own reference then, or by another model that leaves the memory afterwards. With adapters the policy without them is
the reference at any time, for one more pass per step.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.preference import Responses, preference_loss
from rlhf_ray.config.dpo import DPOConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.group import LearnerGroup, Sums
from rlhf_ray.learner.guards import Origin
from rlhf_ray.learner.packing import Pass, Passes, check_packing
from rlhf_ray.learner.ragged import Ragged
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.batching import Rows, TokenBatch
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.lora import adapters_off
from rlhf_ray.models.networks import PolicyNetwork
from rlhf_ray.models.sharding import shard


class DPOObjective:
    """Steps and evaluations over rows of `schema.PREFERENCES` tables.

    Where the reference is precomputed, `reference_logprobs` and `set_reference` come before the first step.
    """

    def __init__(
        self,
        policy: Trainable,
        reference: nn.Module | None,
        config: DPOConfig,
        table: pa.Table,
        eval_table: pa.Table | None,
        group: LearnerGroup,
    ) -> None:
        """`reference` is a network of its own, or None where the policy itself is where the reference comes from.

        Raises ConfigError when packed responses would see each other in this model; every rank calls.
        """
        self.policy, self.reference, self.config, self.group, self._table = policy, reference, config, group, table
        self.train, self.held_out = _Pairs(table), _Pairs(eval_table) if eval_table is not None else None
        self.passes = Passes.of(config.model, config.learner, config.dpo.packing, group)
        if config.dpo.packing:
            with policy.evaluating():
                check_packing(policy.network, group.device, "dpo.packing")

    # -- the reference -------------------------------------------------------------------------------------------------

    def reference_logprobs(self, rows: np.ndarray, held_out: bool = False) -> np.ndarray:
        """The reference's log-probs of the chosen and rejected responses of `rows`: float32 [rows, 2], on every rank.

        Without a network of its own the policy answers, so this comes before the first step.
        """
        pairs = self._held_out if held_out else self.train
        found = np.zeros((len(rows), 2), dtype=np.float32)
        network, lengths = self.reference or self.policy.network, pairs.lengths[rows]
        with self.policy.evaluating():
            for made in self.passes.plan(np.arange(len(rows)), lengths):
                batch = pairs.batch(rows[made.items], made.rows, self.group.device)
                found[made.items] = torch.stack(_response_logprobs(network, batch, len(made.items)), 1).cpu().numpy()
        return self.group.sum_arrays(found)

    def set_reference(self, train: np.ndarray, held_out: np.ndarray | None) -> None:
        """Take what `reference_logprobs` gave for all rows of either table; a reference network goes."""
        self.train.reference, self.reference = train, None
        if held_out is not None:
            self._held_out.reference = held_out

    # -- training ------------------------------------------------------------------------------------------------------

    def step(self, rows: np.ndarray, number: int | None = None) -> dict[str, float]:
        """One optimiser step on the pairs `rows` (indices of the global minibatch); global metrics.

        `number` is the run's count of steps, from 1; None: the optimiser's, which a rollback takes back.
        """
        sums = Sums()
        for made in self.policy.accumulating(self.passes.plan(rows, self.train.lengths)):
            self.policy.backward(self._loss(self.train, made, sums) / len(rows))
        stats = self.policy.step(Origin.of_rows(number or self.policy.steps + 1, self._table, rows, self.group))
        means = {name: total / len(rows) for name, total in sums.over(self.group).items()}
        return {
            "loss/dpo": means["loss"],
            **{f"rewards/{name}": value for name, value in _rewards(means).items()},
            "logps/chosen": means["chosen_logprob"],
            "logps/rejected": means["rejected_logprob"],
            **stats.metrics(),
        }

    def evaluate(self) -> dict[str, float]:
        """Loss, implicit rewards and their accuracy over the held-out pairs."""
        rows, sums = np.arange(len(self._held_out.lengths)), Sums()
        with self.policy.evaluating():
            for made in self.passes.plan(rows, self._held_out.lengths):
                self._loss(self._held_out, made, sums)
        means = {name: total / len(rows) for name, total in sums.over(self.group).items()}
        return {"eval/loss": means["loss"]} | {f"eval/{name}": value for name, value in _rewards(means).items()}

    @property
    def _held_out(self) -> "_Pairs":
        assert self.held_out is not None
        return self.held_out

    def _loss(self, pairs: "_Pairs", made: Pass, sums: Sums) -> Tensor:
        """The summed loss of a micro-batch, added to `sums` with what else is to be known; 0 without pairs."""
        dpo = self.config.dpo
        chosen, rejected = self._responses(pairs, made)
        loss = preference_loss(chosen, rejected, dpo.loss, dpo.beta, dpo.label_smoothing)
        sums.add(loss=loss.loss_sum, correct=loss.correct)
        sums.add(chosen_reward=loss.chosen_reward_sum, rejected_reward=loss.rejected_reward_sum)
        sums.add(chosen_logprob=chosen.logprobs.sum(), rejected_logprob=rejected.logprobs.sum())
        return loss.loss_sum

    def _responses(self, pairs: "_Pairs", made: Pass) -> tuple[Responses, Responses]:
        """The chosen and the rejected responses of a micro-batch under policy and reference."""
        device, network, members = self.group.device, self.policy.network, made.items
        batch = pairs.batch(members, made.rows, device)
        if pairs.reference is not None:
            references: Sequence[Tensor] = torch.from_numpy(pairs.reference[members].T.copy()).to(device).unbind()
        else:
            with adapters_off(network), torch.no_grad():
                references = _response_logprobs(network, batch, len(members))
        logprobs = _response_logprobs(network, batch, len(members))
        tokens = torch.from_numpy(pairs.response_tokens[members].T.copy()).to(device).unbind()
        chosen, rejected = (Responses(*fields) for fields in zip(logprobs, references, tokens, strict=True))
        return chosen, rejected


def load_reference(config: DPOConfig, vocabulary: int, group: LearnerGroup, dtype: torch.dtype) -> nn.Module | None:
    """The network of `dpo.reference_model`, frozen and sharded; None where the policy is its own reference.

    Raises ConfigError when its vocabulary is not the policy's.
    """
    name = config.dpo.reference_model
    if name is None:
        return None
    model = load_causal_lm(config.model.model_copy(update={"name": name, "revision": None, "lora": None}))
    if model.config.vocab_size != vocabulary:
        raise ConfigError(
            f"dpo.reference_model: {name} has a vocabulary of {model.config.vocab_size}, the policy {vocabulary}; "
            "they must share a tokenizer. Leave it out to start from the model itself."
        )
    network = PolicyNetwork(model).requires_grad_(False).eval()
    return shard(network.to(group.device), group.mesh, dtype)


def _response_logprobs(network: nn.Module, batch: TokenBatch, pairs: int) -> tuple[Tensor, Tensor]:
    """Log-probs of the chosen and of the rejected responses in a batch of `pairs` pairs, each float32 [pairs]."""
    # Cut, because a batch without pairs still has a row.
    chosen, rejected = batch.pad(network(batch).logprobs).sum(1)[: 2 * pairs].chunk(2)
    return chosen, rejected


def _rewards(means: dict[str, float]) -> dict[str, float]:
    """The implicit rewards of both responses, and how often the chosen one's is the higher."""
    return {
        "chosen": means["chosen_reward"],
        "rejected": means["rejected_reward"],
        "margin": means["chosen_reward"] - means["rejected_reward"],
        "accuracy": means["correct"],
    }


class _Pairs:
    """The columns of a `schema.PREFERENCES` table, and the reference's log-probs where they are precomputed."""

    def __init__(self, table: pa.Table) -> None:
        self.sides = Ragged(table["chosen_tokens"]), Ragged(table["rejected_tokens"])
        self.prompts = table["prompt_length"].to_numpy()
        self.lengths = np.stack([side.lengths for side in self.sides], 1)
        self.response_tokens = (self.lengths - self.prompts[:, None]).astype(np.float32)
        self.reference: np.ndarray | None = None  # float32 [pairs, 2], chosen and rejected

    def batch(self, members: Sequence[int] | np.ndarray, rows: Rows | None, device: torch.device) -> TokenBatch:
        """Chosen sequences, then rejected ones."""
        if not len(members):
            return TokenBatch.empty(device)
        sequences = [side[i] for side in self.sides for i in members]
        return TokenBatch.build(sequences, np.tile(self.prompts[members], 2), device, rows)
