"""Low-rank adapters (Hu et al. 2021) through peft, injected into the model itself, and their merge for publishing.

peft is imported where adapters are made: it brings bitsandbytes and torch's compiler along, which takes seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_ray.config.common import LoraSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.quantized import ExactLinear, dequantized, in_checkpoint_layout

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"


def peft_config(section: LoraSection) -> "LoraConfig":
    """The section as peft's own configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )


def add_lora(lm: PreTrainedModel, section: LoraSection) -> None:
    """Freeze `lm` and put trainable adapters on its target modules, in place. A `score` head stays trainable.

    Raises ConfigError when a target module is none of the model's inner linear layers.
    """
    from peft import inject_adapter_in_model

    inner = inner_linear_layers(lm)
    targets = inner if section.target_modules == "all-linear" else section.target_modules
    unknown = sorted(target for target in targets if target.rsplit(".", 1)[-1] not in inner)
    if unknown:
        raise ConfigError(f"model.lora.target_modules: {type(lm).__name__} has no {unknown}; it has {inner}")
    lm.requires_grad_(False)
    config = peft_config(section.model_copy(update={"target_modules": targets}))
    # Layers like GPT-2's Conv1D store their weights transposed; peft has to be told, or it warns and does it anyway.
    config.fan_in_fan_out = all(isinstance(m, Conv1D) for n, m in lm.named_modules() if n.rsplit(".", 1)[-1] in targets)
    inject_adapter_in_model(config, lm, ADAPTER)
    if hasattr(lm, "score"):
        lm.score.requires_grad_(True)


def is_adapted(module: nn.Module) -> "TypeGuard[LoraLayer]":
    """Whether peft wrapped this layer."""
    return hasattr(module, "lora_A")


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """`network` as it was before `add_lora`, for passes without gradients."""
    layers = [module for module in network.modules() if is_adapted(module)]
    # Not peft's enable_adapters: it also turns requires_grad off and on again, which sharded parameters do not survive.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def inner_linear_layers(lm: PreTrainedModel) -> list[str]:
    """Last names of the linear layers, without the head that gives logits or scores."""
    heads = (lm.get_output_embeddings(), getattr(lm, "score", None))
    layers = [
        (n, m)
        for n, m in lm.named_modules()
        if isinstance(m, nn.Linear | Conv1D) and m not in heads and not n.startswith("score.")
    ]
    return sorted({name.rsplit(".", 1)[-1] for name, _ in layers})


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard (a collective call), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def merged_tensors(lm: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, full tensor) of every weight, adapters merged into the weights they sit on.

    Quantised weights come dequantised, float32. Tied heads are left out, as in a saved checkpoint. On sharded models
    every rank must iterate, in step.
    """
    modules = dict(lm.named_modules())
    for name, parameter in lm.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        layer, adapted = modules[owner], modules.get(owner.removesuffix(".base_layer"))
        quantized = leaf == "weight" and isinstance(layer, ExactLinear)
        weight = dequantized(layer) if quantized else full_tensor(parameter.detach())
        if leaf == "weight" and adapted is not None and is_adapted(adapted):
            weight = weight + _delta(adapted).to(weight.dtype)
        yield name.replace(".base_layer.", "."), in_checkpoint_layout(layer, weight) if quantized else weight


def _delta(layer: "LoraLayer") -> Tensor:
    """scaling * B @ A in the layout of the base weight."""
    a, b = (full_tensor(part[ADAPTER].weight.detach()) for part in (layer.lora_A, layer.lora_B))
    delta = (b @ a) * layer.scaling[ADAPTER]
    return delta.t() if getattr(layer, "fan_in_fan_out", False) else delta


@torch.no_grad()
def adapter_tensors(lm: PreTrainedModel) -> dict[str, Tensor]:
    """Full adapter weights under peft's checkpoint names. On sharded models every rank must call it."""
    return {
        "base_model.model." + name.replace(f".{ADAPTER}.", "."): full_tensor(parameter.detach()).clone()
        for name, parameter in lm.named_parameters()
        if ".lora_" in name
    }
