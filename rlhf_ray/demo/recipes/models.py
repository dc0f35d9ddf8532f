"""Tiny language and reward models, trained in seconds from noise by plain loops: stand-ins for what a hub has.

The shapes are those of the real ones (GPT-2, Llama, Mistral, DeBERTa); so are the module names that adapters attach to.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_ray.demo.prepare import no_progress_bar

#: Longest prompt + response that the policies take, in tokens.
CONTEXT_TOKENS = 128
BATCH = 32
IGNORED = -100  # label of padding

Batch = list[Any]


def gpt2_shape(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    return GPT2Config(n_embd=128, n_layer=4, n_head=4, n_positions=CONTEXT_TOKENS, **_vocabulary(tokenizer))


def llama_shape(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        **_vocabulary(tokenizer),
    )


def mistral_shape(tokenizer: PreTrainedTokenizerFast) -> MistralConfig:
    return MistralConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        sliding_window=None,
        **_vocabulary(tokenizer),
    )


def deberta_shape(tokenizer: PreTrainedTokenizerFast) -> DebertaV2Config:
    return DebertaV2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        type_vocab_size=0,
        num_labels=1,
        **_vocabulary(tokenizer),
    )


def train_policy(config: PretrainedConfig, sequences: Sequence[list[int]], epochs: int, seed: int) -> PreTrainedModel:
    """A causal language model of that shape, trained on token sequences."""

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        labels = pad_sequence([torch.tensor(row) for row in batch], batch_first=True, padding_value=IGNORED)
        tokens, real = labels.clamp_min(0), labels != IGNORED
        logits = model(tokens, attention_mask=real.long()).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    return _train(AutoModelForCausalLM, config, sorted(sequences, key=len), loss, 2e-3, epochs, seed)


def train_reward_model(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Iterable[tuple[str, str, str]],
    epochs: int,
    seed: int,
) -> PreTrainedModel:
    """A one-score classifier of that shape, trained on (prompt, chosen, rejected) read as pairs of texts."""

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        prompts, chosen, rejected = (list(texts) for texts in zip(*batch, strict=True))
        read = tokenizer(prompts * 2, chosen + rejected, padding=True, return_tensors="pt")
        good, bad = model(**read).logits[:, 0].chunk(2)
        return -logsigmoid(good - bad).mean()

    by_length = sorted(pairs, key=lambda pair: len(pair[1]) + len(pair[2]))
    return _train(AutoModelForSequenceClassification, config, by_length, loss, 2e-3, epochs, seed)


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """As an ordinary Hugging Face folder."""
    with no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(
    factory: Any,
    config: PretrainedConfig,
    rows: Sequence[Any],
    loss: Callable[[PreTrainedModel, Batch], torch.Tensor],
    learning_rate: float,
    epochs: int,
    seed: int,
) -> PreTrainedModel:
    """AdamW with a learning rate that falls to zero, on batches of neighbours in `rows`, shuffled in every epoch.

    The global random state is left as it was.
    """
    batches = [list(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    steps = epochs * len(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = factory.from_config(config, dtype=torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps)
        )
        for _ in range(epochs):
            for index in torch.randperm(len(batches)).tolist():
                loss(model, batches[index]).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return model.eval()


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    return {"vocab_size": len(tokenizer), **ends}
