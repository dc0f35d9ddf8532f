"""What `--tiny` changes in the recipes that are pipelines: models, data, sizes and lengths, stage by stage."""

from pathlib import Path
from typing import Any

CONTEXT = 128  # tokens that the tiny models take

#: Small models want large steps, and few of them.
_SUPERVISED: dict[str, Any] = {
    "data.max_tokens": CONTEXT,
    "data.eval_fraction": 0.1,
    "learner.tokens_per_microbatch": 4096,
}
_PPO: dict[str, Any] = {
    "data.eval_fraction": 0.1,
    "data.max_prompt_tokens": None,
    "rewards.quality.max_tokens": CONTEXT,
    "ppo.prompts_per_iteration": 64,
    "ppo.samples_per_minibatch": 32,
    "evaluation.prompts": 160,
    "learner.tokens_per_microbatch": 4096,
}
_GENERATION: dict[str, Any] = {
    "generation.max_new_tokens": 40,
    "generation.max_context_tokens": CONTEXT,
    "generation.cpu_kv_cache_gib": 0.125,
}


def pipeline_overlay(files: Path) -> dict[str, Any]:
    """Of `pipeline_llama2_7b_hh`."""
    data = {"data.path": str(files / "hh.jsonl")}
    start = {"model.name": str(files / "policy")}
    warm_up = {"learner.warmup_steps": 10}
    sft = start | data | _SUPERVISED | warm_up | {"sft.epochs": 2, "learner.learning_rate": 1e-3}
    reward = data | _SUPERVISED | warm_up | {"reward.epochs": 2, "reward.pairs_per_step": 32, "reward.head_hidden": 128}
    dpo = data | _SUPERVISED | {"learner.learning_rate": 2e-4}
    ppo = data | _PPO | _GENERATION | {"ppo.iterations": 20, "learner.learning_rate": 1e-4}
    evaluation = data | _GENERATION | _measured(files / "hh.jsonl") | {"toxicity": None, "data.max_prompt_tokens": None}
    return {
        **_in("sft", sft),
        **_in("reward_model", reward | {"learner.learning_rate": 3e-4}),
        **_in("dpo", dpo),
        **_in("ppo", ppo | {"critic.learning_rate": 3e-4}),
        **_in("evaluation", evaluation),
    }


def mistral_overlay(files: Path) -> dict[str, Any]:
    """Of `mistral_7b_hh_rlhf`."""
    start = {"model.name": str(files / "policy"), "data.path": str(files / "hh.jsonl")}
    reward = start | _SUPERVISED | {"reward.epochs": 2, "learner.learning_rate": 1e-3}
    ppo = start | _PPO | _GENERATION | {"ppo.iterations": 20, "learner.learning_rate": 1e-3}
    evaluation = _GENERATION | {"against": str(files / "policy"), "data.path": str(files / "refusals.jsonl")}
    return {**_in("reward_model", reward), **_in("ppo", ppo), **_in("evaluation", evaluation)}


def preference_overlay(files: Path) -> dict[str, Any]:
    """Of `preference_llama31_8b_qlora`."""
    start = {"model.name": str(files / "policy"), "data.path": str(files / "preferences.jsonl")}
    steps = start | _SUPERVISED | {"learner.learning_rate": 1e-3}
    ppo = start | _PPO | _GENERATION | {"ppo.epochs": None, "ppo.iterations": 20, "learner.learning_rate": 1e-3}
    measured = _GENERATION | {
        "reference": str(files / "policy"),
        "data.path": str(files / "preferences.jsonl"),
        "data.max_samples": 128,
        "rewards.quality.max_tokens": CONTEXT,
    }
    return {
        **_in("reward_model", steps | {"reward.epochs": 2, "reward.pairs_per_step": 32}),
        **_in("dpo", steps | {"dpo.pairs_per_step": 32}),
        **_in("ppo", ppo),
        **_in("evaluation", measured),
    }


def preference_overlay_12gb(files: Path) -> dict[str, Any]:
    """Of `preference_llama31_8b_qlora_12gb`, which ends with DPO."""
    overlay = preference_overlay(files)
    return {key: value for key, value in overlay.items() if key.startswith(("reward_model.", "dpo."))}


def _measured(rows: Path) -> dict[str, Any]:
    """Sizes of an evaluation that also reads the chosen replies."""
    return {
        "data.max_samples": 128,
        "perplexity.path": str(rows),
        "perplexity.max_samples": 128,
        "perplexity.max_tokens": CONTEXT,
        "rewards.quality.max_tokens": CONTEXT,
    }


def _in(stage: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {f"{stage}.{key}": value for key, value in keys.items()}
