"""The Python form of PPO: arguments to a validated `PPOConfig`, with rewards whose code no file can hold."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import ModelSection, RunSection
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.config.rewards import CarriesCode
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.data.memory import PROMPTS
from rlhf_ray.rewards.terms import as_term
from rlhf_ray.trainers.arguments import Arguments, config_of_run, rows_path


def build_config(
    model: str | PathLike[str] | Mapping[str, Any] | ModelSection | PPOConfig,
    *,
    reward: Any = None,
    lora: Any = None,
    data: Any = None,
    training: TrainingConfig | Mapping[str, Any] | None = None,
    generation: GenerationSection | Mapping[str, Any] | None = None,
    run: RunSection | Mapping[str, Any] | str | None = None,
) -> PPOConfig:
    """The configuration of a PPO run.

    With a `PPOConfig` in place of the model the arguments change it: a section replaces its own, a dict single keys.

    Raises:
        ConfigError: as for a YAML file; the problem's place is the argument that it came in.
    """
    composed: dict[str, Any] = {}
    if reward is not None:
        term = as_term(reward)
        composed = {"rewards": term.sections(), "reducer": term.reducer_section()}
    arguments = Arguments("PPOTrainer", PPOConfig, model, without=composed.keys())
    arguments.add_run(run)
    arguments.add_lora(lora)
    if composed:
        arguments.add("reward", composed)
    arguments.add_section("generation", generation)
    arguments.add_training(training, "ppo")
    arguments.add_data(data)
    config = arguments.build()
    carry_code(composed or (dict(model) if isinstance(model, PPOConfig) else {}), config)
    return config


def resumed_config(folder: str | PathLike[str]) -> PPOConfig:
    """The configuration of an earlier run. Raises ConfigError where there is none."""
    return config_of_run(PPOConfig, folder)


def prompts_path(prompts: Any, folder: Path) -> str:
    """Where prompts lie: a path or hub name as it is, anything else stored in `folder`."""
    return rows_path(prompts, folder, PROMPTS)


def carry_code(given: Mapping[str, Any], config: PPOConfig | EvalConfig) -> None:
    """Give functions without an import path their code again: it is in no plain data."""
    for name, section in given.get("rewards", {}).items():
        ours = config.rewards[name]
        if isinstance(section, CarriesCode) and section.code and isinstance(ours, CarriesCode):
            config.rewards[name] = ours.with_code(section.code)
    reducer = given.get("reducer")
    if reducer is not None and reducer.code:
        config.reducer = config.reducer.with_code(reducer.code)
