"""The two trainable networks: a policy (log-probs, optionally values) and a scalar network (critic or reward model)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.logprobs import Head, linear_logprobs


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says about the response tokens of a batch; flat [tokens] tensors, float32."""

    logprobs: Tensor  # under the sampling temperature
    raw_logprobs: Tensor  # at temperature 1, without gradient
    entropy: Tensor
    values: Tensor | None = None


class PolicyNetwork(nn.Module):
    """A causal language model that answers with token log-probs instead of logits.

    With `value_head`, one linear layer on the same backbone's states predicts the value before each response token.
    """

    def __init__(self, lm: PreTrainedModel, value_head: bool = False) -> None:
        super().__init__()
        self.lm = lm
        hidden = lm.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(hidden, 1) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    def head(self) -> Head:
        """The output head with this family's logit transforms."""
        layer, config = self.lm.get_output_embeddings(), self.lm.config
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))

    def forward(self, batch: TokenBatch, temperature: float = 1.0) -> PolicyOutput:
        states = _states(self.lm, batch)
        logprobs, entropy = linear_logprobs(states, self.head(), batch.targets, temperature)
        raw = logprobs.detach()
        if temperature != 1.0:
            with torch.no_grad():
                raw, _ = linear_logprobs(states, self.head(), batch.targets)
        values = None if self.value_head is None else self.value_head(states).squeeze(-1).float()
        return PolicyOutput(logprobs, raw, entropy, values)


class ScalarNetwork(nn.Module):
    """A causal backbone with a `score` head: one number per requested position."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """One number per position of the batch, float32 [tokens]: values (critic) or scores (reward model)."""
        return self.model.score(_states(self.model, batch)).squeeze(-1).float()


def _states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Final hidden states at the batch's positions, [tokens, hidden]."""
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False)[0]
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions)
