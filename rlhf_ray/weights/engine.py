"""vLLM weight-transfer engines with a proof of loading; here the one over Ray's object store.

The object-store transport has no rendezvous: a `Bucket` (zero-copy views of shared memory) arrives in the update info
and goes through vLLM's layerwise reload, which CPU workers need (they prepack linear weights) and GPU workers share.
What an update amounted to is asked for through the worker method `weight_receipt` (`ReceiptExtension`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlhf_ray.weights.bucket import Bucket, unpack
from rlhf_ray.weights.proof import LoadProof

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class Proven:
    """Mixed into an engine: every update runs under a `LoadProof`, whatever its transport.

    `fault` is fault injection, for tests of the proof only: {"skip_tensor": name} loses a tensor before load_weights,
    {"ignore_tensor": name} inside it (consumed, not loaded).
    """

    model: Any
    proof: LoadProof
    fault: Mapping[str, str] = MappingProxyType({})

    def start_weight_update(self) -> None:
        self.proof = LoadProof(self.model)
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model, self.model = self.model, _Watched(self.model, self.proof, self.fault)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        self.proof.close(super().finish_weight_update)  # type: ignore[misc]

    def receipt(self) -> dict[str, Any]:
        """{"digests": name -> digest of what load_weights consumed, "faults": what was not loaded in full}."""
        digests = {name: consumed.digest for name, consumed in self.proof.consumed.items()}
        return {"digests": digests, "faults": list(self.proof.faults)}


@dataclass(frozen=True)
class _Watched:
    """Stands in for the model while an engine receives: all that it may do is load weights, under observation."""

    model: Any
    proof: LoadProof
    fault: Mapping[str, str]

    def load_weights(self, weights: NamedTensors) -> Any:
        received = _without(self.fault.get("skip_tensor"), weights)
        return self.model.load_weights(_without(self.fault.get("ignore_tensor"), self.proof.watch(received)))


def _without(lost: str | None, weights: NamedTensors) -> NamedTensors:
    return weights if lost is None else ((name, tensor) for name, tensor in weights if name != lost)


class ReceiptExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`), so that `collective_rpc` can ask for the receipt."""

    weight_transfer_engine: Proven

    def weight_receipt(self) -> dict[str, Any]:
        return self.weight_transfer_engine.receipt()


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """`fault`: see `Proven`; empty but in tests."""

    fault: dict[str, str] = field(default_factory=dict)


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    bucket: Bucket


class ObjectStoreTransport(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Loads buckets as they come, inside vLLM's layerwise reload."""

    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate
    fault: Mapping[str, str]

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        self.fault = init_info.fault

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        self.model.load_weights(unpack(update_info.bucket))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class ObjectStoreEngine(Proven, ObjectStoreTransport):
    """Backend `rlhf_ray_object_store`."""
