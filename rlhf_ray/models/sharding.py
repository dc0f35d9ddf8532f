"""FSDP2 around a network: the same call on one CPU rank and on many GPUs."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rlhf_ray.models.quantized import quantized_parameters


def decoder_layers(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the members of its longest module list."""
    lists = [list(module) for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def shard(network: nn.Module, mesh: DeviceMesh, dtype: torch.dtype) -> nn.Module:
    """Shard `network` over `mesh` in place: float32 weights and reductions, compute in `dtype`.

    Every decoder layer is a unit of its own, so that its neighbours' weights can be gathered while it computes. On one
    rank there is nothing to gather, and one unit saves the per-layer hooks. Quantised weights stay whole on every rank.
    """
    whole = quantized_parameters(network)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if mesh.size() > 1:
        for layer in decoder_layers(network):
            fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=whole)
    reshard = mesh.size() > 1
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=whole)
    return network
