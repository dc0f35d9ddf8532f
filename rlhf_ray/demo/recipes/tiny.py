"""`--tiny`: what a recipe becomes on two cores without a network, and the files that it then needs.

    rlhf-ray ppo --config configs/sentiment_gpt2.yaml --tiny

Replaced is what is large or remote: models, data, sizes and lengths. Rewards and weights, LoRA, KL, early stop and all
the rest stay as the recipe has them.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from rlhf_ray.errors import ConfigError

#: What every tiny run changes beside models and data.
_SMALL: dict[str, Any] = {
    "ppo.iterations": 30,
    "ppo.prompts_per_iteration": 64,
    "ppo.samples_per_minibatch": 32,
    "learner.learning_rate": 1e-3,  # small models want large steps
    "generation.max_new_tokens": 40,
    "generation.cpu_kv_cache_gib": 0.125,
}
#: The neural reward component, of the recipe that has one.
NEURAL = "hf_OpenAssistant_reward_model_deberta_v3_large_v2"


def tiny_overlay(recipe: str, folder: str | Path) -> dict[str, Any]:
    """Dotted keys and values that make a recipe tiny. Its files are made below `folder`, unless they are there.

    Raises:
        ConfigError: there is no tiny variant of that recipe.
    """
    if recipe not in _WRITERS:
        raise ConfigError(f"--tiny: there is no tiny variant of {recipe}, only of {', '.join(_WRITERS)}")
    files = Path(folder).resolve() / f"{recipe}-{_fingerprint()}"
    if not files.exists():
        _write_whole(files, _WRITERS[recipe])
    overlay = {
        "model.name": str(files / "policy"),
        "data.path": str(files / "prompts.jsonl"),
        "data.eval_path": str(files / "held_out.jsonl"),
    }
    if recipe == "instruction_following_llama2_7b":
        overlay[f"rewards.{NEURAL}.model"] = str(files / "reward")
    return overlay | _SMALL


def _write_sentiment(folder: Path) -> None:
    from rlhf_ray.demo.recipes.files import write_sentiment  # loads torch

    write_sentiment(folder)


def _write_instruction(folder: Path) -> None:
    from rlhf_ray.demo.recipes.files import write_instruction  # loads torch

    write_instruction(folder)


_WRITERS: dict[str, Callable[[Path], None]] = {
    "sentiment_gpt2": _write_sentiment,
    "instruction_following_llama2_7b": _write_instruction,
}


def _fingerprint() -> str:
    """Of this package's source: files that another version of it made are not used."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return xxhash.xxh3_64_hexdigest(b"".join(path.read_bytes() for path in sources))[:8]


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """All files or none: they are written aside and renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        write(aside)
        aside.chmod(0o755)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside)
        raise
