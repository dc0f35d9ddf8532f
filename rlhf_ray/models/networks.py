"""The two trainable networks: a policy (log-probs, optionally values) and a scalar network (critic or reward model)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.logprobs import Head, linear_logprobs


class PolicyOutput(NamedTuple):
    """What a policy says about the response tokens of a batch; flat [tokens] tensors, float32.

    A tuple, because FSDP looks for the tensors that need gradients in tuples, lists and dictionaries.
    """

    logprobs: Tensor  # under the sampling temperature
    entropy: Tensor
    values: Tensor | None = None
    raw_logprobs: Tensor | None = None  # at temperature 1, without gradient; where asked for
    likeliest: Tensor | None = None  # bool: no other token had a higher log-prob


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

    def forward(self, batch: TokenBatch, temperature: float = 1.0, with_raw: bool = False) -> PolicyOutput:
        states = _states(self.lm, batch)
        logprobs, entropy, likeliest = linear_logprobs(states, self.head(), batch.targets, temperature)
        values = None if self.value_head is None else _numbers(self.value_head, states)
        raw = None
        if with_raw and temperature == 1.0:
            raw = logprobs.detach()
        elif with_raw:
            with torch.no_grad():
                raw, _, _ = linear_logprobs(states, self.head(), batch.targets)
        return PolicyOutput(logprobs, entropy, values, raw, likeliest)


class ScalarNetwork(nn.Module):
    """A causal backbone with a `score` head: one number per requested position."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch) -> Tensor:
        """One number per position of the batch, float32 [tokens]: values (critic) or scores (reward model)."""
        return _numbers(self.model.score, _states(self.model, batch))


def _states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Final hidden states at the batch's positions, [tokens, hidden]."""
    places = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False, **places)[0]
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions)


def _numbers(head: nn.Linear, states: Tensor) -> Tensor:
    """A one-output head's answers as float32 [tokens]; a sum over one element, as FSDP wants no views."""
    return head(states).sum(-1, dtype=torch.float32)
