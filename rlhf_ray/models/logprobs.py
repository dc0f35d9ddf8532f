"""Token log-probs straight from hidden states, without a float32 [tokens, vocabulary] array for the whole batch.

The head's matrix product, the log-softmax and their gradients run over chunks of tokens. Small products keep their
probabilities for the backward pass, large ones recompute them (the idea of fused linear cross-entropy kernels).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # logits per chunk: 16 MiB in float32
KEEP_ELEMENTS = 1 << 24  # keep the logits for the backward pass below this size (32 to 64 MiB), recompute above


@dataclass(frozen=True)
class Head:
    """The output head of a causal language model and the few ways in which families bend its logits."""

    weight: Tensor  # [vocabulary, hidden]
    bias: Tensor | None = None  # [vocabulary]
    scale: float = 1.0  # logits are multiplied by it (Cohere, Granite)
    softcap: float | None = None  # logits = cap * tanh(logits / cap) (Gemma 2)

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """Float32 logits [tokens, vocabulary] of `hidden` [tokens, hidden], divided by the temperature."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if temperature == 1.0 else logits / temperature


class _LinearLogprobs(torch.autograd.Function):
    """(hidden, weight) -> (log-prob of each target, entropy of each position)."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, inverse_temperature: float):  # type: ignore[no-untyped-def]
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        entropy, lse = torch.empty_like(logprobs), torch.empty_like(logprobs)
        keep = targets.numel() * weight.shape[0] <= KEEP_ELEMENTS
        kept = []
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = (hidden[rows] @ weight.t()).float().mul_(inverse_temperature)
            lse[rows] = torch.logsumexp(logits, dim=-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - lse[rows]
            probs = torch.exp(logits - lse[rows, None])
            entropy[rows] = lse[rows] - (probs * logits).sum(-1)
            if keep:
                kept.append(probs.to(weight.dtype))
        ctx.save_for_backward(hidden, weight, targets, lse, entropy, *kept)
        ctx.inverse_temperature = inverse_temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropy: Tensor | None):  # type: ignore[no-untyped-def]
        hidden, weight, targets, lse, entropy, *kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for index, rows in enumerate(_chunks(len(targets), weight.shape[0])):
            if kept:
                probs = kept[index].float()
            else:
                logits = (hidden[rows] @ weight.t()).float().mul_(ctx.inverse_temperature)
                probs = torch.exp(logits - lse[rows, None])
            grad = probs * -grad_logprobs[rows, None]
            if grad_entropy is not None and bool(grad_entropy.any()):
                # dH/dz = -p (log p + H)
                grad -= grad_entropy[rows, None] * probs * (torch.log(probs.clamp_min(1e-38)) + entropy[rows, None])
            grad.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad = grad.mul_(ctx.inverse_temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.t() @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def linear_logprobs(hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and entropies under softmax(head(hidden) / temperature), both float32 [tokens].

    `hidden` is [tokens, hidden_size], `targets` int64 [tokens]. Plain heads take the chunked path above; heads with a bias
    or a soft cap (rare) go through autograd chunk by chunk, recomputed in the backward pass.
    """
    if head.bias is None and head.softcap is None:
        return _LinearLogprobs.apply(hidden, head.weight, targets, head.scale / temperature)  # type: ignore[no-any-return, no-untyped-call]

    def chunk(rows_hidden: Tensor, rows_targets: Tensor) -> tuple[Tensor, Tensor]:
        logps = torch.log_softmax(head.logits(rows_hidden, temperature), dim=-1)
        return logps.gather(1, rows_targets[:, None]).squeeze(1), -(logps.exp() * logps).sum(-1)

    parts = [
        torch.utils.checkpoint.checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False)
        for rows in _chunks(len(targets), head.weight.shape[0])
    ]
    if not parts:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
