"""Token log-probs straight from hidden states, without a float32 [tokens, vocabulary] array for the whole batch.

The head's matrix product, the log-softmax and their gradients run over chunks of tokens. Small products keep their
exponentials for the backward pass, large ones recompute them (the idea of fused linear cross-entropy kernels).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 22  # logits per chunk: 16 MiB in float32
KEEP_ELEMENTS = 1 << 24  # keep the exponentials for the backward pass below this size (32 to 64 MiB), recompute above


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
    """(hidden, weight) -> (log-prob of each target, entropy of each position, whether the target is the likeliest).

    With z the shifted logits, e = exp(z), s = sum(e): p = e / s, log p = z - log s, entropy = log s - sum(e * z) / s.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, keep: bool):  # type: ignore
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        entropy, shift, total = (torch.empty_like(logprobs) for _ in range(3))
        likeliest = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device)
        kept = []
        for rows in _chunks(len(targets), weight.shape[0]):
            z = _scaled_logits(hidden[rows], weight, scale)
            shift[rows] = z.amax(-1)
            z -= shift[rows, None]
            e = torch.exp(z)
            total[rows] = e.sum(-1)
            chosen = z.gather(1, targets[rows, None]).squeeze(1)
            likeliest[rows] = chosen == 0  # the shift took the largest logit to zero
            logprobs[rows] = chosen - total[rows].log()
            entropy[rows] = total[rows].log() - torch.linalg.vecdot(e, z) / total[rows]
            if keep:
                kept.append(e.to(weight.dtype))
        ctx.save_for_backward(hidden, weight, targets, shift, total, entropy, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(likeliest)
        ctx.scale = scale
        return logprobs, entropy, likeliest

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None):  # type: ignore
        hidden, weight, targets, shift, total, entropy, *kept = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(entropy)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for index, rows in enumerate(_chunks(len(targets), weight.shape[0])):
            if kept:
                e = kept[index].float()
            else:
                e = torch.exp(_scaled_logits(hidden[rows], weight, ctx.scale) - shift[rows, None])
            grad = e * (-grad_logprobs[rows] / total[rows])[:, None]
            if grad_entropy is not None:
                # dH/dz = -p (log p + H)
                log_p = e.clamp_min(1e-38).log_() - total[rows, None].log()
                grad -= e * (grad_entropy[rows] / total[rows])[:, None] * (log_p + entropy[rows, None])
            grad.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad = grad.mul_(ctx.scale).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.t() @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, scale: float) -> Tensor:
    logits = (hidden @ weight.t()).float()
    return logits if scale == 1.0 else logits.mul_(scale)


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, max(tokens, 1), size)]


def linear_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of `targets` and entropies under softmax(head(hidden) / temperature), both float32 [tokens].

    The third result, bool [tokens], says whether a target is the likeliest token. `hidden` is [tokens, hidden_size],
    `targets` int64 [tokens]. Plain heads take the chunked path above; heads with a bias or a soft cap (rare) go through
    autograd chunk by chunk, recomputed in the backward pass.
    """
    if head.bias is None and head.softcap is None:
        keep = torch.is_grad_enabled() and targets.numel() * head.weight.shape[0] <= KEEP_ELEMENTS
        scale = head.scale / temperature
        return _LinearLogprobs.apply(hidden, head.weight, targets, scale, keep)

    def chunk(rows_hidden: Tensor, rows_targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logps = torch.log_softmax(head.logits(rows_hidden, temperature), dim=-1)
        chosen = logps.gather(1, rows_targets[:, None]).squeeze(1)
        return chosen, -(logps.exp() * logps).sum(-1), chosen == logps.amax(-1)

    parts = [
        checkpoint(chunk, hidden[rows], targets[rows], use_reentrant=False)
        for rows in _chunks(len(targets), head.weight.shape[0])
    ]
    logprobs, entropy, likeliest = (torch.cat(part) for part in zip(*parts, strict=True))
    return logprobs, entropy, likeliest
