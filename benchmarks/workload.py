"""The task of the comparisons: a random 4.5M-parameter Llama is to write vowels. Nothing to download.

Both sides get the same model folder, prompts, completion length and reward. The standard library only at import, so
that the peer's environment, which has no rlhf_ray, reads the same definitions.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY, HIDDEN, LAYERS, HEADS = 512, 256, 4, 4
WORDS = ["amber", "bridge", "copper", "delta", "ember", "forest", "garden", "harbour", "island", "jacket", "kettle"]
PROMPTS = 256
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}


@dataclass(frozen=True)
class Workload:
    """`samples` completions per iteration of exactly `response_tokens` tokens; how many iterations a run has."""

    samples: int
    response_tokens: int
    iterations: int

    @property
    def name(self) -> str:
        return f"{self.samples}x{self.response_tokens}"


WORKLOADS = {w.name: w for w in (Workload(32, 32, 24), Workload(64, 128, 8))}


def vowel_share(prompt: str, response: str) -> float:
    """Reward: the fraction of the response's characters that are lower-case vowels."""
    return sum(character in "aeiou" for character in response) / max(len(response), 1)


def prompt_texts(count: int = PROMPTS, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return [f"say some vowels about {' '.join(draw.choices(WORDS, k=8))}:" for _ in range(count)]


def read_prompts(folder: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]


def build(folder: Path) -> None:
    """Write model/ (weights, tokenizer) and prompts.jsonl into `folder`."""
    import torch
    from transformers import LlamaForCausalLM

    lines = [json.dumps({"prompt": text}) + "\n" for text in prompt_texts()]
    (folder / "prompts.jsonl").write_text("".join(lines))
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    LlamaForCausalLM(_llama(tokenizer)).save_pretrained(folder / "model")


def _tokenizer() -> Any:
    """Byte-level BPE over the prompts' own words; every byte has a token, so the model can say anything."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prompt_texts(2000, seed=0), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **SPECIAL)


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
