"""Token log-probs from hidden states against torch's own log_softmax, with gradients."""

import pytest
import torch

from rlhf_ray.models import logprobs as module
from rlhf_ray.models.logprobs import Head, linear_logprobs

pytestmark = pytest.mark.unit

TOKENS, HIDDEN, VOCABULARY = 23, 16, 37


def case(dtype=torch.float64, bias=False):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return draw(TOKENS, HIDDEN), draw(VOCABULARY, HIDDEN), draw(VOCABULARY) if bias else None, targets


def plain(hidden, head, targets, temperature):
    """The same numbers through log_softmax over the whole [tokens, vocabulary] array."""
    logps = torch.log_softmax(head.logits(hidden, temperature), dim=-1)
    return logps.gather(1, targets[:, None]).squeeze(1), -(logps.exp() * logps).sum(-1), logps.argmax(-1) == targets


def gradients(function, hidden, head, targets, temperature, logprob_weight=1.0, entropy_weight=1.0):
    logprobs, entropy, likeliest = function(hidden, head, targets, temperature)
    weights = torch.linspace(-1, 2, len(targets))
    loss = (logprob_weight * weights * logprobs + entropy_weight * weights.flip(0) * entropy).sum()
    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    return logprobs, entropy, likeliest, torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1 << 22, 5 * VOCABULARY])
@pytest.mark.parametrize("keep", [1 << 24, 0])
def test_equals_log_softmax_with_gradients(temperature, scale, bias, softcap, chunk, keep, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(module, "KEEP_ELEMENTS", keep)
    hidden, weight, offset, targets = case(torch.float32, bias)
    head = Head(weight, offset, scale, softcap)
    targets[::2] = head.logits(hidden, temperature)[::2].argmax(-1)  # some targets that are likeliest
    ours = gradients(linear_logprobs, hidden, head, targets, temperature)
    theirs = gradients(plain, hidden, head, targets, temperature)
    for mine, reference in zip((*ours[:3], *ours[3]), (*theirs[:3], *theirs[3]), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_either_output_alone_has_the_right_gradient(weights):
    hidden, weight, _, targets = case(torch.float32)
    ours = gradients(linear_logprobs, hidden, Head(weight), targets, 1.0, *weights)
    theirs = gradients(plain, hidden, Head(weight), targets, 1.0, *weights)
    for mine, reference in zip(ours[3], theirs[3], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_an_output_that_is_not_used_has_no_gradient_to_compute():
    hidden, weight, _, targets = case(torch.float32)
    logprobs, entropy, _ = linear_logprobs(hidden, Head(weight), targets)
    (from_logprobs,) = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)
    (from_entropy,) = torch.autograd.grad(entropy.sum(), hidden)
    expected = plain(hidden, Head(weight), targets, 1.0)
    torch.testing.assert_close(from_logprobs, torch.autograd.grad(expected[0].sum(), hidden, retain_graph=True)[0])
    torch.testing.assert_close(from_entropy, torch.autograd.grad(expected[1].sum(), hidden)[0], rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    logprobs, entropy, _ = linear_logprobs(hidden, Head(torch.eye(2)), torch.tensor([0, 0]))
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -1e4]))
    torch.testing.assert_close(entropy, torch.zeros(2))
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), hidden)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("keep", [1 << 24, 0])
def test_bfloat16_stays_near_float32(keep, monkeypatch):
    monkeypatch.setattr(module, "KEEP_ELEMENTS", keep)
    hidden, weight, _, targets = case(torch.bfloat16)
    logprobs, entropy, _, (for_hidden, for_weight) = gradients(linear_logprobs, hidden, Head(weight), targets, 1.0)
    exact = gradients(plain, hidden.double(), Head(weight.double()), targets, 1.0)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert for_hidden.dtype == for_weight.dtype == torch.bfloat16
    torch.testing.assert_close(logprobs.double(), exact[0].double(), rtol=0.02, atol=0.05)
    torch.testing.assert_close(for_hidden.double(), exact[3][0], rtol=0.05, atol=0.1)
    torch.testing.assert_close(for_weight.double(), exact[3][1], rtol=0.05, atol=0.2)


@pytest.mark.parametrize("bias", [False, True])
def test_no_tokens_still_reach_the_parameters(bias):
    hidden, weight, offset, targets = case(torch.float32, bias)
    logprobs, _, _ = linear_logprobs(hidden[:0], Head(weight, offset), targets[:0])
    assert logprobs.shape == (0,)
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    assert not gradient.any()


def test_nothing_is_kept_without_gradients(monkeypatch):
    hidden, weight, _, targets = case(torch.float32)
    kept = []
    apply = module._LinearLogprobs.apply
    monkeypatch.setattr(module._LinearLogprobs, "apply", lambda *args: (kept.append(args[-1]), apply(*args))[1])
    with torch.no_grad():
        linear_logprobs(hidden, Head(weight), targets)
    linear_logprobs(hidden, Head(weight), targets)
    assert kept == [False, True]
