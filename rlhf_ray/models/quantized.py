"""Frozen base weights in 4 or 8 bits under trainable adapters (QLoRA; Dettmers et al. 2023), through bitsandbytes.

transformers quantises while it loads. The layers then compute with exactly the weights that `dequantized` returns, in
the dtype of their input: so adapters merged into those weights are the model that was trained, and a generator that
loads them agrees with the learner. bitsandbytes' own forward passes do not promise that: LLM.int8 rounds activations
too, and on a CPU with AVX512-BF16 the 4-bit layers repack their weights and compute in bfloat16 in evaluation.
"""

from copy import copy
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_ray.config.common import Quantization
from rlhf_ray.errors import ConfigError


def quantization_config(kind: Quantization, head: list[str] | None = None) -> BitsAndBytesConfig:
    """How transformers shall load: NormalFloat with quantised constants, or int8 with one scale per row.

    All linear layers but those of `head`; default: the output embeddings. Raises ConfigError without the libraries.
    """
    if missing := [name for name in ("accelerate", "bitsandbytes") if find_spec(name) is None]:
        raise ConfigError(
            f"model.quantization: {kind} needs {' and '.join(missing)}; pip install 'rlhf-ray[qlora]', or set "
            "model.quantization=null"
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=head)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=head
    )


def make_exact(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a model that transformers has just quantised exact, in place, and `dtype` what of it is not quantised.

    peft still finds bitsandbytes' layers, and adapts them as such; saving sees an ordinary model.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            module.__class__ = type(f"Exact{type(module).__name__}", (ExactLinear, type(module)), {})
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.hf_quantizer = None
    del model.config.quantization_config


class ExactLinear:
    """Mixed into a quantised linear layer: it computes with its dequantised weight."""

    weight: Any  # Params4bit, uint8 [bytes, 1], or Int8Params, [out, in]
    bias: nn.Parameter | None
    source_cls: type[nn.Module]  # the class of the layer that this one replaced

    def full_weight(self, dtype: torch.dtype) -> Tensor:
        """[out, in]"""
        from bitsandbytes import functional

        state = getattr(self.weight, "quant_state", None)
        if state is None:
            full: Tensor = functional.int8_vectorwise_dequant(self.weight.data, self.weight.SCB)
            return full.to(dtype)
        # As one row: 0.50.2's CPU kernel scales wrongly where rows are no whole number of blocks.
        row = copy(state)
        row.shape = torch.Size((1, state.shape.numel()))
        full = functional.dequantize_4bit(self.weight.data, row)
        return full.view(state.shape).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Linear.apply(x, self)
        return result


class _Linear(torch.autograd.Function):
    """x W^T + b for a frozen layer; its full weight lives during a pass only, and is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ExactLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return nn.functional.linear(x, layer.full_weight(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.full_weight(grad.dtype), None


def dequantized(layer: ExactLinear) -> Tensor:
    """The float32 weight that a quantised layer computes with, [out, in]."""
    return layer.full_weight(torch.float32)


def in_checkpoint_layout(layer: ExactLinear, weight: Tensor) -> Tensor:
    """[out, in] to the layout in which the layer's family stores it: GPT-2's layers are [in, out]."""
    return weight.t() if issubclass(layer.source_cls, Conv1D) else weight


def quantized_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The quantised weights: packed bytes, which no sharding may cut or cast."""
    return {layer.weight for layer in network.modules() if isinstance(layer, ExactLinear)}


def weight_count(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for; 4-bit ones are packed two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
