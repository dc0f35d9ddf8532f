"""`--tiny`: what a recipe becomes on two cores without a network, and the files that it then needs.

    rlhf-ray ppo --config configs/sentiment_gpt2.yaml --tiny
    rlhf-ray pipeline --config configs/mistral_7b_hh_rlhf.yaml --tiny

Replaced is what is large or remote: models, data, sizes and lengths. Rewards and weights, LoRA, KL, early stop and all
the rest stay as the recipe has them.
"""

import importlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from rlhf_ray.demo.recipes.tiny_pipelines import (
    mistral_overlay,
    pipeline_overlay,
    preference_overlay,
    preference_overlay_12gb,
)
from rlhf_ray.errors import ConfigError

#: What the tiny PPO runs change beside models and data.
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
    if recipe not in RECIPES:
        raise ConfigError(f"--tiny: there is no tiny variant of {recipe}, only of {', '.join(RECIPES)}")
    files = Path(folder).resolve() / f"{recipe}-{_fingerprint()}"
    if not files.exists():
        _write_whole(files, _WRITERS[recipe])
    return _OVERLAYS[recipe](files)


def _sentiment_overlay(files: Path) -> dict[str, Any]:
    prompts = {"data.path": str(files / "prompts.jsonl"), "data.eval_path": str(files / "held_out.jsonl")}
    return {"model.name": str(files / "policy")} | prompts | _SMALL


def _instruction_overlay(files: Path) -> dict[str, Any]:
    return _sentiment_overlay(files) | {f"rewards.{NEURAL}.model": str(files / "reward")}


def _written_by(path: str) -> Callable[[Path], None]:
    """The function at `module:name` below this package; importing it, which loads torch, waits until it is called."""

    def write(folder: Path) -> None:
        module, _, name = path.partition(":")
        getattr(importlib.import_module(f"rlhf_ray.demo.recipes.{module}"), name)(folder)

    return write


_WRITERS: dict[str, Callable[[Path], None]] = {
    "sentiment_gpt2": _written_by("files:write_sentiment"),
    "instruction_following_llama2_7b": _written_by("files:write_instruction"),
    "preference_llama31_8b_qlora": _written_by("preferences:write_preference"),
    "preference_llama31_8b_qlora_12gb": _written_by("preferences:write_preference"),
    "pipeline_llama2_7b_hh": _written_by("preferences:write_pipeline"),
    "mistral_7b_hh_rlhf": _written_by("preferences:write_mistral"),
}
_OVERLAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "sentiment_gpt2": _sentiment_overlay,
    "instruction_following_llama2_7b": _instruction_overlay,
    "preference_llama31_8b_qlora": preference_overlay,
    "preference_llama31_8b_qlora_12gb": preference_overlay_12gb,
    "pipeline_llama2_7b_hh": pipeline_overlay,
    "mistral_7b_hh_rlhf": mistral_overlay,
}


RECIPES = list(_WRITERS)


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
