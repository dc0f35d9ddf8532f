"""Python arguments to the configuration that YAML would give: the same keys, defaults, bounds and errors."""

import sys
from collections.abc import Mapping, Set
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import ModelSection, RunSection
from rlhf_ray.config.data import DataSection, DemonstrationDataSection, PreferenceDataSection, PromptDataSection
from rlhf_ray.config.load import load_config, merge_config
from rlhf_ray.config.training import TrainingConfig, training_settings
from rlhf_ray.data.memory import DEMONSTRATIONS, PREFERENCES, PROMPTS, RowKind, save_rows
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.run_folder import RunFolder

Config = TypeVar("Config", bound=Section)

#: Data in memory is stored in this folder below `run.root`, in files named by their content.
DATA_FOLDER = "data"
#: What a stage's section `data` names.
ROW_KINDS: dict[Any, RowKind] = {
    PromptDataSection: PROMPTS,
    DemonstrationDataSection: DEMONSTRATIONS,
    PreferenceDataSection: PREFERENCES,
}
#: The fields of a `peft.LoraConfig` that ours has too, by our name.
PEFT_FIELDS = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}
#: Fields of a `peft.LoraConfig` that say nothing about the adapter, or that follow from the model.
PEFT_LABELS = {"task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out"}
PEFT_LABELS |= {"base_model_name_or_path", "revision"}


class Arguments(Generic[Config]):
    """The arguments of one trainer as layers of its configuration, each under its own name for errors.

    The first layer is a model, or a whole configuration, which later ones change: a section replaces its own, a dict
    single keys. Arguments that are None are left out.
    """

    def __init__(self, trainer: str, cls: type[Config], model: Any, without: Set[str] = frozenset()) -> None:
        """`trainer`: the class that is called. `without`: sections of a whole configuration that are given anew."""
        self._trainer, self._cls = trainer, cls
        self._layers: list[tuple[str, Mapping[str, Any]]] = [(f"{trainer}(...)", {}), self._start(model, without)]

    def add(self, argument: str, keys: Mapping[str, Any]) -> None:
        """Sections by name, given as `argument`."""
        content = {name: self._plain(name, section) for name, section in keys.items()}
        self._layers.append((f"{self._trainer}({argument}=...)", content))

    def add_section(self, name: str, section: Any) -> None:
        """A section or a dict of its keys, given as the argument of the same name."""
        if section is not None:
            self.add(name, {name: section})

    def add_run(self, run: Any) -> None:
        """The section `run`, a dict of its keys, or the run's name."""
        self.add_section("run", {"name": run} if isinstance(run, str) else run)

    def add_lora(self, lora: Any) -> None:
        """Ours, a dict, or peft's `LoraConfig`; peft's default `target_modules` means all linear layers here."""
        if lora is not None:
            keys = self._peft(lora) if _is_peft(lora) else self._plain("lora", lora)
            self.add("lora", {"model": {"lora": keys}})

    def add_training(self, training: TrainingConfig | Mapping[str, Any] | None, stage: str) -> None:
        """Options of the configuration by short name or dotted key; `stage` is the stage's own section."""
        if training is not None:
            settings = training_settings(training, self._cls, stage)
            self._layers += [(f"{self._trainer}(training=...) as {name}", keys) for name, keys in settings]

    def add_data(self, data: Any) -> None:
        """A path or hub name, a section or its keys; rows in memory, also under `path` and `eval_path`, get stored.

        Add it after `run`, which says where.
        """
        if data is None:
            return
        keys = data if isinstance(data, Mapping | DataSection) else {"path": data}
        plain = self._plain("data", keys)
        root = [content["run"]["root"] for _, content in self._layers if "root" in content.get("run", {})]
        folder = Path(root[-1] if root else RunSection().root) / DATA_FOLDER
        kind = ROW_KINDS[self._cls.model_fields["data"].annotation]
        for key in ("path", "eval_path"):
            if plain.get(key) is not None:
                plain[key] = rows_path(plain[key], folder, kind)
        self.add("data", {"data": plain})

    def build(self) -> Config:
        """The configuration. Raises ConfigError as for a YAML file; a problem's place is the argument it came in."""
        return merge_config(self._cls, self._layers)

    def _start(self, model: Any, without: Set[str]) -> tuple[str, dict[str, Any]]:
        if isinstance(model, self._cls):
            return "the configuration", model.model_dump(exclude=set(without))
        if isinstance(model, Section) and not isinstance(model, ModelSection):
            raise ConfigError(
                f"{self._trainer}(model): got a {type(model).__name__}; give a {self._cls.__name__}, a hub name or "
                "folder, or the section `model`"
            )
        if isinstance(model, str | PathLike):
            return f"{self._trainer}(model)", {"model": {"name": fspath(model)}}
        return f"{self._trainer}(model)", {"model": self._plain("model", model)}

    def _plain(self, name: str, value: Any) -> dict[str, Any]:
        """A section, or a mapping with sections in it, as plain nested data."""
        if isinstance(value, Section):
            return value.model_dump()
        if isinstance(value, Mapping):
            return {key: self._plain(name, item) if isinstance(item, Section) else item for key, item in value.items()}
        raise ConfigError(
            f"{self._trainer}({name}=...): got {type(value).__name__}, expected a section or a dict of its keys"
        )

    def _peft(self, lora: Any) -> dict[str, Any]:
        """peft's `LoraConfig` as keys of ours."""
        given, defaults = lora.to_dict(), type(lora)().to_dict()
        changed = {name for name, value in given.items() if value != defaults.get(name)}
        if unknown := sorted(changed - set(PEFT_FIELDS) - PEFT_LABELS):
            raise ConfigError(
                f"{self._trainer}(lora=...): peft's {', '.join(unknown)} cannot be set here; there are "
                f"{', '.join(PEFT_FIELDS)}"
            )
        targets = lora.target_modules
        if targets is None:
            targets = "all-linear"
        values = {"r": lora.r, "lora_alpha": float(lora.lora_alpha), "lora_dropout": float(lora.lora_dropout)}
        values["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
        return {ours: values[theirs] for theirs, ours in PEFT_FIELDS.items()}


def config_of_run(cls: type[Config], folder: str | PathLike[str]) -> Config:
    """The configuration of an earlier run. Raises ConfigError where there is none."""
    return load_config(cls, [RunFolder.open(Path(folder)).config_file])


def rows_path(rows: Any, folder: Path, kind: RowKind) -> str:
    """Where rows lie: a path or hub name as it is, anything else stored in `folder`."""
    if isinstance(rows, str | PathLike):
        return fspath(rows)
    return str(save_rows(rows, folder, kind))


def _is_peft(lora: Any) -> bool:
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(lora, peft.LoraConfig)
