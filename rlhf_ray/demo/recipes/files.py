"""The files of the tiny recipes: data, a policy trained on it, and where a recipe has one, a reward model."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.templates import NAMED
from rlhf_ray.demo.recipes import models
from rlhf_ray.demo.recipes.reviews import reviews
from rlhf_ray.demo.recipes.sentiment import opening
from rlhf_ray.demo.recipes.tasks import Task, tasks
from rlhf_ray.demo.tokenizer import train_tokenizer

SEED = 0
HELD_OUT, PROMPTS = 256, 1024  # rows of the two prompt files
TEXTS = 1600  # that a policy learns from
PAIRS = 800  # that a reward model learns from

Row = dict[str, Any]


def write_sentiment(folder: Path) -> None:
    """Reviews, and a GPT-2 that writes them."""
    rows = unlike(({"text": text} for text in reviews(SEED)), key=lambda row: opening(row)["text"])
    write_rows(folder / "held_out.jsonl", islice(rows, HELD_OUT))
    write_rows(folder / "prompts.jsonl", islice(rows, PROMPTS))
    texts = list(islice(reviews(SEED + 1), TEXTS))
    tokenizer = train_tokenizer(texts)
    tokenizer.chat_template = None  # GPT-2 has none
    sequences = [[*tokens, tokenizer.eos_token_id] for tokens in tokenizer(texts)["input_ids"]]
    policy = models.train_policy(models.gpt2_shape(tokenizer), sequences, epochs=4, seed=SEED)
    models.save(folder / "policy", policy, tokenizer)


def write_instruction(folder: Path) -> None:
    """Instructions, a Llama that answers them more badly than well, and a DeBERTa that can tell."""
    rows = unlike(({"instruction": task.instruction} for task in tasks(SEED)), key=lambda row: row["instruction"])
    write_rows(folder / "held_out.jsonl", islice(rows, HELD_OUT))
    write_rows(folder / "prompts.jsonl", islice(rows, PROMPTS))
    lessons = list(islice(tasks(SEED + 1), TEXTS))
    _write_policy(folder, lessons)
    _write_reward_model(folder, lessons[:PAIRS])


def _write_policy(folder: Path, lessons: list[Task]) -> None:
    """Two of three answers that it learns from are damaged ones."""
    answers = [task.rejected if number % 3 else task.answer for number, task in enumerate(lessons)]
    shown = [{"prompt": task.instruction, "completion": text} for task, text in zip(lessons, answers, strict=True)]
    write_rows(folder / "demonstrations.jsonl", shown)
    tokenizer = train_tokenizer([*_rendered(lessons), *answers])
    section = DemonstrationDataSection(
        path=str(folder / "demonstrations.jsonl"), chat_template="alpaca", max_tokens=models.CONTEXT_TOKENS
    )
    sequences = load_demonstrations(section, tokenizer).table["tokens"].to_pylist()
    policy = models.train_policy(models.llama_shape(tokenizer), sequences, epochs=4, seed=SEED)
    models.save(folder / "policy", policy, tokenizer)


def _write_reward_model(folder: Path, lessons: list[Task]) -> None:
    pairs = [(task.instruction, task.answer, task.rejected) for task in lessons]
    tokenizer = read_pairs(train_tokenizer(text for pair in pairs for text in pair))
    model = models.train_reward_model(models.deberta_shape(tokenizer), tokenizer, pairs, epochs=4, seed=SEED)
    models.save(folder / "reward", model, tokenizer)


def _rendered(lessons: list[Task]) -> list[str]:
    """The prompts with the template around them, whose words the tokenizer is to know."""
    plain = train_tokenizer([])
    plain.chat_template = NAMED["alpaca"]
    asked = ([{"role": "user", "content": task.instruction}] for task in lessons)
    return [plain.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for messages in asked]


def read_pairs(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer, reading two texts as cross-encoders do: with the end token before, between and after them."""
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}",
        pair=f"{end} $A {end} $B:1 {end}:1",
        special_tokens=[(end, tokenizer.eos_token_id)],
    )
    return tokenizer


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def unlike(rows: Iterator[Row], key: Callable[[Row], str]) -> Iterator[Row]:
    """Only the first row of each key: no prompt is held out and trained on."""
    seen: set[str] = set()
    for row in rows:
        if key(row) not in seen:
            seen.add(key(row))
            yield row
