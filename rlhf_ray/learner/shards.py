"""Learner state on disk: one safetensors file of local shards per rank, JSON for the rest, nothing pickled.

A checkpoint written by any number of ranks is read by any other: each rank copies the rows it owns out of the files that hold
them. Frozen weights (under LoRA) are not stored; they come from the model's own folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.errors import DataError
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.trainable import Trainable

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_rank(folder: Path, trainables: dict[str, Trainable], group: LearnerGroup) -> None:
    """Write this rank's shards and its random state into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {"random_state": torch.get_rng_state()}
    offsets: dict[str, int] = {}
    for key, tensor in _tensors(trainables):
        local, start = _local(tensor, group)
        tensors[key], offsets[key] = local.detach().cpu().contiguous(), start
    scalars = {
        name: {"steps": t.steps, "loss_scale": t.loss_scale, "optimizer_steps": _optimizer_steps(t)}
        for name, t in trainables.items()
    }
    stem = folder / f"rank-{group.rank:05d}"
    save_file(tensors, f"{stem}.safetensors")
    stem.with_suffix(".json").write_text(json.dumps({"offsets": offsets, "trainables": scalars, "ranks": group.size}))


def load_rank(folder: Path, trainables: dict[str, Trainable], group: LearnerGroup) -> None:
    """Restore what `save_rank` wrote, on any number of ranks. Raises DataError when a tensor is missing in part or whole."""
    described = [
        (path.with_suffix(".safetensors"), json.loads(path.read_text())) for path in sorted(folder.glob("rank-*.json"))
    ]
    if not described:
        raise DataError(f"{folder} holds no learner shards (rank-*.json)")
    for name, trainable in trainables.items():
        scalars = described[0][1]["trainables"][name]
        trainable.steps, trainable.loss_scale = scalars["steps"], scalars["loss_scale"]
        _ready_optimizer(trainable, scalars["optimizer_steps"])
        trainable.reshard()
    for key, tensor in _tensors(trainables):
        local, start = _local(tensor, group)
        filled = sum(_copy_rows(local, start, path, key, meta["offsets"]) for path, meta in described)
        if filled != local.shape[0]:
            raise DataError(f"{folder}: {key} has {filled} of the {local.shape[0]} rows that rank {group.rank} needs")
    if described[0][1]["ranks"] == group.size:
        with safe_open(described[group.rank][0], "pt") as file:
            torch.set_rng_state(file.get_tensor("random_state"))


def _tensors(trainables: dict[str, Trainable]) -> Iterator[tuple[str, Tensor]]:
    for owner, trainable in trainables.items():
        for name, parameter in trainable.parameters.items():
            yield f"{owner}/weight/{name}", parameter
            state = trainable.optimizer.state.get(parameter, {})
            yield from ((f"{owner}/{moment}/{name}", state[moment]) for moment in MOMENTS if moment in state)


def _local(tensor: Any, group: LearnerGroup) -> tuple[Tensor, int]:
    """This rank's rows of a tensor sharded over dimension 0 (torch.chunk's sizes), and where they start."""
    if not hasattr(tensor, "to_local"):
        return tensor.detach(), 0
    rows = -(-tensor.shape[0] // group.size)
    return tensor.to_local().detach(), min(group.rank * rows, tensor.shape[0])


def _copy_rows(local: Tensor, start: int, path: Path, key: str, offsets: dict[str, int]) -> int:
    """Copy the rows of `key` that `path` holds into `local`, whose first row is global row `start`; rows copied."""
    if key not in offsets:
        return 0
    with safe_open(path, "pt") as file:
        stored = file.get_slice(key)
        first = max(start, offsets[key])
        last = min(start + local.shape[0], offsets[key] + stored.get_shape()[0])
        if last <= first:
            return 0
        local[first - start : last - start].copy_(stored[first - offsets[key] : last - offsets[key]])
    return last - first


def _optimizer_steps(trainable: Trainable) -> float:
    return max((float(state["step"]) for state in trainable.optimizer.state.values()), default=0.0)


def _ready_optimizer(trainable: Trainable, steps: float) -> None:
    """Give every parameter empty moments, to be filled from the files."""
    if not steps:
        return
    for parameter in trainable.parameters.values():
        moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        trainable.optimizer.state[parameter] = {"step": torch.tensor(steps), **moments}
