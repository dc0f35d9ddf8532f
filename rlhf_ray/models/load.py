"""Loading Hugging Face models from a hub name or a folder, with one clear error for each way it can fail."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ray.config.common import Dtype, ModelSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import explain_hub_error


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
    """The causal language model of `section`, in `dtype`, on the CPU (sharding moves it)."""
    return _load(
        AutoModelForCausalLM,
        section.name,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        attn_implementation=section.attn_implementation,
        dtype=dtype,
    )


def load_scalar_lm(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """A causal backbone with a one-number `score` head: a saved reward model, or a language model with a new head."""
    model = _load(AutoModelForSequenceClassification, name, num_labels=1, dtype=dtype, **options)
    if not hasattr(model, "score"):
        raise ConfigError(
            f"{name}: {type(model).__name__} has no per-token `score` head, so it cannot be a critic or reward model. "
            "Use a decoder (causal) architecture such as Llama, Qwen, Mistral or GPT-2."
        )
    return model


def _load(factory: Any, name: str, **options: Any) -> PreTrainedModel:
    try:
        model: PreTrainedModel = factory.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        raise explain_hub_error(name, error) from error
    return model
