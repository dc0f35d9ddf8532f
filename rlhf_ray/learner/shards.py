"""Learner state on disk: one safetensors file of local shards per rank, JSON for the rest, nothing pickled.

A checkpoint written by any number of ranks is read by any other: each rank copies the rows it owns out of the files
that hold them. Frozen weights (under LoRA) are not stored; they come from the model's own folder.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.errors import DataError
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.optimizers import moments, optimizer_steps, ready_moments
from rlhf_ray.learner.trainable import Trainable


def save_rank(folder: Path, trainables: dict[str, Trainable], group: LearnerGroup) -> None:
    """Write this rank's shards and its random state into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {"random_state": torch.get_rng_state()}
    offsets: dict[str, int] = {}
    for key, tensor in _tensors(trainables, group.rank):
        local, start = _local(tensor, group)
        tensors[key], offsets[key] = local.cpu().contiguous(), start
    scalars = {
        name: {
            "steps": t.steps,
            "loss_scale": t.loss_scale,
            "optimizer": t.section.optimizer,
            "optimizer_steps": _optimizer_steps(t),
        }
        for name, t in trainables.items()
    }
    stem = folder / f"rank-{group.rank:05d}"
    save_file(tensors, f"{stem}.safetensors")
    stem.with_suffix(".json").write_text(json.dumps({"offsets": offsets, "trainables": scalars, "ranks": group.size}))


def load_rank(folder: Path, trainables: dict[str, Trainable], group: LearnerGroup) -> None:
    """Restore what `save_rank` wrote, on any number of ranks. DataError when it is of other networks or incomplete."""
    descriptions = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if not descriptions or len(descriptions) != descriptions[0]["ranks"]:
        raise DataError(f"{folder} holds {len(descriptions)} learner shards (rank-*.json); use another checkpoint")
    stored = descriptions[0]["trainables"]
    if stored.keys() != trainables.keys():
        raise DataError(
            f"{folder} was written by a learner of {sorted(stored)}, this one has {sorted(trainables)}: resume with "
            "the critic.kind of the run that wrote it"
        )
    for name, trainable in trainables.items():
        _check_optimizer(folder, trainable, stored[name].get("optimizer", "adamw"), len(descriptions), group)
        trainable.steps, trainable.loss_scale = stored[name]["steps"], stored[name]["loss_scale"]
        _ready_optimizer(trainable, stored[name]["optimizer_steps"])
        trainable.reshard()
    with ExitStack() as stack:
        files = [
            (stack.enter_context(safe_open(folder / f"rank-{rank:05d}.safetensors", "pt")), description["offsets"])
            for rank, description in enumerate(descriptions)
        ]
        for key, tensor in _tensors(trainables, group.rank):
            local, start = _local(tensor, group)
            filled = sum(_copy_rows(local, start, file, key, offsets) for file, offsets in files)
            if filled != local.shape[0]:
                raise DataError(
                    f"{folder}: {key} has {filled} of the {local.shape[0]} rows that rank {group.rank} needs; the "
                    "checkpoint is of another model, or torn"
                )
        if len(files) == group.size:
            torch.set_rng_state(files[group.rank][0].get_tensor("random_state"))


def _check_optimizer(folder: Path, trainable: Trainable, stored: str, ranks: int, group: LearnerGroup) -> None:
    """Another optimiser's moments mean something else, and 8-bit ones are blocks of one rank's rows."""
    wanted = trainable.section.optimizer
    if stored != wanted:
        raise DataError(f"{folder} was written by learner.optimizer={stored}, not {wanted}: resume with {stored}")
    if wanted == "adamw_8bit" and ranks != group.size:
        raise DataError(
            f"{folder} holds 8-bit moments in the blocks of {ranks} learner ranks, not {group.size}: resume with "
            f"learner.ranks={ranks}"
        )


def _tensors(trainables: dict[str, Trainable], rank: int) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of all that is stored; what belongs to this rank alone has its number in the key."""
    for owner, trainable in trainables.items():
        for name, parameter in trainable.parameters.items():
            yield f"{owner}/weight/{name}", parameter
            for moment, tensor in moments(trainable.optimizer, trainable.section.optimizer, parameter):
                own = "" if hasattr(tensor, "to_local") else f"@{rank}"
                yield f"{owner}/{moment}/{name}{own}", tensor


def _local(tensor: Any, group: LearnerGroup) -> tuple[Tensor, int]:
    """This rank's rows of a tensor sharded over dimension 0 (torch.chunk's sizes), and where they start."""
    if not hasattr(tensor, "to_local"):
        return tensor.detach(), 0
    rows = -(-tensor.shape[0] // group.size)
    return tensor.to_local().detach(), min(group.rank * rows, tensor.shape[0])


def _copy_rows(local: Tensor, start: int, file: Any, key: str, offsets: dict[str, int]) -> int:
    """Copy the rows of `key` that `file` holds into `local`, whose first row is global row `start`; rows copied."""
    if key not in offsets:
        return 0
    stored, offset = file.get_slice(key), offsets[key]
    first, last = max(start, offset), min(start + local.shape[0], offset + stored.get_shape()[0])
    if last <= first or list(local.shape[1:]) != stored.get_shape()[1:]:
        return 0
    local[first - start : last - start].copy_(stored[first - offset : last - offset])
    return last - first


def _optimizer_steps(trainable: Trainable) -> dict[str, float]:
    """Steps that each parameter has taken; those that took none are not in it."""
    found = {name: optimizer_steps(trainable.optimizer, p) for name, p in trainable.parameters.items()}
    return {name: steps for name, steps in found.items() if steps is not None}


def _ready_optimizer(trainable: Trainable, steps: dict[str, float]) -> None:
    """Give every parameter that has taken steps empty moments, to be filled from the files."""
    trainable.optimizer.state.clear()
    for name, taken in steps.items():
        ready_moments(trainable.optimizer, trainable.section.optimizer, trainable.parameters[name], taken)
