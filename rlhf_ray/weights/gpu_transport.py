"""Weights over NCCL or CUDA IPC, through vLLM's own trainer-side engines, with the same receipts as the object store.

Runs inside the learner's rank processes: vLLM's engine broadcasts (NCCL) or exports handles (CUDA IPC), and drives
the generators' update through the client below. The generators' side is `gpu_engine`. Checked against the interfaces
of vLLM 0.32 by type and by reading; not run, for want of a GPU: the first run on one should be the integration tests
with this transport.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rlhf_ray.weights.bucket import SentReceipt
from rlhf_ray.weights.digest import digest, tensor_bytes

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class ReceiptSource(WeightSource):
    """The learner's weights in the wire dtype, noting what was sent. Iterating gathers: all ranks do it together."""

    def __init__(self, named_tensors: Callable[[], NamedTensors], dtype: torch.dtype) -> None:
        self._named_tensors = named_tensors
        self._dtype = dtype
        self._metadata: list[ParamMeta] | None = None
        self.digests: dict[str, str] = {}
        self.nbytes = 0

    def metadata(self) -> list[ParamMeta]:
        if self._metadata is None:
            self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._wire()]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests, self.nbytes = {}, 0
        for name, tensor in self._wire():
            self.digests[name] = digest(tensor_bytes(tensor))
            self.nbytes += tensor.nbytes
            yield name, tensor

    def _wire(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._named_tensors():
            yield name, (tensor.to(self._dtype) if tensor.is_floating_point() else tensor).contiguous()


class GeneratorClient:
    """vLLM's `VLLMWeightSyncClient` over our generator actors, for the update that `announce` names."""

    def __init__(self, generators: Sequence[ActorHandle], workers_each: int, timeout_s: float) -> None:
        self._generators = list(generators)
        self._workers_each = workers_each
        self._timeout_s = timeout_s
        self._announced = (0, 0)
        self.receipts: list[dict[str, Any]] = []

    def announce(self, version: int, attempt: int) -> None:
        self._announced = (version, attempt)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every replica opens the transport; in the NCCL group its workers stand behind those of the one before."""
        infos = [dict(init_info) for _ in self._generators]
        for replica, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += replica * self._workers_each
        calls = [g.init_transfer.remote(info) for g, info in zip(self._generators, infos, strict=True)]
        ray.get(calls, timeout=self._timeout_s)

    def start_weight_update(self) -> None:
        self._all("begin_update", *self._announced)

    def update_weights(self, update_info: Any) -> None:
        self._all("load_update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.receipts = self._all("finish_update")

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return ray.get([getattr(g, method).remote(*arguments) for g in self._generators], timeout=self._timeout_s)


class GPUPublisher:
    """One learner rank's side of a GPU transport: construct and `publish` on every rank, together.

    Args:
        transport: "nccl" or "ipc".
        dtype: torch dtype name on the wire, the engine's.
        address: host:port on rank 0's node, free, where an NCCL group meets.
        tensor_parallel_size: workers of each generator.
        rank: of this learner process.
        named_tensors: the full weights, anew at each call; iterating gathers them on all ranks together.
    """

    def __init__(
        self,
        transport: str,
        dtype: str,
        generators: Sequence[ActorHandle],
        address: str,
        tensor_parallel_size: int,
        timeout_s: float,
        *,
        rank: int,
        named_tensors: Callable[[], NamedTensors],
    ) -> None:
        self._source = ReceiptSource(named_tensors, getattr(torch, dtype))
        self._client = GeneratorClient(generators, tensor_parallel_size, timeout_s)
        host, port = address.rsplit(":", 1)
        info = (
            NCCLTrainerInitInfo(host, int(port), 1 + len(generators) * tensor_parallel_size, rank=rank)
            if transport == "nccl"
            else IPCTrainerInitInfo(packed=True, rank=rank)
        )
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)

    def publish(self, version: int, attempt: int) -> tuple[SentReceipt, list[dict[str, Any]]]:
        """Send the weights; (what was sent, each generator's receipt; none on ranks other than 0)."""
        self._client.announce(version, attempt)
        self._engine.send_weights()
        return SentReceipt(version, attempt, self._source.digests, self._source.nbytes), self._client.receipts
