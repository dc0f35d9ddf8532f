"""The data of the offline comparisons: demonstrations and preference pairs about the workload's words, of mixed length.

The standard library only at import, as in `workload.py`, whose model both sides train.
"""

import json
import random
from pathlib import Path
from typing import Any

from workload import WORDS

STAGES = ("sft", "reward", "dpo")
ROWS_PER_STEP = 32  # demonstrations, or pairs
MAX_TOKENS = 512
LEARNING_RATE = 1e-4
BETA = 0.1
#: Words of a prompt and of a response, drawn log-uniformly: most are short and a few long, as in real data.
PROMPT_WORDS, RESPONSE_WORDS = (4, 48), (2, 64)


def data_file(folder: Path, stage: str) -> Path:
    return folder / ("demonstrations.jsonl" if stage == "sft" else "preferences.jsonl")


def write_rows(folder: Path, steps: int, seed: int = 2) -> None:
    """Write rows for `steps` steps of every stage into `folder`."""
    draw = random.Random(seed)
    good, bad = WORDS[::2], WORDS[1::2]
    demonstrations, pairs = [], []
    for _ in range(steps * ROWS_PER_STEP):
        prompt = f"say something about {_words(draw, WORDS, PROMPT_WORDS)}:"
        chosen, rejected = (" " + _words(draw, words, RESPONSE_WORDS) for words in (good, bad))
        demonstrations.append({"prompt": prompt, "completion": chosen})
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    _write(data_file(folder, "sft"), demonstrations)
    _write(data_file(folder, "dpo"), pairs)


def read_rows(folder: Path, stage: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in data_file(folder, stage).read_text().splitlines()]


def _words(draw: random.Random, words: list[str], between: tuple[int, int]) -> str:
    low, high = between
    return " ".join(draw.choices(words, k=round(low * (high / low) ** draw.random())))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
