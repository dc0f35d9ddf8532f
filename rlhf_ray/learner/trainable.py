"""A network with its optimiser: backward, clip, judge, step, schedule, loss scaling."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rlhf_ray import faults
from rlhf_ray.algorithms.schedules import learning_rate_factor, warmup_steps
from rlhf_ray.config.common import LearnerSection
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.guards import Origin, UpdateGuard
from rlhf_ray.learner.optimizers import build_optimizer
from rlhf_ray.models.lora import full_tensor
from rlhf_ray.models.sharding import decoder_layers, shard

Pass = TypeVar("Pass")

INITIAL_LOSS_SCALE = 2.0**15
#: Metric: optimiser steps of an iteration that were left out because they were bad; absent where there were none.
BAD_UPDATES = "guards/bad_updates"


@dataclass(frozen=True)
class StepStats:
    """One optimiser step: gradient norm before clipping, learning rate, and whether it was left out."""

    grad_norm: float
    learning_rate: float
    skipped: bool = False  # float16 overflow
    bad: bool = False  # refused by the guard

    def metrics(self) -> dict[str, float]:
        """As a supervised stage reports it."""
        metrics = {"policy/grad_norm": self.grad_norm, "policy/learning_rate": self.learning_rate}
        return metrics | ({BAD_UPDATES: 1.0} if self.bad else {})


class Trainable:
    """One sharded network, its optimiser and its schedule.

    Losses given to `backward` are already divided by global counts. FSDP averages gradients over ranks, so they are
    multiplied by the number of ranks here and the gradient is the global sum.
    """

    def __init__(
        self,
        network: nn.Module,
        section: LearnerSection,
        group: LearnerGroup,
        dtype: torch.dtype,
        learning_rate: float,
        total_steps: int,
        guard: UpdateGuard,
        compile_network: bool = False,
    ) -> None:
        self.group, self.section, self.guard = group, section, guard
        self.learning_rate, self.total_steps, self.steps = learning_rate, total_steps, 0
        self.loss_scale = INITIAL_LOSS_SCALE if dtype == torch.float16 else 1.0
        self._float16 = dtype == torch.float16
        self._losses: list[Tensor] = []  # this rank's parts of the coming step's loss, each 0-d
        if compile_network:
            for layer in decoder_layers(network):  # the rest slices by data-dependent sizes
                layer.compile(dynamic=True)
        self.network: Any = shard(network.to(group.device), group.mesh, dtype)
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(network, self.parameters, section, learning_rate)

    def accumulating(self, passes: Sequence[Pass]) -> Iterator[Pass]:
        """The passes of one optimiser step in turn. One rank has nobody to share memory with, so its gradients are
        taken over once, after the last pass."""
        for number, made in enumerate(passes, 1):
            self.network.set_requires_gradient_sync(self.group.size > 1 or number == len(passes))
            yield made

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch's part of the global loss."""
        self._losses.append(loss.detach())
        (loss * (self.group.size * self.loss_scale)).backward()

    def reshard(self) -> None:
        """Drop the gathered compute copies, so that the shards are what is read and what the next pass gathers."""
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, no dropout."""
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train()

    def discard(self) -> None:
        """Drop the accumulated gradients and their loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self._losses.clear()

    def step(self, origin: Origin, only: str = "") -> StepStats:
        """Clip, step and advance the schedule; `only` parameters whose names begin so, where given.

        With float16, an overflow skips the step and halves the loss scale. Any other step that is not finite, or
        explodes, is the guard's: it raises on all ranks alike, or leaves the step out.
        """
        for name, parameter in self.parameters.items():
            if not name.startswith(only):
                parameter.grad = None
        if self.loss_scale != 1.0:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.div_(self.loss_scale)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.section.max_grad_norm)
        grad_norm = float(full_tensor(norm))
        rate = self._rate()
        for options in self.optimizer.param_groups:
            options["lr"] = rate
        loss = self._loss()
        overflow = self._float16 and self.loss_scale > 1 and math.isfinite(loss) and not math.isfinite(grad_norm)
        admitted = overflow or self.guard.admits(loss, grad_norm, origin, whole=not only)
        faults.reach("update")
        if admitted and not overflow:
            self.optimizer.step()
        self.discard()
        if self._float16:
            self.loss_scale = max(self.loss_scale / 2, 1.0) if overflow else min(self.loss_scale * 1.001, 2.0**24)
        self.steps += 1
        return StepStats(grad_norm, rate, overflow, not admitted)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it besides tensors: JSON values, equal on all ranks."""
        return {"steps": self.steps, "loss_scale": self.loss_scale, "guard": self.guard.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; what was accumulated for a step goes."""
        self.discard()
        self.steps, self.loss_scale = state["steps"], state["loss_scale"]
        self.guard.load_state_dict(state.get("guard", {}))

    def _loss(self) -> float:
        """The global loss of what was accumulated."""
        local = float(torch.stack(self._losses).double().sum()) if self._losses else 0.0
        return self.group.reduce({"loss": local})["loss"]

    def _rate(self) -> float:
        """The learning rate of the coming step."""
        section, warmup = self.section, warmup_steps(self.section, self.total_steps)
        return self.learning_rate * learning_rate_factor(
            self.steps, self.total_steps, warmup, section.schedule, section.min_learning_rate_ratio
        )
