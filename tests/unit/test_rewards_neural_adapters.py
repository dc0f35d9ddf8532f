"""Reward models that are a base and a PEFT adapter, as peft itself saves them."""

from pathlib import Path

import peft
import pytest
import torch
from reward_models import LLAMA, samples, save_llama, save_tokenizer, section, values
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.neural import NeuralReward

pytestmark = pytest.mark.unit


def save_adapter(folder: Path, base: torch.nn.Module, task: str = "SEQ_CLS") -> peft.PeftModel:
    """A LoRA adapter with random B; a classification task saves the head too."""
    torch.manual_seed(7)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=task))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ("modules_to_save" in name and "score" in name):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("labels_of_the_base", [1, 2])
def test_an_adapter_brings_its_head_and_changes_the_scores(tmp_path: Path, labels_of_the_base: int) -> None:
    """The base is a plain language model, or a classifier with another number of labels."""
    config = LlamaConfig(**{**LLAMA, "num_labels": labels_of_the_base})
    kind = LlamaForCausalLM if labels_of_the_base == 1 else LlamaForSequenceClassification
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "base")
    tokenizer = save_tokenizer(tmp_path / "base", "<s> $A", eos_token="</s>", pad_token="<pad>")
    base = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    base.config.pad_token_id = 0
    model = save_adapter(tmp_path / "adapter", base)
    table = samples(6)
    expected = []
    for row in table.to_pylist():
        with torch.no_grad():
            ids = tokenizer(row["prompt"] + row["response"], return_tensors="pt")["input_ids"]
            expected.append(float(model(input_ids=ids).logits))
    reward = NeuralReward(section(tmp_path / "base", adapter=str(tmp_path / "adapter")))
    assert values(reward, table) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_a_head_on_a_base_without_one_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "num_labels"})
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", "$A", eos_token="</s>")
    save_adapter(tmp_path / "adapter", base, task="CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"score\.weight would be random numbers \(nor does the adapter"):
        NeuralReward(section(tmp_path / "base", adapter=str(tmp_path / "adapter")))


def test_an_adapter_of_a_language_model_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    save_tokenizer(tmp_path / "base", "$A", eos_token="</s>")
    save_adapter(tmp_path / "adapter", LlamaForCausalLM(LlamaConfig(**LLAMA)), task="CAUSAL_LM")
    with pytest.raises(ConfigError, match="made for the task CAUSAL_LM, a reward model needs one for SEQ_CLS"):
        NeuralReward(section(tmp_path / "base", adapter=str(tmp_path / "adapter")))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", hidden_size=64)
    save_tokenizer(tmp_path / "base", "$A", eos_token="</s>")
    save_adapter(tmp_path / "adapter", LlamaForSequenceClassification(LlamaConfig(**LLAMA)))
    with pytest.raises(ConfigError, match="does not fit LlamaForSequenceClassification"):
        NeuralReward(section(tmp_path / "base", adapter=str(tmp_path / "adapter")))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    for name in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"is no PEFT adapter: it holds no adapter_config\.json"):
            NeuralReward(section(tmp_path, adapter=str(name)))
