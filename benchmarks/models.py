"""Random Llamas with a tokenizer, for benchmarks that need a model's size and not its answers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast


def random_llama(folder: Path, *, hidden: int, layers: int, vocabulary: int, context: int = 1024) -> tuple[str, int]:
    """Write a random float32 Llama (untied) and a word-level tokenizer; (path, number of parameters)."""
    return _write(LlamaForCausalLM, folder, hidden, layers, vocabulary, context)


def random_reward_model(
    folder: Path, *, hidden: int, layers: int, vocabulary: int, context: int = 1024
) -> tuple[str, int]:
    """The same network with a head of one score."""
    return _write(LlamaForSequenceClassification, folder, hidden, layers, vocabulary, context, num_labels=1)


def _write(
    network: Any, folder: Path, hidden: int, layers: int, vocabulary: int, context: int, **options: int
) -> tuple[str, int]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 2,
        **options,
    )
    model = network(config)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(vocabulary - 2)} | {"<pad>": vocabulary - 2, "<end>": vocabulary - 1}
    fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    return str(folder), sum(parameter.numel() for parameter in model.parameters())
