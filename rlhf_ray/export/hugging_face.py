"""The Hugging Face forms: a model folder with merged, sharded safetensors, and a PEFT adapter."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from rlhf_ray.errors import ConfigError
from rlhf_ray.export.formats import FLOAT32_TOLERANCE, Format, Loaded
from rlhf_ray.export.source import Source, load, load_adapted
from rlhf_ray.export.verify import Outputs, model_outputs
from rlhf_ray.models.heads import head_width
from rlhf_ray.models.reward_stats import RewardStats


class Safetensors(Format):
    """The whole model in the dtype that it was saved in; bit for bit the source."""

    runtime = ("transformers",)
    tolerance = 0.0

    def write(self, loaded: Loaded, folder: Path) -> None:
        dtype = loaded.source.stored_dtype()
        model = loaded.model if loaded.model.dtype == dtype else loaded.source.load(dtype)
        model.save_pretrained(folder, max_shard_size=loaded.max_shard_size)
        loaded.tokenizer.save_pretrained(folder)
        _keep_scale(loaded.source, folder)

    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        return model_outputs(load(str(folder), source.kind), source.kind, sequences)


class Adapter(Format):
    """The LoRA adapter as the learner saved it; a reward model's with its score head.

    Merged by peft it gives the source's own weights: exactly where the learner merged on a CPU, while a GPU's matrix
    product rounds the last bit differently. On a quantised base it stays unmerged, which adds in another order.
    """

    runtime = ("peft",)
    tolerance = FLOAT32_TOLERANCE

    def check(self, source: Source) -> None:
        super().check(source)
        if source.adapter is None:
            raise ConfigError(
                f"{source.given}: there is no adapter (all weights were trained, or it was not kept); export "
                "safetensors instead."
            )
        if not source.is_adapter and head_width(AutoConfig.from_pretrained(source.model)) is not None:
            raise ConfigError(
                f"{source.given}: its score head has a hidden layer (reward.head_hidden), which peft cannot put on the "
                "base; export safetensors instead."
            )

    def write(self, loaded: Loaded, folder: Path) -> None:
        assert loaded.source.adapter is not None
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(loaded.source.adapter / name, folder)
        loaded.tokenizer.save_pretrained(folder)
        _keep_scale(loaded.source, folder)

    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        model = load_adapted(folder, source.kind, source.trust_remote_code, quantization=source.quantization)
        return model_outputs(model, source.kind, sequences)


def _keep_scale(source: Source, folder: Path) -> None:
    """A reward model's mean and std, which PPO and our scorers look for beside it."""
    if (stats := RewardStats.load(source.model)) is not None:
        stats.save(folder)
