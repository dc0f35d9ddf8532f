"""Tiny random reward models with word-level tokenizers, and sample tables that they can read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_ray.config.rewards import NeuralRewardSection
from rlhf_ray.schema import SAMPLES

WORDS = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]", *(f"w{i}" for i in range(59))]
LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_labels": 1, "pad_token_id": None, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
BERT = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 64, "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip


def save_tokenizer(
    folder: Path, template: str, pair: str | None = None, chat: str | None = None, **special: str
) -> PreTrainedTokenizerFast:
    """One word per token; `template` and `pair` as tokenizers' TemplateProcessing writes them, `chat` in Jinja."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = [(word, WORDS.index(word)) for word in ("<s>", "[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=named)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat, **special)
    fast.save_pretrained(folder)
    return fast


def save_llama(folder: Path, seed: int = 0, **changes: object) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**{**LLAMA, **changes}))
    model.save_pretrained(folder)
    return model.eval()


def save_bert(folder: Path) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """An encoder with three labels and a tokenizer that knows pairs."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT)).eval()
    model.save_pretrained(folder)
    special = {"pad_token": "<pad>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return model, save_tokenizer(folder, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", **special)


def samples(count: int, prompt_words: int = 3, longest: int = 20) -> pa.Table:
    """Rows of different lengths; responses end with the end token, as sampled ones do."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
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


def with_text(table: pa.Table, column: str, texts: list[str]) -> pa.Table:
    """`table` with another text column in the place of `column`."""
    return table.set_column(table.schema.get_field_index(column), SAMPLES.field(column), pa.array(texts))


def section(folder: Path, **changes: object) -> NeuralRewardSection:
    options = {"model": str(folder), "dtype": "float32", "tokens_per_batch": 48, "device": "cpu", **changes}
    return NeuralRewardSection(**options)


def values(reward: Any, table: pa.Table) -> list[float]:
    """The rewards of the rows; every one must have one."""
    outcomes = reward.score(table)
    assert [outcome.failure for outcome in outcomes] == [None] * table.num_rows
    return [outcome.value for outcome in outcomes]
