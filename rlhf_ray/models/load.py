"""Loading Hugging Face models from a hub name or a folder, with one clear error for each way it can fail."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf_ray.config.common import Dtype, ModelSection, Quantization
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import explain_hub_error
from rlhf_ray.models.heads import WIDTH_KEY, head_width, scalar_model_factory
from rlhf_ray.models.quantized import make_exact, quantization_config


def default_device() -> torch.device:
    """The accelerator of this process where there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def resolve_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """The torch dtype of a configured name; `auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load_causal_lm(section: ModelSection, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of `section`, in `dtype`, on the CPU (sharding moves it) or where it was quantised."""
    return _load(
        AutoModelForCausalLM,
        section.name,
        dtype,
        section.quantization,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        attn_implementation=section.attn_implementation,
    )


def load_scalar_lm(
    name: str,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    head_hidden: int | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A causal backbone with a one-number `score` head: a saved reward model, or a language model with a new head.

    A new head has a hidden layer of `head_hidden` neurons, where given; a saved one is as it is.
    """
    config = _scalar_config(name, head_hidden, options)
    model = _load(scalar_model_factory(config), name, dtype, quantization, config=config, **options)
    if not hasattr(model, "score"):
        raise ConfigError(
            f"{name}: {type(model).__name__} has no per-token `score` head, so it cannot be a critic or reward model. "
            "Use a decoder (causal) architecture such as Llama, Qwen, Mistral or GPT-2."
        )
    return model


def is_scalar(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration was saved with a trained score head."""
    return any("SequenceClassification" in architecture for architecture in config.architectures or [])


def _scalar_config(name: str, head_hidden: int | None, options: Mapping[str, Any]) -> PretrainedConfig:
    source = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    try:
        config = AutoConfig.from_pretrained(name, num_labels=1, **source)
    except (OSError, ValueError, ImportError) as error:
        raise explain_hub_error(name, error) from error
    if head_hidden is None:
        return config
    if is_scalar(config) and head_width(config) != head_hidden:
        raise ConfigError(
            f"reward.head_hidden: {head_hidden}, but {name} is a reward model whose head has "
            f"{head_width(config) or 'no'} hidden neurons; leave the key out, or start from a language model"
        )
    setattr(config, WIDTH_KEY, head_hidden)
    return config


def _load(
    factory: Any, name: str, dtype: torch.dtype, quantization: Quantization | None, **options: Any
) -> PreTrainedModel:
    """Quantised weights are those of the float32 model, so that they do not depend on `dtype`."""
    if quantization is not None:
        head = None if factory is AutoModelForCausalLM else ["score"]
        options["quantization_config"] = quantization_config(quantization, head)
    try:
        model: PreTrainedModel = factory.from_pretrained(
            name, dtype=dtype if quantization is None else torch.float32, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise explain_hub_error(name, error) from error
    if quantization is not None:
        make_exact(model, dtype)
    elif getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError(
            f"{name} is stored in quantised form, which neither trains nor syncs. Give the model it was made from, "
            "with model.quantization=4bit or 8bit and model.lora."
        )
    return model
