"""Tiny random models of the families that must sync right, with a tokenizer, saved as Hugging Face folders."""

from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_ray.schema import PROMPTS

VOCABULARY = 130  # no multiple of 64: the engine pads it
EOS = VOCABULARY - 1
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
COMMON = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "bos_token_id": None, "pad_token_id": EOS - 1}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama_tied": LlamaConfig(**SIZE, **COMMON, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(**SIZE, **COMMON, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZE, **COMMON, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, **COMMON, tie_word_embeddings=True, head_dim=32),
    "gpt2": GPT2Config(**COMMON, n_embd=64, n_layer=2, n_head=2, n_positions=128),
    "mistral": MistralConfig(**SIZE, **COMMON, tie_word_embeddings=False, head_dim=32, sliding_window=None),
}


def save_tiny(family: str, folder: Path) -> str:
    """Write a random model of the family and its tokenizer; biases and norms are random too, so losing one shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.dim() == 1 else 0.3
            parameter.copy_(torch.randn_like(parameter) * spread + (1.0 if "norm" in name or ".ln_" in name else 0.0))
    path = folder / family
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token: w0 w1 w2 ..., <pad>, <end>."""
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<pad>": EOS - 1, "<end>": EOS}
    fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", pad_token="<pad>", unk_token="<pad>")


def load(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def prompt_table(count: int, topic: bool = False) -> pa.Table:
    """Prompts of 2 to 6 tokens; prompt_id counts in steps of 10."""
    tokens = [[(7 * i + j) % 100 for j in range(2 + i % 5)] for i in range(count)]
    columns = {
        "prompt_id": [10 * i for i in range(count)],
        "prompt": [" ".join(f"w{t}" for t in row) for row in tokens],
        "prompt_tokens": tokens,
    }
    table = pa.table(columns, schema=PROMPTS)
    return table.append_column("topic", pa.array([f"t{i}" for i in range(count)])) if topic else table


def response_logprobs(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """The model's own log-probs of a response, [response tokens]."""
    tokens = torch.tensor([prompt + response])
    with torch.no_grad():
        logits = model(tokens).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]


def train(model: PreTrainedModel, steps: int, learning_rate: float, seed: int = 0) -> None:
    """Real AdamW updates on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        tokens = torch.randint(0, 100, (4, 12), generator=generator)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
