"""A copy of a rank's state in host memory: training goes on while it is written."""

from dataclasses import replace

import torch
from torch import Tensor

from rlhf_ray.learner.shards import Shard


class HostCopy:
    """Holds one copy of a `Shard`, in buffers that the next one takes over: only the first has to find memory.

    That memory is as large as the rank's weights and optimiser state. Copies from a GPU go into pinned buffers.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, shard: Shard) -> Shard:
        """`shard` as it is now; valid until the next call."""
        self._buffers = {key: self._copy(key, tensor) for key, tensor in shard.tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return replace(shard, tensors=self._buffers)

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return buffer.copy_(tensor, non_blocking=True)
