"""Configurations of fine-tuning services and Hugging Face scripts, flat JSON, turned into ours.

    {"strategy": "rlhf", "model_name": ..., "dataset": ..., "lora_r": 16, "use_4bit": true, ...}

`rlhf` on preference pairs becomes a pipeline (a reward model from the pairs, then PPO on their prompts), `dpo` a DPO
run, `sft` and `qlora` an SFT run. What is read differently here, or has no counterpart, is said.
"""

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ray.config.arithmetic import ppo_arithmetic
from rlhf_ray.config.base import Section
from rlhf_ray.config.dpo import DPOConfig
from rlhf_ray.config.load import mapping_yaml, merge_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.config.sft import SFTConfig
from rlhf_ray.errors import ConfigError

Mapped = dict[str, Any]

#: Keys whose value means the same here.
SAME = {
    "model_name": "model.name",
    "dataset": "data.path",
    "eval_split": "data.eval_fraction",
    "lora_r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "learning_rate": "learner.learning_rate",
    "warmup_ratio": "learner.warmup_ratio",
    "warmup_steps": "learner.warmup_steps",
    "weight_decay": "learner.weight_decay",
    "max_grad_norm": "learner.max_grad_norm",
    "adam_beta1": "learner.adam_beta1",
    "adam_beta2": "learner.adam_beta2",
    "adam_epsilon": "learner.adam_eps",
    "seed": "run.seed",
    "output_dir": "run.root",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
}

#: Keys whose values have other names here.
CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "lr_scheduler_type": (
        "learner.schedule",
        {"constant_with_warmup": "constant", "warmup_stable_decay": "wsd"}
        | {name: name for name in ("constant", "linear", "cosine", "inverse_sqrt")},
    ),
    "optim": (
        "learner.optimizer",
        {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "sgd": "sgd"}
        | dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    ),
}

#: Keys that say nothing here, and why.
DROPPED = {
    "provider": "there is one learner (transformers, peft, FSDP2) and one generator (vLLM), whatever the provider",
    "task": "the strategy says what is trained",
    "bnb_4bit_quant_type": "4-bit weights are NormalFloat (nf4)",
    "bnb_4bit_use_double_quant": "the constants of 4-bit weights are always quantised too",
    "bnb_4bit_compute_dtype": "quantised layers compute in learner.dtype",
    "logging_steps": "every step is logged",
    "report_to": "see the section tracking",
}


@dataclass(frozen=True)
class Imported:
    """A configuration of ours, validated, as the keys that the JSON file sets."""

    command: str  # the `rlhf-ray` command that runs it
    content: Mapped
    notes: list[str] = field(default_factory=list)  # what was read differently, and what is still to be given
    dropped: dict[str, str] = field(default_factory=dict)  # key -> why it has no counterpart

    def to_yaml(self) -> str:
        """The file to write, with what there is to say about it in comments."""
        said = [f"{self.command} --config THIS_FILE", *self.notes]
        said += [f"{key}: dropped, {reason}" for key, reason in self.dropped.items()]
        return "".join(f"# {line}\n" for line in said) + mapping_yaml(self.content)


def import_json(path: Path) -> Imported:
    """The configuration that the JSON file at `path` describes.

    Raises:
        ConfigError: it is no JSON object, names no known strategy or no model, or a value is wrong here.
    """
    source = _Source(path, _read(path))
    strategy = source.take("strategy")
    if strategy not in BUILDERS:
        raise ConfigError(f"strategy: {strategy!r} in {path} should be {', '.join(BUILDERS)}")
    if "model_name" not in source.values:
        raise ConfigError(f"model_name: missing in {path} (hub name or local folder of a causal language model)")
    if strategy == "qlora":
        source.values.setdefault("use_4bit", True)
    command, cls, content = BUILDERS[strategy](source)
    _check(cls, path, content)
    source.dropped |= dict.fromkeys(source.values, "not known here")
    return Imported(command, content, source.notes, source.dropped)


class _Source:
    """The JSON file's keys, taken one after the other; what is left in the end was not understood."""

    def __init__(self, path: Path, values: Mapped) -> None:
        self.path, self.values = path, values
        self.notes: list[str] = []
        self.dropped: dict[str, str] = {}

    def take(self, key: str, default: Any = None) -> Any:
        return self.values.pop(key, default)

    def count(self, key: str, default: int = 1) -> int:
        """A whole number of 1 or more."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key}: {value!r} in {self.path} should be a whole number, at least 1")
        return value


def _read(path: Path) -> Mapped:
    try:
        text = path.read_text(encoding="utf-8")
        # Comments as in the services' own guides; a text may hold slashes.
        values = json.loads(re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda match: match[1] or "", text))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected one JSON object of keys, found {type(values).__name__}")
    return values


def _check(cls: type[Section], path: Path, content: Mapped) -> None:
    """Validate, with a stand-in for data that the file does not name."""
    complete = copy.deepcopy(content)
    for section in [complete, *(complete[stage] for stage in ("reward_model", "ppo") if stage in complete)]:
        if "data" in section:
            section["data"].setdefault("path", "to be given")
    config = merge_config(cls, [(str(path), complete)])
    if isinstance(config, RLHFConfig) and config.ppo is not None:
        ppo_arithmetic(config.ppo)


# -- one strategy each -------------------------------------------------------------------------------------------------


def _sft(source: _Source) -> tuple[str, type[Section], Mapped]:
    content, batch, tokens = _common(source)
    _put(content, "sft.epochs", _whole_epochs(source))
    _put(content, "sft.samples_per_step", batch[0] * batch[1])
    if tokens:
        _limit(content, tokens)
        _put(content, "learner.tokens_per_microbatch", batch[0] * tokens)
    _needs_data(source, content, "data.path")
    return "rlhf-ray sft", SFTConfig, content


def _dpo(source: _Source) -> tuple[str, type[Section], Mapped]:
    content, batch, tokens = _common(source)
    _put(content, "dpo.epochs", _whole_epochs(source))
    if (beta := source.take("beta")) is not None:
        _put(content, "dpo.beta", beta)
    _pairs(content, "dpo", batch, tokens)
    _needs_data(source, content, "data.path")
    return "rlhf-ray dpo", DPOConfig, content


def _rlhf(source: _Source) -> tuple[str, type[Section], Mapped]:
    """A reward model from the pairs, then PPO on their prompts; adapters, precision and rates are the same in both."""
    common, batch, tokens = _common(source)
    run = common.pop("run", None)
    reward, ppo = common, copy.deepcopy(common)
    epochs = _whole_epochs(source)
    _put(reward, "reward.epochs", epochs)
    _pairs(reward, "reward", batch, tokens)
    _put(ppo, "ppo.epochs", float(epochs))
    _put(ppo, "ppo.prompts_per_iteration", batch[0] * batch[1])
    ppo["rewards"] = {"preference": {"type": "neural", "model": "${reward_model}"}}
    if tokens:
        _put(ppo, "data.max_prompt_tokens", tokens // 2)
        _put(ppo, "data.too_long", "truncate")
        _put(ppo, "generation.max_new_tokens", tokens - tokens // 2)
        _put(ppo, "learner.tokens_per_microbatch", batch[0] * tokens)
        source.notes.append(f"max_seq_length: half of the {tokens} tokens for prompts in PPO, half for responses")
    source.notes.append(
        "strategy: PPO wants a reward model; one is trained from the preference pairs before, at the same learning rate"
    )
    _needs_data(source, reward, "reward_model.data.path and ppo.data.path")
    run = {} if run is None else {"run": run}
    return "rlhf-ray pipeline", RLHFConfig, {**run, "reward_model": reward, "ppo": ppo}


BUILDERS: dict[str, Callable[[_Source], tuple[str, type[Section], Mapped]]] = {
    "rlhf": _rlhf,
    "dpo": _dpo,
    "sft": _sft,
    "qlora": _sft,
}


# -- parts -------------------------------------------------------------------------------------------------------------


def _common(source: _Source) -> tuple[Mapped, tuple[int, int], int | None]:
    """What all strategies share; (sequences per pass, passes per step); the longest sequence in tokens, if given."""
    content: Mapped = {}
    for key, dotted in SAME.items():
        if key in source.values:
            _put(content, dotted, source.take(key))
    for key, (dotted, names) in CHOICES.items():
        if (choice := source.take(key)) in names:
            _put(content, dotted, names[choice])
        elif choice is not None:
            source.dropped[key] = f"{choice!r} has no counterpart; there are {', '.join(sorted(set(names.values())))}"
    for key, reason in DROPPED.items():
        if source.take(key) is not None:
            source.dropped[key] = reason
    _quantization(source, content)
    _precision(source, content)
    batch = source.count("per_device_train_batch_size"), source.count("gradient_accumulation_steps")
    source.notes.append(
        f"batch: {batch[0]} x {batch[1]} accumulated = {batch[0] * batch[1]} per step over all devices; set "
        "learner.ranks for more than one"
    )
    tokens = source.count("max_seq_length") if "max_seq_length" in source.values else None
    return content, batch, tokens


def _quantization(source: _Source, content: Mapped) -> None:
    """4 or 8 bits; on adapters, so that they come with default ones where the file sets none."""
    four, eight = (
        bool(source.take(f"use_{bits}bit")) | bool(source.take(f"load_in_{bits}bit", False)) for bits in (4, 8)
    )
    if four and eight:
        raise ConfigError(f"use_4bit, use_8bit: both are set in {source.path}; set one of them")
    if four or eight:
        _put(content, "model.quantization", "4bit" if four else "8bit")
        content["model"].setdefault("lora", {})


def _precision(source: _Source, content: Mapped) -> None:
    wanted = [dtype for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")) if source.take(key)]
    if len(wanted) > 1:
        raise ConfigError(f"bf16, fp16: both are true in {source.path}; set one of them")
    if wanted:
        _put(content, "learner.dtype", wanted[0])


def _whole_epochs(source: _Source) -> int:
    epochs = source.take("num_train_epochs", 1)
    if not isinstance(epochs, int | float) or isinstance(epochs, bool) or epochs <= 0:
        raise ConfigError(f"num_train_epochs: {epochs!r} in {source.path} should be a number, more than 0")
    if epochs != int(epochs):
        source.notes.append(f"num_train_epochs: {epochs:g} rounded up to whole passes")
    return math.ceil(epochs)


def _pairs(content: Mapped, section: str, batch: tuple[int, int], tokens: int | None) -> None:
    _put(content, f"{section}.pairs_per_step", batch[0] * batch[1])
    if tokens:
        _limit(content, tokens)
        _put(content, "learner.tokens_per_microbatch", 2 * batch[0] * tokens)


def _limit(content: Mapped, tokens: int) -> None:
    """The longest sequence; longer ones are cut, as they were there."""
    _put(content, "data.max_tokens", tokens)
    _put(content, "data.too_long", "truncate")


def _needs_data(source: _Source, content: Mapped, keys: str) -> None:
    if "path" not in content.get("data", {}):
        source.notes.append(f"dataset: not in the file; give {keys} on the command line")


def _put(content: Mapped, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[key] = value
