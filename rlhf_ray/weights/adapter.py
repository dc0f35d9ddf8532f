"""Adapter-only syncs: the engine keeps the base weights and takes LoRA's A and B, as one of vLLM's own adapters.

Every version is a new adapter for vLLM, made of tensors in memory: nothing goes through files, and a request that names
a version which is not there fails. Proven as full weights are: the digest of every tensor as it was consumed; every
tensor must have found its layer, and every layer both A and B; and what the layers then hold is read back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm import EngineArgs, ModelRegistry
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.models.interfaces import supports_lora

from rlhf_ray.config.common import LoraSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.weights.bucket import unpack
from rlhf_ray.weights.digest import digest, tensor_bytes

#: Ranks that vLLM makes room for; an adapter takes the next larger one.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def adapter_arguments(lora: LoraSection) -> dict[str, Any]:
    """What vLLM's EngineArgs need to serve one adapter of that rank. Raises ConfigError when it is too large."""
    rank = next((rank for rank in RANKS if rank >= lora.r), None)
    if rank is None:
        raise ConfigError(
            f"model.lora.r: vLLM takes adapters up to rank {RANKS[-1]}, not {lora.r}; set sync.lora=merged"
        )
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}


def refuse_unadaptable(arguments: EngineArgs) -> None:
    """Raise ConfigError for an architecture whose adapters vLLM does not serve."""
    model = arguments.create_model_config()
    cls, name = ModelRegistry.resolve_model_cls(model.architectures, model)
    if not supports_lora(cls):
        raise ConfigError(f"sync.lora: adapter, but vLLM does not serve adapters for {name}; set sync.lora=merged")


def adapter_request(number: int) -> LoRARequest:
    """A request's wish to be answered with adapter `number`; it has no path, as it is in memory already."""
    return LoRARequest(f"policy-{number}", number, "in memory")


class AdapterExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`): an update of the adapter, step by step.

    `fault` is fault injection, as in `weights.engine.Proven`.
    """

    model_runner: Any
    _update: "AdapterUpdate"
    _number = 0

    def prepare_adapters(self, r: int, alpha: float, fault: Mapping[str, str]) -> None:
        self._lora, self._fault = PEFTHelper(r=r, lora_alpha=alpha, target_modules=[]), fault

    def start_adapter_update(self) -> None:
        self._number += 1
        self._update = AdapterUpdate(self._number, self._lora, self._fault)

    def load_adapter(self, update_info: dict[str, Any]) -> None:
        for name, tensor in unpack(update_info["bucket"]):
            self._update.take(name, tensor)

    def finish_adapter_update(self) -> None:
        self._update.install(self.model_runner.lora_manager)

    def adapter_receipt(self) -> dict[str, Any]:
        return {"digests": self._update.digests, "faults": list(self._update.faults)}


@dataclass
class AdapterUpdate:
    """One version of the adapter on its way into a worker."""

    number: int
    lora: PEFTHelper
    fault: Mapping[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a copy of one A or B: vLLM scales B in place, and the bucket's memory is shared."""
        if name == self.fault.get("skip_tensor"):
            return
        if name in self.digests:
            self.faults.append(f"{name}: received twice")
        self.digests[name] = digest(tensor_bytes(tensor))
        if name != self.fault.get("ignore_tensor"):
            self.tensors[name] = tensor.clone()

    def install(self, worker_manager: Any) -> None:
        """Replace the worker's adapter by this one, and read it back; nothing is replaced where tensors are missing."""
        manager = worker_manager._adapter_manager
        mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        places = {name: parse_fine_tuned_lora_name(name, mapper) for name in self.tensors}
        layers = dict(_adaptable(manager))
        self.faults += [f"{name}: the engine has no such layer to adapt" for name in _lost(places, layers)]
        self.faults += [f"{module}: only one of A and B was loaded" for module in _halves(places)]
        self.faults += [f"{name}: consumed, but not loaded" for name in self.digests if name not in self.tensors]
        if self.faults:
            return
        adapter = LoRAModel.from_lora_tensors(
            self.number,
            {name: tensor.clone() for name, tensor in self.tensors.items()},
            self.lora,
            device="cpu",
            dtype=worker_manager.lora_config.lora_dtype,
            weights_mapper=mapper,
        )
        for old in list(manager.list_adapters()):
            manager.remove_adapter(old)
        manager.add_adapter(adapter)
        manager.activate_adapter(self.number)
        slot = manager.lora_index_to_id.index(self.number)
        for name, (module, is_a) in places.items():
            layer, part = layers[module]
            if layer.tp_size == 1 and not self._holds(layer, part, slot, self.tensors[name], is_a):
                self.faults.append(f"{name}: the engine holds other values than it received")
        self.tensors.clear()

    def _holds(self, layer: Any, part: int, slot: int, sent: torch.Tensor, is_a: bool) -> bool:
        """Whether a layer's part computes with `sent`: A as it is, B with the scaling in it."""
        held = (layer.lora_a_stacked if is_a else layer.lora_b_stacked)[part][slot, 0]
        expected = torch.zeros_like(held, device="cpu")
        scaled = sent if is_a else sent * (self.lora.lora_alpha / self.lora.r)
        expected[: sent.shape[0], : sent.shape[1]] = scaled
        return torch.equal(held.cpu(), expected)


def _adaptable(manager: Any) -> Iterator[tuple[str, tuple[Any, int]]]:
    """(module's name in the model, (vLLM's layer, its part)): q, k and v are parts 0, 1 and 2 of one layer."""
    for name, layer in manager.modules.items():
        for part, module in enumerate(manager.packed_modules.get(name, [name])):
            yield module, (layer, part)


def _lost(places: Mapping[str, tuple[str, bool]], layers: Mapping[str, Any]) -> list[str]:
    return [name for name, (module, _) in places.items() if module not in layers]


def _halves(places: Mapping[str, tuple[str, bool]]) -> list[str]:
    sides: dict[str, set[bool]] = {}
    for module, is_a in places.values():
        sides.setdefault(module, set()).add(is_a)
    return [module for module, found in sides.items() if len(found) == 1]
