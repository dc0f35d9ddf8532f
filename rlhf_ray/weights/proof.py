"""Proof that one weight update reached an engine's model in full.

Four observations. Neither a lost tensor nor a stale copy passes them, however small the update was:

1. *Consumed.* The digest of every tensor that `load_weights` pulled from its iterator, taken at that moment.
2. *Complete.* vLLM's layerwise reload counts the elements written into each layer. A layer that is still waiting for
   some when the update ends has not received all of its parameters.
3. *Repacked.* vLLM on CPU computes with prepacked copies of the weights (`cpu_linear`): each must have been rebuilt.
   The copy of a tied output head is not, in vLLM 0.32 (the reload finds nothing to load there): that is done here.
4. *Held.* What the engine keeps as it was sent (embeddings, norms) is read back and its digest compared.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlhf_ray.weights.digest import digest, tensor_bytes


@dataclass
class LoadProof:
    """Observes one update of `model`: construct it before, `watch` what is loaded, `close` it around finalizing.

    `faults` says in words what was wrong; empty means that the engine holds exactly what it consumed.
    """

    model: torch.nn.Module
    consumed: dict[str, "Consumed"] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tied = _tied_layers(self.model)
        self._old_packs = {name: weakref.ref(pack) for name, pack in _packs(self.model)}

    def watch(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass (name, tensor) on to `load_weights`, noting the digest of each as it is consumed."""
        for name, tensor in weights:
            if name in self.consumed:
                self.faults.append(f"{name}: received twice")
            self.consumed[name] = Consumed(digest(tensor_bytes(tensor)), tensor.dtype, tuple(tensor.shape))
            yield name, tensor

    def close(self, finalize: Callable[[], None]) -> None:
        """Check that all layers are complete, run vLLM's `finalize`, repack tied heads, check packs, read back."""
        incomplete = dict(_incomplete_layers(self.model))
        tied = [name for name in incomplete if self._tied.get(name, name) not in incomplete]
        self.faults += [text for name, text in incomplete.items() if name not in tied]
        finalize()
        for name in tied:
            _repack(self.model.get_submodule(name))
        self.faults += [
            f"{name}: computes with a stale copy" for name, pack in _packs(self.model) if self._is_old(name, pack)
        ]
        self.faults += _altered(self.model, self.consumed)

    def _is_old(self, name: str, pack: Callable[..., Any]) -> bool:
        return name in self._old_packs and self._old_packs[name]() is pack


@dataclass(frozen=True)
class Consumed:
    """A tensor as `load_weights` received it."""

    digest: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def _incomplete_layers(model: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """(layer, what is missing) for layers that wait for parameters; to be asked before vLLM finalizes the reload."""
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load():  # complete: vLLM processed it when its last element arrived
            continue
        expected = sum(_loadable_elements(layer, parameter) for parameter in layer.parameters(recurse=False))
        if info.load_numel < expected:
            yield name, f"{name}: {info.load_numel:,} of {expected:,} elements loaded"


def _loadable_elements(layer: torch.nn.Module, parameter: torch.Tensor) -> int:
    """Elements of a parameter that a checkpoint fills: all but padding."""
    if isinstance(layer, VocabParallelEmbedding):
        return parameter.numel() // layer.num_embeddings_per_partition * layer.num_org_embeddings_per_partition
    return getattr(parameter, "weight_loader_numel", parameter.numel())


def _tied_layers(model: torch.nn.Module) -> dict[str, str]:
    """{layer: the earlier layer that owns its parameters}, for layers that own none of theirs (a tied output head)."""
    owner: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, layer in model.named_modules():
        owners = {owner.setdefault(id(parameter), name) for parameter in layer.parameters(recurse=False)}
        if len(owners) == 1 and name not in owners:
            tied[name] = owners.pop()
    return tied


def _packs(model: torch.nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(layer, its product with prepacked weights), on CPU. Plain `linear` reads the live weight, so it is left out."""
    for name, layer in model.named_modules():
        pack = getattr(layer, "cpu_linear", None)
        if pack is not None and pack is not torch.nn.functional.linear:
            yield name, pack


def _repack(layer: torch.nn.Module) -> None:
    """Rebuild what a layer derives from its weight, now that the owner of the weight has loaded it."""
    quant_method: Any = layer.quant_method
    quant_method.process_weights_after_loading(layer)


def _altered(model: torch.nn.Module, consumed: dict[str, Consumed]) -> list[str]:
    """Parameters whose bytes are not those consumed under the same name.

    Linear layers are left out: they may hold a transposed, reordered or sharded layout, and are covered by counts.
    """
    faults = []
    for prefix, layer in model.named_modules():
        if isinstance(layer, LinearBase):
            continue
        for name, parameter in layer.named_parameters(prefix, recurse=False):
            sent = consumed.get(name)
            if sent is None or sent.dtype != parameter.dtype or sent.shape[1:] != tuple(parameter.shape[1:]):
                continue
            rows = sent.shape[0] if sent.shape else None  # the rest is padding of the vocabulary
            if rows is not None and rows > parameter.shape[0]:  # a shard
                continue
            if digest(tensor_bytes(parameter[:rows] if rows else parameter)) != sent.digest:
                faults.append(f"{name}: the engine holds other bytes than it received")
    return faults
