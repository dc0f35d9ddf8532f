"""ONNX by torch's exporter, as it is and with int8 weights by onnxruntime's dynamic quantisation."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.export.formats import FLOAT32_TOLERANCE, Format, Loaded
from rlhf_ray.export.graph import INPUTS, OUTPUT, dynamic_shapes, example
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Graph, Outputs, graph_outputs

FILE = "model.onnx"
#: A protobuf file holds no more than 2 GiB; weights beyond it lie in a file of their own beside it.
PROTOBUF_LIMIT = 2**31 - 2**20


class Onnx(Format):
    """`model.onnx` in float32, above 2 GB with `model.onnx.data`."""

    runtime = ("onnxruntime",)
    packages = ("onnx", "onnxscript", "onnxruntime")
    tolerance: ClassVar[float | None] = FLOAT32_TOLERANCE

    def write(self, loaded: Loaded, folder: Path) -> None:
        write_onnx(loaded, folder / FILE)
        loaded.describe(folder)

    def outputs(self, source: Source, folder: Path, sequences: Sequence[np.ndarray]) -> Outputs:
        return graph_outputs(open_onnx(folder / FILE), source.kind, sequences)


class OnnxInt8(Onnx):
    """Weights of the matrix products as int8, a scale per column; activations as uint8, scaled as they come.

    The gap depends on the model, so it is measured and reported rather than bounded.
    """

    tolerance = None

    def write(self, loaded: Loaded, folder: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            whole = Path(scratch) / FILE
            write_onnx(loaded, whole)
            size = sum(path.stat().st_size for path in whole.parent.iterdir())
            quantize_dynamic(
                whole,
                folder / FILE,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,  # 7 bits: with 8, processors without VNNI saturate and answer otherwise
                weight_type=QuantType.QInt8,
                use_external_data_format=size > PROTOBUF_LIMIT,
            )
        loaded.describe(folder)


def write_onnx(loaded: Loaded, path: Path) -> None:
    """The captured program as an ONNX file."""
    shapes = dynamic_shapes(getattr(loaded.model.config, "max_position_embeddings", None))
    program = torch.onnx.export(
        loaded.program,
        example(),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(INPUTS),
        output_names=[OUTPUT[loaded.source.kind]],
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def open_onnx(path: Path) -> Graph:
    """The file as a function of tensors, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = dict(zip(INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True))
        return torch.from_numpy(session.run(None, inputs)[0])

    return run
