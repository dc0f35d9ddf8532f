"""Low-rank adapters (Hu et al. 2021) through peft, injected into the model itself, and their merge for publishing."""

from collections.abc import Iterator
from contextlib import contextmanager

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.config.common import LoraSection
from rlhf_ray.errors import ConfigError

ADAPTER = "default"


def peft_config(section: LoraSection) -> peft.LoraConfig:
    """The section as peft's own configuration."""
    return peft.LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )


def add_lora(lm: PreTrainedModel, section: LoraSection) -> None:
    """Freeze `lm` and put trainable adapters on its target modules, in place."""
    lm.requires_grad_(False)
    names = section.target_modules
    if names == "all-linear":
        names = sorted({name.rsplit(".", 1)[-1] for name, module in lm.named_modules() if _is_inner_linear(lm, module)})
    try:
        peft.inject_adapter_in_model(peft_config(section.model_copy(update={"target_modules": names})), lm, ADAPTER)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in lm.named_modules() if _is_inner_linear(lm, m)})
        raise ConfigError(
            f"model.lora.target_modules: {section.target_modules} do not fit {type(lm).__name__}; it has {linear}"
        ) from error


def _is_inner_linear(lm: PreTrainedModel, module: nn.Module) -> bool:
    kinds = (nn.Linear, __import__("transformers").pytorch_utils.Conv1D)
    return isinstance(module, kinds) and module is not lm.get_output_embeddings()


@contextmanager
def adapters_off(lm: nn.Module) -> Iterator[None]:
    """The base model's own outputs for the duration."""
    layers = [module for module in lm.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard (a collective call), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@torch.no_grad()
def merged_tensors(lm: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, full tensor) of every weight, adapters merged into the weights they sit on.

    Tied heads are left out, as in a saved checkpoint. On sharded models every rank must iterate, in step.
    """
    layers = {name: module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in lm.named_parameters():
        if ".lora_" in name:
            continue
        weight = full_tensor(parameter.detach())
        owner, _, leaf = name.rpartition(".base_layer.")
        if owner and leaf == "weight":
            weight = weight + _delta(layers[owner]).to(weight.dtype)
        yield name.replace(".base_layer.", "."), weight


def _delta(layer: LoraLayer) -> Tensor:
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
