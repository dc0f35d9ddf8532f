"""Loading what scores: a sequence-classification model, its adapter, its tokenizer; refused where it would be noise."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from rlhf_ray.config.rewards import NeuralOptions, NeuralRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import check_model, explain_hub_error, looks_like_path
from rlhf_ray.models.heads import scalar_model_factory
from rlhf_ray.models.load import default_device, resolve_dtype

ADAPTER_FILE = "adapter_config.json"
#: Names of classification heads in transformers: decoders, encoders, and RoBERTa's two layers.
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


def choose_device(section: NeuralOptions) -> torch.device:
    """The device that the section asks for. Raises ConfigError for a GPU that this process does not have."""
    if section.device == "auto":
        return default_device()
    if section.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda, but this process sees no GPU. Set device=auto or cpu, or give the run a GPU "
            "(resources.num_gpus)."
        )
    return torch.device(section.device)


def check_adapter(name: str) -> None:
    """See without loading anything that a local adapter is one. Raises ConfigError where it is not."""
    folder = Path(name).expanduser()
    if (folder.exists() or looks_like_path(name)) and not (folder / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"adapter: '{name}' is no PEFT adapter: it holds no {ADAPTER_FILE}. Give a folder written by peft's "
            "save_pretrained, or a hub name."
        )


def load_model(section: NeuralRewardSection, device: torch.device) -> tuple[Any, Any]:
    """The model in evaluation mode on `device`, adapters merged, and its tokenizer.

    Raises ConfigError for what cannot be loaded, has no trained head, or has no output `label_index`.
    """
    source = check_model(section.model, section.revision)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    adapter = _adapter_weights(section.adapter) if section.adapter else {}
    labels = {"num_labels": head.shape[0]} if (head := _head(adapter)) is not None else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        factory = scalar_model_factory(AutoConfig.from_pretrained(source, **options))
        model, report = factory.from_pretrained(
            source,
            **options,
            **labels,
            dtype=resolve_dtype(section.dtype, device),
            output_loading_info=True,
            ignore_mismatched_sizes=bool(labels),
        )
    except (OSError, ValueError, ImportError) as error:
        raise explain_hub_error(section.model, error) from error
    _refuse_random_weights(section, [*report["missing_keys"], *_names(report["mismatched_keys"])], adapter)
    if section.label_index >= model.config.num_labels:
        raise ConfigError(
            f"Reward model {section.model} has {model.config.num_labels} outputs, so label_index {section.label_index} "
            f"does not exist. Its labels: {model.config.id2label}."
        )
    if section.adapter:
        model = _with_adapter(model, section.adapter)
    return model.to(device).eval(), tokenizer


def context_length(model: Any, tokenizer_limit: int, configured: int | None) -> int:
    """Longest sequence in tokens: what the model has positions for, less if configured."""
    limits = [min(tokenizer_limit, 2**31 - 1)]  # 10**30 where it knows none, which truncation cannot take
    if (positions := getattr(model.config, "max_position_embeddings", None)) is not None:
        limits.append(positions)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    limits += [  # RoBERTa counts positions from the padding index on
        table.num_embeddings - table.padding_idx - 1
        for table in tables
        if table.num_embeddings == positions and table.padding_idx is not None
    ]
    limits.append(configured or min(limits))
    return min(limits)


def _adapter_weights(name: str) -> dict[str, Tensor]:
    from peft import load_peft_weights

    check_adapter(name)
    try:
        weights = load_peft_weights(os.path.expanduser(name), device="cpu")
    except (OSError, ValueError) as error:
        raise explain_hub_error(name, error) from error
    if any(key.endswith("score.out.weight") for key in weights):
        raise ConfigError(
            f"adapter: {name} brings a score head with a hidden layer, which its base model has no place for. Name the "
            "merged model beside it (the run's policy/ folder) as the reward's model, without an adapter."
        )
    return weights


def _with_adapter(model: Any, name: str) -> Any:
    """The model with the adapter merged into it."""
    from peft import PeftConfig, PeftModel, TaskType

    task = PeftConfig.from_pretrained(os.path.expanduser(name)).task_type
    if task not in (TaskType.SEQ_CLS, None):
        raise ConfigError(
            f"adapter: {name} was made for the task {task}, a reward model needs one for {TaskType.SEQ_CLS.value}: "
            "train it on a sequence-classification model, or merge it into one first."
        )
    try:
        return PeftModel.from_pretrained(model, os.path.expanduser(name)).merge_and_unload()
    except (ValueError, RuntimeError) as error:  # other module names, other shapes
        raise ConfigError(
            f"adapter: {name} does not fit {type(model).__name__} {model.name_or_path}: {error}"
        ) from error


def _head(weights: dict[str, Tensor]) -> Tensor | None:
    """The classification head that an adapter brings, [labels, hidden]: its base may have one of another size."""
    return next((tensor for name, tensor in weights.items() if name.endswith(_HEADS)), None)


def _names(mismatched: Iterable[Any]) -> list[str]:
    """The keys of transformers' (key, shape, shape) entries."""
    return [entry if isinstance(entry, str) else entry[0] for entry in mismatched]


def _refuse_random_weights(section: NeuralRewardSection, fresh: list[str], adapter: dict[str, Tensor]) -> None:
    """`fresh`: parameters that the model's folder did not hold; only the adapter may have brought them."""
    random = sorted(key for key in fresh if not any(name.endswith(f".{key}") for name in adapter))
    if random:
        neither = f" (nor does the adapter {section.adapter} bring them)" if section.adapter else ""
        raise ConfigError(
            f"Reward model {section.model} has no trained classification head: {', '.join(random)} would be random "
            f"numbers{neither}. Name a sequence-classification (reward) model, or train one: rlhf-ray reward."
        )
