"""Networks of several families against Hugging Face's own logits; padding and dropout without influence."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import modeling_auto

from rlhf_ray.models.batching import TokenBatch
from rlhf_ray.models.networks import PolicyNetwork, ScalarNetwork

pytestmark = pytest.mark.unit

VOCABULARY = 97
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=8, final_logit_softcapping=3.0),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY),
}
SEQUENCES = [np.arange(3, 25) % VOCABULARY, np.arange(40, 47), np.arange(60, 75)]
PROMPTS = [4, 2, 14]


def build(name, mapping=modeling_auto.AutoModelForCausalLM):
    torch.manual_seed(1)
    model = mapping.from_config(CONFIGS[name], attn_implementation="sdpa").eval()
    with torch.no_grad():  # random starts are too close to uniform to tell right from wrong
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_the_plain_model(name, temperature):
    lm = build(name)
    batch = TokenBatch.build(SEQUENCES, PROMPTS)
    with torch.no_grad():
        output = PolicyNetwork(lm)(batch, temperature, with_raw=True)
        ours = batch.unpad(batch.pad(output.logprobs)), batch.unpad(batch.pad(output.raw_logprobs))
        for row, (sequence, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
            tokens = torch.from_numpy(sequence)
            logits = lm(tokens[None]).logits[0, prompt - 1 : -1]
            for mine, heat in zip(ours, (temperature, 1.0), strict=True):
                expected = torch.log_softmax(logits / heat, -1).gather(1, tokens[prompt:, None]).squeeze(1)
                np.testing.assert_allclose(mine[row], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_neither_outputs_nor_gradients(name):
    network = PolicyNetwork(build(name), value_head=True)
    torch.nn.init.normal_(network.value_head.weight)
    batch = TokenBatch.build(SEQUENCES, PROMPTS)
    garbage = batch.input_ids.clone()
    for row, sequence in enumerate(SEQUENCES):
        garbage[row, len(sequence) :] = torch.randint(VOCABULARY, (garbage.shape[1] - len(sequence),))
    other = TokenBatch(garbage, batch.positions, batch.targets, batch.slots, batch.mask)
    results = []
    for each in (batch, other):
        network.zero_grad()
        output = network(each)
        (output.logprobs.sum() + output.entropy.sum() + output.values.sum()).backward()
        results.append([output.logprobs, output.values, *(p.grad.clone() for p in network.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_do_not_see_each_other(name):
    """Log-probs and gradients are those of each document alone: attention, positions, sliding windows."""
    network = PolicyNetwork(build(name))
    results = []
    for rows in ([[0], [1], [2]], [[0], [1, 2]], [[2, 1, 0]]):
        network.zero_grad()
        output = network(TokenBatch.build(SEQUENCES, PROMPTS, rows=rows))
        output.logprobs.sum().backward()
        results.append([output.logprobs, *(p.grad.clone() for p in network.parameters())])
    for packed in results[1:]:
        for one, two in zip(results[0], packed, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_prompt_tokens_have_no_loss_of_their_own():
    """The gradient of the head's row of a token that stands only in prompts is that of a token never seen."""
    network = PolicyNetwork(build("llama"))
    batch = TokenBatch.build([np.array([9, 3, 5]), np.array([9, 9, 5, 6])], [2, 2])
    (-network(batch).logprobs.sum()).backward()
    head = network.lm.lm_head.weight.grad
    states = network.lm.model(input_ids=batch.input_ids)[0].reshape(-1, 32)[batch.positions]
    probs = network.lm(batch.input_ids).logits.reshape(-1, VOCABULARY)[batch.positions].softmax(-1)
    torch.testing.assert_close(head[9], (probs[:, 9:10] * states).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_scalar_network_reads_the_score_where_hugging_face_does(name):
    config = CONFIGS[name]
    config.pad_token_id, config.num_labels = 0, 1
    model = build(name, modeling_auto.AutoModelForSequenceClassification)
    with torch.no_grad():
        ours = ScalarNetwork(model)(TokenBatch.of_last_tokens(SEQUENCES))
        theirs = [model(torch.from_numpy(sequence)[None]).logits[0, 0] for sequence in SEQUENCES]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_pass_without_samples_gives_every_parameter_a_zero_gradient(name):
    network = PolicyNetwork(build(name), value_head=True)
    output = network(TokenBatch.empty())
    (output.logprobs.sum() + output.values.sum()).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
