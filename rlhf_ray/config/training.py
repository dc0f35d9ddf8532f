"""The options of a run that people change most, flat, for Python; the configuration's sections hold all of them."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.tree import all_keys
from rlhf_ray.errors import ConfigError


def _at(key: str) -> Any:
    """An option that sets the configuration's `key`; None leaves the configuration's value."""
    return field(default=None, metadata={"key": key})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Short names for dotted keys of `PPOConfig`, where each has its meaning, bounds and default.

    Every trainer's `training` also takes a dict of such names, or of any dotted key:
    `{"learning_rate": 1e-5, "critic.warmup_iterations": 2}`. Other stages have those of these options whose keys they
    have, and the fields of their own section: `SFTTrainer(training={"epochs": 2, "packing": True})`.
    """

    iterations: int | None = _at("ppo.iterations")
    epochs: float | None = _at("ppo.epochs")
    prompts_per_iteration: int | None = _at("ppo.prompts_per_iteration")
    samples_per_prompt: int | None = _at("ppo.samples_per_prompt")
    samples_per_minibatch: int | None = _at("ppo.samples_per_minibatch")
    ppo_epochs: int | None = _at("ppo.ppo_epochs")
    advantage: str | None = _at("ppo.advantage")
    gamma: float | None = _at("ppo.gamma")
    gae_lambda: float | None = _at("ppo.gae_lambda")
    clip_range: float | None = _at("ppo.clip_range")
    clip_range_high: float | None = _at("ppo.clip_range_high")
    entropy_coef: float | None = _at("ppo.entropy_coef")
    reward_clip: float | None = _at("ppo.reward_clip")
    target_kl: float | None = _at("ppo.target_kl")
    missing_eos_penalty: float | None = _at("ppo.missing_eos_penalty")
    learning_rate: float | None = _at("learner.learning_rate")
    schedule: str | None = _at("learner.schedule")
    warmup_steps: int | None = _at("learner.warmup_steps")
    warmup_ratio: float | None = _at("learner.warmup_ratio")
    optimizer: str | None = _at("learner.optimizer")
    weight_decay: float | None = _at("learner.weight_decay")
    max_grad_norm: float | None = _at("learner.max_grad_norm")
    tokens_per_microbatch: int | None = _at("learner.tokens_per_microbatch")
    dtype: str | None = _at("learner.dtype")
    quantization: str | None = _at("model.quantization")
    gradient_checkpointing: bool | None = _at("model.gradient_checkpointing")
    kl_coef: float | None = _at("kl.coef")
    kl_warmup_iterations: int | None = _at("kl.warmup_iterations")
    stop_kl: float | None = _at("early_stop.kl")
    stop_kl_patience: int | None = _at("early_stop.kl_patience")
    stop_plateau: int | None = _at("early_stop.plateau")
    evaluate_every: int | None = _at("evaluation.every")
    evaluate_prompts: int | None = _at("evaluation.prompts")
    save_every: int | None = _at("checkpoint.every")
    save_best: bool | None = _at("checkpoint.best")
    seed: int | None = _at("run.seed")
    exact: bool | None = _at("run.exact")


KEYS: dict[str, str] = {option.name: option.metadata["key"] for option in fields(TrainingConfig)}


def short_names(cls: type[Section], stage: str) -> dict[str, str]:
    """The options of configurations of type `cls`: name -> dotted key; `stage` is the stage's own section.

    These are the fields of that section, and the names above whose keys the configuration has.
    """
    keys = [".".join(path) for path in all_keys(cls)]
    own = {key.removeprefix(f"{stage}."): key for key in keys if key.count(".") == 1 and key.startswith(f"{stage}.")}
    return own | {name: key for name, key in KEYS.items() if key in keys}


def training_settings(
    training: TrainingConfig | Mapping[str, Any], cls: type[Section] = PPOConfig, stage: str = "ppo"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option that is set, by the name it was given, as nested keys of a configuration of type `cls`.

    Raises:
        ConfigError: a name is neither an option nor starts with a section of the configuration.
    """
    names = short_names(cls, stage)
    for name, value in _given(training).items():
        path = names.get(name, name).split(".")
        if path[0] not in cls.model_fields:
            raise ConfigError(f"training: unknown option {name!r}{_nearest(name, names)}")
        for key in reversed(path):
            value = {key: value}
        yield name, value


def _given(training: TrainingConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(training, TrainingConfig):
        return {name: value for name in KEYS if (value := getattr(training, name)) is not None}
    if isinstance(training, Mapping):
        return training
    raise ConfigError(f"training: got {training!r}, expected a TrainingConfig or a dict of options")


def _nearest(name: str, names: Mapping[str, str]) -> str:
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f" (did you mean {near[0]}?)"
    return f"; there are {', '.join(names)}, and dotted keys like learner.adam_beta2"
