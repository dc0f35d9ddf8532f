"""Learner state on disk: one safetensors file of local shards per rank, JSON for the rest, nothing pickled.

A checkpoint written by any number of ranks is read by any other: each rank copies the rows it owns out of the files
that hold them. Frozen weights (under LoRA) are not stored; they come from the model's own folder. Random states are
torch's: the learner draws from no other global generator. They are restored on as many ranks as wrote them.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray import faults
from rlhf_ray.errors import DataError
from rlhf_ray.files import FileDigest, disk_errors, sync
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.optimizers import moments, optimizer_steps, ready_moments
from rlhf_ray.learner.trainable import Trainable

RANDOM_STATE, CUDA_RANDOM_STATE = "random_state", "random_state/cuda"


@dataclass(frozen=True)
class Shard:
    """All that one rank has to save."""

    rank: int
    tensors: dict[str, Tensor]  # this rank's rows, where training has them
    description: dict[str, Any]  # JSON values

    @classmethod
    def of(cls, trainables: dict[str, Trainable], group: LearnerGroup) -> "Shard":
        """The state of this rank, not copied."""
        tensors: dict[str, Tensor] = {RANDOM_STATE: torch.get_rng_state()}
        if group.device.type == "cuda":
            tensors[CUDA_RANDOM_STATE] = torch.cuda.get_rng_state(group.device)
        offsets: dict[str, int] = {}
        for key, tensor in _tensors(trainables, group.rank):
            tensors[key], offsets[key] = _local(tensor, group)
        scalars = {
            name: {**t.state_dict(), "optimizer": t.section.optimizer, "optimizer_steps": _optimizer_steps(t)}
            for name, t in trainables.items()
        }
        return cls(group.rank, tensors, {"offsets": offsets, "trainables": scalars, "ranks": group.size})

    def save(self, folder: Path) -> dict[str, FileDigest]:
        """Write both files of this rank into `folder`; their digests once they are on disk, by name.

        Raises:
            DiskFull: there is no room for them.
        """
        tensors, description = (folder / f"rank-{self.rank:05d}{suffix}" for suffix in (".safetensors", ".json"))
        with disk_errors(f"the state of learner rank {self.rank}", folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file({key: tensor.cpu().contiguous() for key, tensor in self.tensors.items()}, tensors)
            description.write_text(json.dumps(self.description), encoding="utf-8")
            for path in (tensors, description):
                sync(path)
            faults.reach("save")
            return {path.name: FileDigest.of(path) for path in (tensors, description)}


def load_rank(folder: Path, trainables: dict[str, Trainable], group: LearnerGroup) -> None:
    """Restore what `Shard.save` wrote, on any number of ranks. DataError when it is of other networks or incomplete."""
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
        trainable.load_state_dict(stored[name])
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
            _set_random_state(files[group.rank][0], group)


def _set_random_state(file: Any, group: LearnerGroup) -> None:
    torch.set_rng_state(file.get_tensor(RANDOM_STATE))
    if group.device.type == "cuda" and CUDA_RANDOM_STATE in file.keys():  # noqa: SIM118 (no dict)
        torch.cuda.set_rng_state(file.get_tensor(CUDA_RANDOM_STATE), group.device)


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
