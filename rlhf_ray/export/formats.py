"""What a format is: it writes a folder from a loaded source, and answers from that folder by its own runtime."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch.export import ExportedProgram
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.errors import ConfigError
from rlhf_ray.export import FORMATS
from rlhf_ray.export.graph import capture
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Outputs
from rlhf_ray.importing import nearest

#: Of log-probs and scores that are computed in float32, but added up in another order than the source's.
FLOAT32_TOLERANCE = 1e-4

#: Format -> where its class is.
_CLASSES = {
    "safetensors": "hugging_face:Safetensors",
    "adapter": "hugging_face:Adapter",
    "onnx": "onnx_graph:Onnx",
    "onnx-int8": "onnx_graph:OnnxInt8",
    "torch-export": "torch_graph:TorchExport",
    "torchscript": "torch_graph:TorchScript",
}
TENSORRT = "tensorrt is built from ONNX on the GPU that will run it: export onnx, then see docs/export.md"


class Loaded:
    """The source in memory while formats are written: its float32 model, and one captured program for all graphs."""

    def __init__(self, source: Source, max_shard_size: str) -> None:
        self.source, self.max_shard_size = source, max_shard_size
        self.model: PreTrainedModel = source.load()
        self.tokenizer: PreTrainedTokenizerBase = source.tokenizer()

    @cached_property
    def program(self) -> ExportedProgram:
        return capture(self.model, self.source.kind)

    def describe(self, folder: Path) -> None:
        """Tokenizer and configuration, for whoever feeds a graph."""
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)


class Format(ABC):
    """One form of a model. `tolerance` bounds the largest gap to the source; None: the gap is reported only."""

    runtime: ClassVar[tuple[str, ...]]  # packages that load it back
    packages: ClassVar[tuple[str, ...]] = ()  # beyond the project's own, to write and to verify
    tolerance: ClassVar[float | None]

    def check(self, source: Source) -> None:
        """Raise ConfigError where this source cannot have this form. Nothing is loaded yet."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ConfigError(f"this format needs {', '.join(missing)}: pip install 'rlhf-ray[export]'")

    @abstractmethod
    def write(self, loaded: Loaded, folder: Path) -> None:
        """Write the form into `folder`, which exists and is empty."""

    @abstractmethod
    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        """What the form in `folder`, loaded back, answers for `sequences`."""


def make_formats(names: Sequence[str]) -> dict[str, Format]:
    """The formats of these names, in their order. Raises ConfigError for an unknown one."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        hint = f" ({TENSORRT})" if "tensorrt" in unknown else nearest(unknown[0], FORMATS)
        raise ConfigError(f"unknown format {', '.join(unknown)}; there are {', '.join(FORMATS)}.{hint}")
    made = {}
    for name in names:
        module, _, kind = _CLASSES[name].partition(":")
        made[name] = getattr(importlib.import_module(f"rlhf_ray.export.{module}"), kind)()
    return made
