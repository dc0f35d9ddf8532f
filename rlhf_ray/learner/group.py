"""The process group of the learner ranks, and global sums over it."""

import socket
from datetime import timedelta
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


class LearnerGroup:
    """Rank `rank` of `size` learner processes: gloo on CPU, NCCL on GPUs. Size 1 takes the same path.

    They meet at `address`, host:port on rank 0's node. Rank 0 may bring the `listener` that is bound to it: a port that
    was only found free may be another's by now.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        address: str,
        device: torch.device,
        timeout_s: float,
        listener: socket.socket | None = None,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        timeout, (host, _, port) = timedelta(seconds=timeout_s), address.rpartition(":")
        descriptor = listener.detach() if listener is not None else None
        store = dist.TCPStore(host, int(port), size, rank == 0, timeout, master_listen_fd=descriptor)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        self.mesh: DeviceMesh = init_device_mesh(device.type, (size,))

    def reduce(self, values: dict[str, float], maximum: bool = False) -> dict[str, float]:
        """Sum (or maximum) of each value over the ranks; every rank must pass the same keys in the same order."""
        if self.size == 1 or not values:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(packed, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
        return dict(zip(values, packed.tolist(), strict=True))

    def sum_arrays(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum of the ranks' arrays, all of one shape and dtype."""
        if self.size == 1:
            return values
        total = torch.from_numpy(values).to(self.device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks of a tensor of one shape on all of them; a new tensor on the same device."""
        summed = values.to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(summed)
        return summed.to(values.device)

    def share(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. Pickled: for what is rare, not for bulk."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast(list[T], values)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class Sums:
    """Sums and maxima gathered over micro-batches on one rank, then over the ranks in one call.

    Values stay on their device until `over`: reading each at once would make a GPU wait for it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._maxima: dict[str, list[torch.Tensor]] = {}

    def add(self, **values: torch.Tensor) -> None:
        """Add 0-d tensors to the sums of their names."""
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value.detach())

    def largest(self, **values: torch.Tensor) -> None:
        """Take 0-d tensors into the maxima of their names."""
        for name, value in values.items():
            self._maxima.setdefault(name, []).append(value.detach())

    def over(self, group: LearnerGroup) -> dict[str, float]:
        """The global sums and maxima; all ranks must have added the same names."""
        sums = {name: torch.stack(self._sums[name]).double().sum() for name in sorted(self._sums)}
        maxima = {name: torch.stack(self._maxima[name]).double().amax() for name in sorted(self._maxima)}
        return group.reduce(_read(sums)) | group.reduce(_read(maxima), maximum=True)


def _read(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}
