"""Neural rewards on tiny random models: batched scores against one forward per sample."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from reward_models import (
    LLAMA,
    WORDS,
    samples,
    save_bert,
    save_llama,
    save_tokenizer,
    section,
    values,
    with_text,
)
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.loading import context_length
from rlhf_ray.rewards.neural import NeuralReward
from rlhf_ray.schema import SAMPLES

pytestmark = pytest.mark.unit


def texts(table: pa.Table) -> list[str]:
    return [row["prompt"] + row["response"] for row in table.to_pylist()]


def test_our_own_model_reads_the_sampled_tokens_and_normalises(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", eos_token="</s>")  # pad = eos, and responses end with eos
    (tmp_path / "rlhf_ray_reward.json").write_text(json.dumps({"mean": 0.25, "std": 2.0}))
    table = samples(17)
    expected = []
    with torch.no_grad():
        for row in table.to_pylist():
            tokens = torch.tensor([row["prompt_tokens"] + row["response_tokens"]])
            expected.append((float(model.score(model.model(tokens)[0][:, -1])) - 0.25) / 2.0)
    assert values(NeuralReward(section(tmp_path)), table) == pytest.approx(expected, abs=1e-5)


def test_a_causal_model_of_others_scores_its_own_tokens(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    tokenizer = save_tokenizer(tmp_path, "<s> $A", eos_token="</s>", bos_token="<s>")
    table = samples(17)
    with torch.no_grad():
        expected = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits) for text in texts(table)]
    assert values(NeuralReward(section(tmp_path)), table) == pytest.approx(expected, abs=1e-5)


def test_gpt2_with_a_pad_token_scores_as_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, num_labels=1, eos_token_id=2)
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(9)
    with torch.no_grad():
        expected = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits) for text in texts(table)]
    assert values(NeuralReward(section(tmp_path)), table) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_an_encoder_classifier_without_eos_gives_the_chosen_label(tmp_path: Path, activation: str) -> None:
    model, tokenizer = save_bert(tmp_path)
    table = samples(9)
    expected = []
    for text in texts(table):
        with torch.no_grad():
            a, b, c = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].tolist()
        softmax = math.exp(c) / (math.exp(a) + math.exp(b) + math.exp(c))
        expected.append({"none": c, "sigmoid": 1 / (1 + math.exp(-c)), "softmax": softmax}[activation])
    reward = NeuralReward(section(tmp_path, label_index=2, activation=activation))
    assert values(reward, table) == pytest.approx(expected, abs=1e-5)


def test_an_absent_label_is_a_config_error(tmp_path: Path) -> None:
    save_bert(tmp_path)
    with pytest.raises(ConfigError, match=r"3 outputs, so label_index 3"):
        NeuralReward(section(tmp_path, label_index=3))


def test_roberta_is_not_given_more_positions_than_it_has(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=18, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "[CLS] $A [SEP]", pad_token="<s>")
    assert all(map(math.isfinite, values(NeuralReward(section(tmp_path)), samples(4, longest=60))))


def test_a_model_that_states_no_context_reads_everything(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    assert context_length(SimpleNamespace(config=SimpleNamespace(), modules=list), 10**30, None) < 2**31
    assert context_length(SimpleNamespace(config=SimpleNamespace(), modules=list), 10**30, 100) == 100
    assert context_length(model, 10**30, None) == 64


def test_a_long_text_keeps_its_end(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    table = samples(3, prompt_words=30, longest=5)
    cut = with_text(table, "response", [" ".join(text.split()[-8:]) for text in texts(table)])
    cut = with_text(cut, "prompt", [""] * 3)
    scored = values(NeuralReward(section(tmp_path, max_tokens=8)), table)
    assert scored == pytest.approx(values(NeuralReward(section(tmp_path)), cut), abs=1e-5)


def test_bos_written_by_the_chat_template_is_not_doubled(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", eos_token="</s>", bos_token="<s>")
    table = samples(3)
    with_bos = with_text(table, "prompt", ["<s> " + row["prompt"] for row in table.to_pylist()])
    reward = NeuralReward(section(tmp_path))
    assert values(reward, with_bos) == pytest.approx(values(reward, table), abs=1e-5)


def test_a_score_that_is_not_finite_stays_with_its_sample(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(12)
    clean = values(NeuralReward(section(tmp_path)), table)
    poison = table.to_pylist()[3]["response_tokens"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = math.nan
    model.save_pretrained(tmp_path)
    poisoned = NeuralReward(section(tmp_path)).score(table)
    hit = [poison in row["prompt_tokens"] + row["response_tokens"] for row in table.to_pylist()]
    assert hit[3]
    assert not all(hit)
    assert [outcome.failure is not None for outcome in poisoned] == hit
    for before, after in zip(clean, poisoned, strict=True):
        if after.failure is None:
            assert after.value == pytest.approx(before, abs=1e-5)
        else:
            assert (after.failure.kind, after.value) == ("not_finite", None)
            assert "scored nan" in after.failure.message


class RaisesOn(NeuralReward):
    """A model whose forward pass fails whenever a batch holds a certain token."""

    poison = -1

    def _forward(self, batch: Sequence[Any]) -> list[float]:
        if any(self.poison in sample.ids for sample in batch):
            raise RuntimeError("CUDA out of memory")
        return super()._forward(batch)


def test_a_pass_that_raises_is_the_failure_of_the_culprit_alone(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(12)
    reward = RaisesOn(section(tmp_path))
    clean = values(reward, table)
    reward.poison = table.to_pylist()[3]["response_tokens"][0]
    hit = [reward.poison in row["prompt_tokens"] + row["response_tokens"] for row in table.to_pylist()]
    assert 0 < sum(hit) < 12
    for outcome, before, failed in zip(reward.score(table), clean, hit, strict=True):
        if failed:
            assert outcome.value is None
            assert outcome.failure.kind == "raised"
            assert "CUDA out of memory" in outcome.failure.message
            assert "in _forward" in outcome.failure.traceback
        else:
            assert outcome.value == pytest.approx(before, abs=1e-5)


class SleepsOnLong(NeuralReward):
    def _forward(self, batch: Sequence[Any]) -> list[float]:
        time.sleep(0.6 if len(batch[0].ids) > 12 else 0.0)
        return super()._forward(batch)


def test_a_batch_past_its_timeout_fails_its_samples_and_no_others(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(6)
    lengths = [len(text.split()) for text in texts(table)]
    assert min(lengths) <= 12 < max(lengths)
    reward = SleepsOnLong(section(tmp_path, timeout_s=0.5, tokens_per_batch=1))  # a batch per sample
    for outcome, length in zip(reward.score(table), lengths, strict=True):
        assert (outcome.value is None) == (length > 12)
        if length > 12:
            assert outcome.failure.kind == "timeout"
            assert "returned after 0." in outcome.failure.message
            assert "lower tokens_per_batch" in outcome.failure.message


def test_an_empty_text_is_a_failure_and_an_empty_table_has_no_outcomes(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    table = samples(2)
    for name in ("prompt", "response"):
        table = with_text(table, name, ["", WORDS[9]])
    first, second = NeuralReward(section(tmp_path)).score(table)
    assert first.value is None
    assert "empty text" in first.failure.message
    assert math.isfinite(second.value)
    assert NeuralReward(section(tmp_path)).score(SAMPLES.empty_table()) == []


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "num_labels"})).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    with pytest.raises(ConfigError, match=r"no trained classification head: score\.weight"):
        NeuralReward(section(tmp_path))


def test_a_folder_that_is_no_model_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        NeuralReward(section(tmp_path / "absent"))
    with pytest.raises(ConfigError):
        NeuralReward(section(tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"mean": 0, "std": 0}', '{"mean": NaN, "std": 1}'])
def test_a_damaged_normaliser_is_a_config_error(tmp_path: Path, content: str) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    (tmp_path / "rlhf_ray_reward.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rlhf_ray_reward\.json"):
        NeuralReward(section(tmp_path))


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    save_llama(tmp_path, vocab_size=40)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    (tmp_path / "rlhf_ray_reward.json").write_text('{"mean": 0.0, "std": 1.0}')
    with pytest.raises(ConfigError, match="knows 40 tokens, but the policy sampled token"):
        NeuralReward(section(tmp_path)).score(samples(8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    save_llama(tmp_path)
    with pytest.raises(ConfigError, match="device: cuda, but this process sees no GPU"):
        NeuralReward(section(tmp_path, device="cuda"))
