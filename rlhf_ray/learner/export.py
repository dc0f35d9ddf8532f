"""Saving trained networks as ordinary Hugging Face folders that any library loads."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config.common import LoraSection
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.lora import adapter_tensors, is_adapted, merged_tensors, peft_config
from rlhf_ray.models.reward_stats import RewardStats

#: Of a reward model, which is trained beside its adapter and therefore belongs to it.
SCORE_HEAD = "score."


def save_model(
    folder: Path,
    trainable: Trainable,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lora: LoraSection | None = None,
    stats: RewardStats | None = None,
) -> None:
    """Write `model` (adapters merged) with its tokenizer; with `lora` also the adapter alone, under `adapter/`.

    Gathering shards is a collective call: every rank calls this, rank 0 writes.
    """
    trainable.reshard()
    first = trainable.group.rank == 0
    weights = {name: tensor.cpu().contiguous() for name, tensor in merged_tensors(model) if first}
    adapter = adapter_tensors(model) if lora is not None else {}
    if not first:
        return
    adapter |= {f"base_model.model.{name}": weights[name] for name in weights if name.startswith(SCORE_HEAD)}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    if lora is not None:
        _save_adapter(folder / "adapter", adapter, lora, model)
    if stats is not None:
        stats.save(folder)


def _save_adapter(folder: Path, adapter: dict[str, torch.Tensor], lora: LoraSection, model: PreTrainedModel) -> None:
    """The adapter in peft's own format; a reward model's with its score head."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in adapter.items()}, folder / "adapter_model.safetensors"
    )
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter if ".lora_" in name})
    config = peft_config(lora.model_copy(update={"target_modules": targets}))
    if hasattr(model, "score"):
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    config.base_model_name_or_path = model.config.name_or_path
    config.fan_in_fan_out = any(getattr(m, "fan_in_fan_out", False) for m in model.modules() if is_adapted(m))
    config.inference_mode = True
    config.save_pretrained(str(folder))
