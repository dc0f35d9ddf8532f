"""Neural rewards on tiny random models: batched scores against one forward per sample."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rlhf_ray.config.rewards import NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.neural import NeuralReward
from rlhf_ray.schema import SAMPLES

pytestmark = pytest.mark.unit

WORDS = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]", *(f"w{i}" for i in range(59))]
LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_labels": 1, "pad_token_id": None, "eos_token_id": 2,
}  # fmt: skip


def save_tokenizer(folder: Path, template: str, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = [(word, WORDS.index(word)) for word in ("<s>", "[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return fast


def llama(folder: Path, **changes: object) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**{**LLAMA, **changes}))
    model.save_pretrained(folder)
    return model.eval()


def samples(count: int, prompt_words: int = 3, longest: int = 20) -> pa.Table:
    """Rows of different lengths; responses end with the end token, as sampled ones do."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        prompt = random.integers(5, 64, prompt_words).tolist()
        response = random.integers(5, 64, random.integers(1, longest)).tolist()
        text = " ".join(WORDS[token] for token in prompt) + " "
        answer = " ".join(WORDS[token] for token in response)
        rows.append(
            {
                "prompt_id": i, "sample_index": 0, "policy_version": 0, "prompt": text, "response": answer,
                "prompt_tokens": prompt, "response_tokens": [*response, 2], "response_logprobs": [],
                "finish_reason": "stop",
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def section(folder: Path, **changes: object) -> NeuralRewardSection:
    options = {"model": str(folder), "dtype": "float32", "tokens_per_batch": 48, **changes}
    return NeuralRewardSection(**options)


def texts(table: pa.Table) -> list[str]:
    return [row["prompt"] + row["response"] for row in table.to_pylist()]


def test_our_own_model_reads_the_sampled_tokens_and_normalises(tmp_path: Path) -> None:
    model = llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", eos_token="</s>")  # pad = eos, and responses end with eos
    (tmp_path / "rlhf_ray_reward.json").write_text(json.dumps({"mean": 0.25, "std": 2.0}))
    table = samples(17)
    expected = []
    with torch.no_grad():
        for row in table.to_pylist():
            tokens = torch.tensor([row["prompt_tokens"] + row["response_tokens"]])
            expected.append((float(model.score(model.model(tokens)[0][:, -1])) - 0.25) / 2.0)
    assert NeuralReward(section(tmp_path)).score(table) == pytest.approx(expected, abs=1e-6)


def test_a_causal_model_of_others_scores_its_own_tokens(tmp_path: Path) -> None:
    model = llama(tmp_path)
    tokenizer = save_tokenizer(tmp_path, "<s> $A", eos_token="</s>", bos_token="<s>")
    table = samples(17)
    with torch.no_grad():
        expected = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits) for text in texts(table)]
    assert NeuralReward(section(tmp_path)).score(table) == pytest.approx(expected, abs=1e-6)


def test_gpt2_with_a_pad_token_scores_as_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, num_labels=1, eos_token_id=2)
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(9)
    with torch.no_grad():
        expected = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits) for text in texts(table)]
    assert NeuralReward(section(tmp_path)).score(table) == pytest.approx(expected, abs=1e-6)


def test_an_encoder_classifier_without_eos_gives_the_chosen_label(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path, "[CLS] $A [SEP]", pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]")
    table = samples(9)
    with torch.no_grad():
        expected = [float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 2]) for text in texts(table)]
    assert NeuralReward(section(tmp_path, label_index=2)).score(table) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match=r"3 outputs, so label_index 3"):
        NeuralReward(section(tmp_path, label_index=3))


def test_roberta_is_not_given_more_positions_than_it_has(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=18, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "[CLS] $A [SEP]", pad_token="<s>")
    assert all(math.isfinite(score) for score in NeuralReward(section(tmp_path)).score(samples(4, longest=60)))


def test_a_long_text_keeps_its_end(tmp_path: Path) -> None:
    llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    table = samples(3, prompt_words=30, longest=5)
    cut = table.set_column(3, SAMPLES.field("prompt"), pa.array(["" for _ in range(3)]))
    cut = cut.set_column(4, SAMPLES.field("response"), pa.array([" ".join(text.split()[-8:]) for text in texts(table)]))
    scored = NeuralReward(section(tmp_path, max_tokens=8)).score(table)
    assert scored == pytest.approx(NeuralReward(section(tmp_path)).score(cut), abs=1e-6)


def test_bos_written_by_the_chat_template_is_not_doubled(tmp_path: Path) -> None:
    llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", eos_token="</s>", bos_token="<s>")
    table = samples(3)
    with_bos = table.set_column(
        3, SAMPLES.field("prompt"), pa.array(["<s> " + row["prompt"] for row in table.to_pylist()])
    )
    reward = NeuralReward(section(tmp_path))
    assert reward.score(with_bos) == pytest.approx(reward.score(table), abs=1e-6)


def test_a_score_that_is_not_finite_stays_with_its_sample(tmp_path: Path) -> None:
    model = llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>", pad_token="<pad>")
    table = samples(12)
    clean = NeuralReward(section(tmp_path)).score(table)
    poison = table.to_pylist()[3]["response_tokens"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = math.nan
    model.save_pretrained(tmp_path)
    poisoned = NeuralReward(section(tmp_path)).score(table)
    hit = [poison in row["prompt_tokens"] + row["response_tokens"] for row in table.to_pylist()]
    assert hit[3]
    assert not all(hit)
    assert [math.isnan(score) for score in poisoned] == hit
    for before, after, poisoned_row in zip(clean, poisoned, hit, strict=True):
        assert poisoned_row or after == pytest.approx(before, abs=1e-6)


def test_an_empty_text_has_no_score_and_an_empty_table_no_scores(tmp_path: Path) -> None:
    llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    table = samples(2)
    for position, name in ((3, "prompt"), (4, "response")):
        table = table.set_column(position, SAMPLES.field(name), pa.array(["", f"{WORDS[9]}"]))
    first, second = NeuralReward(section(tmp_path)).score(table)
    assert math.isnan(first)
    assert math.isfinite(second)
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
    llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    (tmp_path / "rlhf_ray_reward.json").write_text(content)
    with pytest.raises(ConfigError, match=r"rlhf_ray_reward\.json"):
        NeuralReward(section(tmp_path))


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    llama(tmp_path, vocab_size=40)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    (tmp_path / "rlhf_ray_reward.json").write_text('{"mean": 0.0, "std": 1.0}')
    with pytest.raises(ConfigError, match="knows 40 tokens, but the policy sampled token"):
        NeuralReward(section(tmp_path)).score(samples(8))
