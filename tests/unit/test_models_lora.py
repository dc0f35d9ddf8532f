"""Adapters: what they sit on, and that merged weights, the adapted model and plain peft agree."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf_ray.config.common import LoraSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.lora import add_lora, inner_linear_layers, merged_tensors

pytestmark = pytest.mark.unit

CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=61),
}
IDS = torch.arange(24).reshape(2, 12)


def build(name):
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def adapted(name, **options):
    """A model whose adapters do something: B starts at zero."""
    lm = build(name)
    add_lora(lm, LoraSection(r=4, alpha=8, **options))
    with torch.no_grad():
        for parameter_name, parameter in lm.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    return lm


def logprobs(lm):
    with torch.no_grad():
        return torch.log_softmax(lm(IDS).logits, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_weights_give_the_adapted_model(name):
    lm, plain = adapted(name), build(name)
    merged = dict(merged_tensors(lm))
    missing, unexpected = plain.load_state_dict(merged, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    plain.tie_weights()
    assert (logprobs(lm) - logprobs(build(name))).abs().max() > 0.01
    torch.testing.assert_close(logprobs(plain), logprobs(lm), rtol=0, atol=1e-5)


def test_a_model_without_adapters_is_published_as_it_is():
    lm = build("gpt2")
    tensors = dict(merged_tensors(lm))
    assert set(tensors) == {name for name, _ in lm.named_parameters()}
    assert all(torch.equal(tensors[name], parameter) for name, parameter in lm.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_all_linear_is_every_linear_layer_but_the_head(name):
    lm = adapted(name)
    assert not [n for n, _ in lm.named_modules() if "lm_head" in n and "lora" in n]
    covered = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, _ in lm.named_parameters() if ".lora_" in n}
    assert covered == set(inner_linear_layers(build(name)))
    trained = {n for n, parameter in lm.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in n for n in trained)


@pytest.mark.parametrize("targets", [["q_prj"], ["q_proj", "nothing"], ["lm_head"]])
def test_targets_that_do_not_exist_are_refused(targets):
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules: LlamaForCausalLM has no .*'q_proj'"):
        add_lora(build("llama"), LoraSection(target_modules=targets))


def test_no_warning_for_transposed_layers(recwarn):
    adapted("gpt2")
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_peft_is_as_we_know_it():
    """`fan_in_fan_out` on GPT-2's layers is what decides the layout of the merged delta."""
    layer = adapted("gpt2").transformer.h[0].attn.c_attn
    assert isinstance(layer, peft.tuners.lora.LoraLayer)
    assert layer.fan_in_fan_out
