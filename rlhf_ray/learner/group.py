"""The process group of the learner ranks, and global sums over it."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class LearnerGroup:
    """Rank `rank` of `size` learner processes: gloo on CPU, NCCL on GPUs. Size 1 takes the same path."""

    def __init__(self, rank: int, size: int, address: str, device: torch.device, timeout_s: float) -> None:
        self.rank, self.size, self.device = rank, size, device
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
        )
        self.mesh: DeviceMesh = init_device_mesh(device.type, (size,))

    def reduce(self, values: dict[str, float], maximum: bool = False) -> dict[str, float]:
        """Sum (or maximum) of each value over the ranks; every rank must pass the same keys in the same order."""
        if self.size == 1 or not values:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(packed, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
        return dict(zip(values, packed.tolist(), strict=True))

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class Sums:
    """Sums and maxima gathered over micro-batches on one rank, then over the ranks in one call."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._maxima: dict[str, float] = {}

    def add(self, **values: torch.Tensor | float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def largest(self, **values: torch.Tensor | float) -> None:
        for name, value in values.items():
            self._maxima[name] = max(self._maxima.get(name, float("-inf")), float(value))

    def over(self, group: LearnerGroup) -> dict[str, float]:
        """The global sums and maxima; all ranks must have added the same names."""
        sums = group.reduce({name: self._sums[name] for name in sorted(self._sums)})
        maxima = group.reduce({name: self._maxima[name] for name in sorted(self._maxima)}, maximum=True)
        return sums | maxima
