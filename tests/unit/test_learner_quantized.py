"""Quantised bases under adapters: what is rounded, what is not, and that all who use the model see the same weights."""

import json

import numpy as np
import peft
import pytest
import torch
from learner_world import (
    demonstrations,
    largest_difference,
    ppo_config,
    preferences,
    record_gradients,
    reward_config,
    rollouts,
    sft_config,
    weights,
)
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

from rlhf_ray.config.common import LoraSection, ModelSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.ppo import PPOIteration
from rlhf_ray.learner.rank import LearnerRank
from rlhf_ray.models import quantized
from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.lora import adapters_off, add_lora, merged_tensors
from rlhf_ray.models.quantized import ExactLinear, dequantized, quantized_parameters, weight_count

pytestmark = pytest.mark.unit

KINDS = ("4bit", "8bit")
#: Mean error of a weight, as a share of the weights' mean size, that each format allows itself.
ROUNDING = {"4bit": 0.12, "8bit": 0.015}
IDS = torch.arange(3, 43).reshape(2, 20)
TABLE, ROWS = demonstrations(0, 6), np.arange(6)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(2)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=61, initializer_range=0.1)
    folder = tmp_path_factory.mktemp("gpt2")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def section(model, kind, **options):
    return {"name": model, "lora": {"r": 4}, "quantization": kind, **options}


def learner(group, config):
    return LearnerRank(config, group, total_steps=20)


def sft_learner(group, model, kind, **options):
    learning = {"dtype": "float32", "learning_rate": 1e-2}
    return learner(group, sft_config(model, model=section(model, kind, **options), learner=learning))


def logprobs(lm):
    with torch.no_grad():
        return torch.log_softmax(lm.eval()(IDS).logits.float(), -1)


# -- the layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["model", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_within_their_format_and_computed_with_exactly(request, family, kind):
    folder = request.getfixturevalue(family)
    lm = load_causal_lm(ModelSection(**section(folder, kind)))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    rounded = dict(merged_tensors(lm))
    full = {n: p.detach() for n, p in plain.named_parameters()}
    assert {n: t.shape for n, t in rounded.items()} == {n: t.shape for n, t in full.items()}
    layers = [n for n, m in lm.named_modules() if isinstance(m, ExactLinear)]
    assert len(layers) == {"model": 14, "gpt2": 8}[family]
    for name, tensor in full.items():
        error = (rounded[name] - tensor).abs().mean() / tensor.abs().mean().clamp_min(1e-12)
        inner = name.removesuffix(".weight") in layers
        assert 1e-4 < error < ROUNDING[kind] if inner else error == 0
    plain.load_state_dict(rounded, strict=False)
    plain.tie_weights()
    torch.testing.assert_close(logprobs(lm), logprobs(plain), rtol=0, atol=1e-5)
    assert weight_count(lm.get_submodule(layers[0]).weight) == full[layers[0] + ".weight"].numel()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_through_as_through_the_dequantised_layer(model, kind):
    lm = load_causal_lm(ModelSection(**section(model, kind)))
    layer = lm.model.layers[0].mlp.down_proj
    x = torch.randn(2, 5, 96, requires_grad=True)
    expected = torch.nn.functional.linear(x, dequantized(layer))
    torch.testing.assert_close(layer(x), expected)
    direction = torch.randn_like(expected)
    (found,) = torch.autograd.grad(layer(x), x, direction)
    (wanted,) = torch.autograd.grad(expected, x, direction)
    torch.testing.assert_close(found, wanted)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_base_in_every_dtype(model, kind):
    """The learner holds float32 around it, a reference the engine's dtype."""
    one, two = (load_causal_lm(ModelSection(**section(model, kind)), d) for d in (torch.float32, torch.bfloat16))
    assert two.model.embed_tokens.weight.dtype == torch.bfloat16
    for a, b in zip(one.modules(), two.modules(), strict=True):
        if isinstance(a, ExactLinear):
            assert torch.equal(dequantized(a), dequantized(b))


def test_evaluation_does_not_change_the_weights(model):
    """bitsandbytes repacks 4-bit weights in place on some CPUs when a layer is first used in evaluation."""
    lm = load_causal_lm(ModelSection(**section(model, "4bit")))
    before = {n: p.clone() for n, p in lm.named_parameters()}
    first = logprobs(lm)
    assert torch.equal(first, logprobs(lm))
    assert all(torch.equal(p, before[n]) for n, p in lm.named_parameters())


@pytest.mark.parametrize("family", ["model", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_the_adapted_model(request, family, kind):
    folder = request.getfixturevalue(family)
    lm = load_causal_lm(ModelSection(**section(folder, kind)))
    add_lora(lm, LoraSection(r=4, alpha=8))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert any(isinstance(m, peft.tuners.lora.Linear4bit | peft.tuners.lora.Linear8bitLt) for m in lm.modules())
    plain = AutoModelForCausalLM.from_pretrained(folder)
    start = logprobs(plain)
    plain.load_state_dict(dict(merged_tensors(lm)), strict=False)
    plain.tie_weights()
    assert (logprobs(lm) - start).abs().max() > 0.1
    torch.testing.assert_close(logprobs(plain), logprobs(lm), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapters_the_policy_is_its_reference(model, kind):
    lm = load_causal_lm(ModelSection(**section(model, kind)))
    reference = logprobs(lm)
    add_lora(lm, LoraSection(r=4))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert (logprobs(lm) - reference).abs().max() > 0.1
    with adapters_off(lm):
        assert torch.equal(logprobs(lm), reference)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_on_a_base_that_stays(group, model, kind):
    rank = sft_learner(group, model, kind)
    policy = rank.trainables["policy"]
    base = {n: p.clone() for n, p in rank.model.named_parameters() if ".lora_" not in n}
    assert all(".lora_" in name for name in policy.parameters)
    objective = rank.sft(TABLE, TABLE)
    losses = [objective.step(ROWS)["loss/sft"] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.2
    for name, parameter in rank.model.named_parameters():
        if name in base:
            whole, was = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in (parameter, base[name]))
            assert torch.equal(whole, was)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dequantised_model(group, model, tmp_path, kind):
    rank = sft_learner(group, model, kind)
    rank.export(tmp_path / "base")  # adapters do nothing yet: the dequantised base
    twin = sft_learner(group, str(tmp_path / "base"), None)
    for name, parameter in twin.trainables["policy"].parameters.items():
        parameter.data.copy_(rank.trainables["policy"].parameters[name])
    found = [record_gradients(r.trainables["policy"]) for r in (rank, twin)]
    for each in (rank, twin):
        objective = each.sft(TABLE, None)
        objective.step(ROWS)
        objective.step(ROWS)
    assert largest_difference(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_nothing(group, model, kind):
    gradients = []
    for recompute in (False, True):
        rank = sft_learner(group, model, kind, gradient_checkpointing=recompute)
        gradients.append(record_gradients(rank.trainables["policy"]))
        rank.sft(TABLE, None).step(ROWS)
    assert largest_difference(gradients[0][0], gradients[1][0]) < 1e-6


def test_a_reward_model_keeps_its_head_in_full(group, model, tmp_path):
    rank = learner(group, reward_config(model, model=section(model, "4bit")))
    assert not isinstance(rank.model.score, ExactLinear)
    assert "model.score.weight" in rank.trainables["reward"].parameters
    objective = rank.pairwise(preferences(1, 6), None)
    losses = [objective.step(np.arange(6))["loss/pairwise"] for _ in range(6)]
    assert losses[-1] < losses[0]
    rank.export(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with rank.trainables["reward"].evaluating():
        scores = rank.trainables["reward"].network(TokenBatch.of_last_tokens(IDS.numpy()))
        torch.testing.assert_close(scores, saved.score(saved.base_model(IDS)[0])[:, -1, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("critic", ["value_head", "separate"])
def test_ppo_trains_adapters_and_critic(group, model, critic):
    rank = learner(group, ppo_config(model, model=section(model, "4bit"), critic={"kind": critic}))
    before = weights(rank)
    rank.ppo("float32").train(*rollouts(0), PPOIteration(0, 0.1))
    assert largest_difference(before, weights(rank)) > 0
    assert not any(quantized_parameters(t.network) for name, t in rank.trainables.items() if name == "critic")


# -- what leaves the learner -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_published_and_exported_weights_are_what_was_trained(group, model, tmp_path, kind):
    rank = sft_learner(group, model, kind)
    rank.sft(TABLE, None).step(ROWS)
    published = {n: t.clone() for n, t in rank.published_tensors()}
    assert {t.dtype for t in published.values()} == {torch.float32}
    rank.export(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, published[n]) for n, p in saved.named_parameters())
    with rank.trainables["policy"].evaluating():
        found = rank.trainables["policy"].network(TokenBatch.build(IDS.numpy(), [1, 1])).logprobs
    wanted = logprobs(saved)[:, :-1].gather(2, IDS[:, 1:, None]).flatten()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_holds_adapters_only_and_resumes_to_the_same_bits(group, model, tmp_path):
    whole, first, second = (sft_learner(group, model, "4bit") for _ in range(3))
    for rank, steps in ((whole, 4), (first, 2)):
        objective = rank.sft(TABLE, None)
        for _ in range(steps):
            objective.step(ROWS)
    first.save(tmp_path)
    second.load(tmp_path)
    objective = second.sft(TABLE, None)
    for _ in range(2):
        objective.step(ROWS)
    assert largest_difference(weights(second), weights(whole)) == 0
    offsets = json.loads((tmp_path / "rank-00000.json").read_text())["offsets"]
    assert offsets
    assert all(".lora_" in key for key in offsets)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_quantised_weights_without_adapters_are_refused():
    with pytest.raises(ValidationError, match=r"4bit weights cannot be trained themselves; set model\.lora"):
        ModelSection(name="m", quantization="4bit")


def test_without_the_libraries_the_extra_is_named(monkeypatch, model):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == "bitsandbytes" else True)
    with pytest.raises(ConfigError, match=r"4bit needs bitsandbytes; pip install 'rlhf-ray\[qlora\]'"):
        load_causal_lm(ModelSection(**section(model, "4bit")))


def test_models_stored_quantised_are_refused(model, tmp_path):
    config = quantized.quantization_config("4bit")
    AutoModelForCausalLM.from_pretrained(model, quantization_config=config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"stored in quantised form.*model\.quantization=4bit"):
        load_causal_lm(ModelSection(name=str(tmp_path)))
