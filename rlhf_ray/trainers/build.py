"""Python arguments to the configuration that YAML would give: the same keys, defaults, bounds and errors."""

import sys
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.base import Section
from rlhf_ray.config.common import ModelSection, RunSection
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.load import load_config, merge_config
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.config.rewards import CarriesCode
from rlhf_ray.config.training import TrainingConfig, training_settings
from rlhf_ray.data.memory import save_prompts
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.terms import as_term
from rlhf_ray.trainers.run_folder import RunFolder

#: In-memory prompts are stored in this folder below `run.root`, in files named by their content.
DATA_FOLDER = "data"
#: The fields of a `peft.LoraConfig` that ours has too, by our name.
PEFT_FIELDS = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}
#: Fields of a `peft.LoraConfig` that say nothing about the adapter, or that follow from the model.
PEFT_LABELS = {"task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out"}
PEFT_LABELS |= {"base_model_name_or_path", "revision"}


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
    layers: list[tuple[str, Mapping[str, Any]]] = [("PPOTrainer(...)", {}), _start(model, without=composed)]
    if run is not None:
        layers.append(("PPOTrainer(run=...)", {"run": {"name": run} if isinstance(run, str) else _plain("run", run)}))
    if lora is not None:
        layers.append(("PPOTrainer(lora=...)", {"model": {"lora": _lora(lora)}}))
    if composed:
        layers.append(("PPOTrainer(reward=...)", {key: _plain(key, value) for key, value in composed.items()}))
    if generation is not None:
        layers.append(("PPOTrainer(generation=...)", {"generation": _plain("generation", generation)}))
    if training is not None:
        layers += [(f"PPOTrainer(training=...) as {name}", keys) for name, keys in training_settings(training)]
    if data is not None:
        layers.append(("PPOTrainer(data=...)", {"data": _data(data, layers)}))
    config = merge_config(PPOConfig, layers)
    _carry_code(composed or (dict(model) if isinstance(model, PPOConfig) else {}), config)
    return config


def resumed_config(folder: str | PathLike[str]) -> PPOConfig:
    """The configuration of an earlier run. Raises ConfigError where there is none."""
    return load_config(PPOConfig, [RunFolder.open(Path(folder)).config_file])


def _start(model: Any, without: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first layer: a model, or a whole configuration `without` the keys that are given anew."""
    if isinstance(model, PPOConfig):
        return "the configuration", model.model_dump(exclude=set(without))
    if isinstance(model, str | PathLike):
        return "PPOTrainer(model)", {"model": {"name": fspath(model)}}
    return "PPOTrainer(model)", {"model": _plain("model", model)}


def _plain(name: str, value: Any) -> Any:
    """A section, or a mapping with sections in it, as plain nested data."""
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _plain(name, item) if isinstance(item, Section) else item for key, item in value.items()}
    raise ConfigError(f"PPOTrainer({name}=...): got {type(value).__name__}, expected a section or a dict of its keys")


def _lora(lora: Any) -> dict[str, Any]:
    """Ours, a dict, or peft's `LoraConfig`; peft's default `target_modules` means all linear layers here."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(lora, peft.LoraConfig):
        return dict(_plain("lora", lora))
    given, defaults = lora.to_dict(), peft.LoraConfig().to_dict()
    changed = {name for name, value in given.items() if value != defaults.get(name)}
    if unknown := sorted(changed - set(PEFT_FIELDS) - PEFT_LABELS):
        raise ConfigError(
            f"PPOTrainer(lora=...): peft's {', '.join(unknown)} cannot be set here; there are {', '.join(PEFT_FIELDS)}"
        )
    targets = lora.target_modules
    if targets is None:
        targets = "all-linear"
    values = {"r": lora.r, "lora_alpha": float(lora.lora_alpha), "lora_dropout": float(lora.lora_dropout)}
    values["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return {ours: values[theirs] for theirs, ours in PEFT_FIELDS.items()}


def _data(data: Any, layers: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A path or hub name, a section or its keys; prompts in memory, also under `path` and `eval_path`, get stored."""
    keys = data if isinstance(data, Mapping | PromptDataSection) else {"path": data}
    plain: dict[str, Any] = dict(_plain("data", keys))
    root = [content["run"]["root"] for _, content in layers if "root" in content.get("run", {})]
    folder = Path(root[-1] if root else RunSection().root) / DATA_FOLDER
    for key in ("path", "eval_path"):
        if plain.get(key) is not None:
            plain[key] = prompts_path(plain[key], folder)
    return plain


def prompts_path(prompts: Any, folder: Path) -> str:
    """Where prompts lie: a path or hub name as it is, anything else stored in `folder`."""
    if isinstance(prompts, str | PathLike):
        return fspath(prompts)
    return str(save_prompts(prompts, folder))


def _carry_code(given: Mapping[str, Any], config: PPOConfig) -> None:
    """Give functions without an import path their code again: it is in no plain data."""
    for name, section in given.get("rewards", {}).items():
        ours = config.rewards[name]
        if isinstance(section, CarriesCode) and section.code and isinstance(ours, CarriesCode):
            config.rewards[name] = ours.with_code(section.code)
    reducer = given.get("reducer")
    if reducer is not None and reducer.code:
        config.reducer = config.reducer.with_code(reducer.code)
