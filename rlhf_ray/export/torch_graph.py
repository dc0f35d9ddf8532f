"""torch's own graphs: a torch.export program, and a TorchScript trace for as long as torch keeps it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.errors import ConfigError
from rlhf_ray.export.formats import FLOAT32_TOLERANCE, Format, Loaded
from rlhf_ray.export.graph import GraphModule, example
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Outputs, graph_outputs


class TorchExport(Format):
    """`model.pt2`: `torch.export.load(path).module()(input_ids, attention_mask)`."""

    runtime = ("torch",)
    tolerance = FLOAT32_TOLERANCE

    def write(self, loaded: Loaded, folder: Path) -> None:
        torch.export.save(loaded.program, folder / "model.pt2")
        loaded.describe(folder)

    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        return graph_outputs(torch.export.load(folder / "model.pt2").module(), source.kind, sequences)


class TorchScript(Format):
    """`model.pt`: `torch.jit.load(path)(input_ids, attention_mask)`."""

    runtime = ("torch",)
    tolerance = FLOAT32_TOLERANCE

    def check(self, source: Source) -> None:
        super().check(source)
        if not hasattr(torch.jit, "trace"):
            raise ConfigError(f"torch {torch.__version__} has no TorchScript any more; export torch-export instead.")

    def write(self, loaded: Loaded, folder: Path) -> None:
        module = GraphModule(loaded.model, loaded.source.kind).eval()
        with torch.no_grad():
            torch.jit.trace(module, example(), check_trace=False).save(str(folder / "model.pt"))
        loaded.describe(folder)

    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        return graph_outputs(torch.jit.load(str(folder / "model.pt")), source.kind, sequences)
