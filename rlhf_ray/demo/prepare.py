"""Everything the demo starts from, made in seconds: data files, a tokenizer and a model with random weights.

    python -m rlhf_ray.demo.prepare runs/demo-files

Simplification: the policy starts from noise rather than from a pretrained checkpoint, so the SFT stage stands in for
pretraining too.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.demo.damage import preference_pairs
from rlhf_ray.demo.docstrings import Example, Split, read_docstrings, split_examples
from rlhf_ray.demo.tokenizer import train_tokenizer

#: Longest prompt + response that the models take, in tokens.
CONTEXT_TOKENS = 256
POLICY_SHAPE = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 512}


@dataclass(frozen=True)
class DemoFiles:
    """Where `prepare` put things, and how many rows each data file has."""

    base: Path  # the policy's start: random weights and tokenizer
    demonstrations: Path
    demonstrations_eval: Path
    preferences: Path
    preferences_eval: Path
    prompts: Path
    prompts_eval: Path
    rows: dict[str, int]  # file stem -> rows


def prepare(folder: str | Path, seed: int = 0) -> DemoFiles:
    """Write the demo's files into a folder; the same files for the same seed and Python version.

    All evaluation files are about the same functions, which no stage trains on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    examples = read_docstrings()
    split = split_examples(examples, seed)
    rows = _write_data(folder, split, seed)
    seen = [*split.demonstrations, *split.prompts]
    _write_model(folder, [text for example in seen for text in (example.signature, example.summary)], seed)
    return DemoFiles(
        base=folder / "base",
        **{stem: folder / f"{stem}.jsonl" for stem in rows},
        rows=rows,
    )


def chat(example: Example) -> list[dict[str, str]]:
    """The prompt: the signature, said by the user."""
    return [{"role": "user", "content": example.signature}]


def _write_data(folder: Path, split: Split, seed: int) -> dict[str, int]:
    """Write the data files; returns their rows by file stem."""
    files: dict[str, Iterable[dict[str, Any]]] = {
        "demonstrations": map(_demonstration, split.demonstrations),
        "demonstrations_eval": map(_demonstration, split.held_out),
        "preferences": map(_preference, preference_pairs(split.preferences, seed)),
        "preferences_eval": map(_preference, preference_pairs(split.held_out, seed + 1)),
        "prompts": map(_prompt, split.prompts),
        "prompts_eval": map(_prompt, split.held_out),
    }
    return {stem: _write_jsonl(folder / f"{stem}.jsonl", rows) for stem, rows in files.items()}


def _demonstration(example: Example) -> dict[str, Any]:
    return {"prompt": chat(example), "completion": example.summary}


def _preference(pair: tuple[Example, str, str]) -> dict[str, Any]:
    example, rejected, damage = pair
    return {"prompt": chat(example), "chosen": example.summary, "rejected": rejected, "damage": damage}


def _prompt(example: Example) -> dict[str, Any]:
    return {"prompt": chat(example), "module": example.module, "docstring": example.summary}


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _write_model(folder: Path, texts: list[str], seed: int) -> None:
    """The policy's start with its tokenizer. The global random state is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **POLICY_SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with no_progress_bar():
        model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without transformers' bar for a write of milliseconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


if __name__ == "__main__":
    print(prepare(sys.argv[1]).rows)
