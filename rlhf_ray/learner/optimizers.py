"""The optimiser of a network: which parameters decay, which algorithm steps them, what a checkpoint keeps of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_ray.config.common import LearnerSection
from rlhf_ray.errors import ConfigError

#: Names, in an optimiser's state of a parameter, of the tensors that a checkpoint keeps.
MOMENTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adamw_8bit": ("state1", "state2", "absmax1", "absmax2"),
    "sgd": ("momentum_buffer",),
}


def build_optimizer(
    network: nn.Module, parameters: Mapping[str, Tensor], section: LearnerSection, learning_rate: float
) -> Optimizer:
    """The optimiser that `section` names over `parameters`, those of `network` that train.

    Raises ConfigError when bitsandbytes is wanted and missing.
    """
    groups = decay_groups(network, parameters, section.weight_decay)
    match section.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=section.sgd_momentum)
        case "adamw_8bit":
            betas = (section.adam_beta1, section.adam_beta2)
            return _adamw_8bit(groups, lr=learning_rate, betas=betas, eps=section.adam_eps)
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_eps,
        fused=section.fused,
    )


def decay_groups(network: nn.Module, parameters: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices, which decay; biases, norms and embeddings (tied heads too), which do not."""
    embeddings = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decayed = [p for p in parameters.values() if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in parameters.values() if p.ndim < 2 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def optimizer_steps(optimizer: Optimizer, parameter: Tensor) -> float | None:
    """Steps that `parameter` has taken; None when it has taken none. `sgd` does not count them: 1 for any."""
    state = _state(optimizer, parameter)
    return float(state.get("step", 1)) if state else None


def moments(optimizer: Optimizer, kind: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what the optimiser remembers of `parameter`; 8-bit ones belong to this rank alone."""
    state = _state(optimizer, parameter)
    return ((name, state[name]) for name in MOMENTS[kind] if state.get(name) is not None)


def ready_moments(optimizer: Optimizer, kind: str, parameter: Tensor, steps: float) -> None:
    """Give `parameter` the empty state of one that has taken `steps` steps, to be filled from a checkpoint."""
    if isinstance(optimizer, _LocalRows):
        optimizer.ready(parameter, int(steps))
        return
    state: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name in MOMENTS[kind]}
    if kind == "adamw":
        state["step"] = torch.tensor(steps, dtype=torch.float32, device=parameter.device)
    optimizer.state[parameter] = state


def _state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    key = optimizer.rows[parameter] if isinstance(optimizer, _LocalRows) else parameter
    found: dict[str, Any] = optimizer.state.get(key, {})
    return found


class _LocalRows:
    """Mixed into a bitsandbytes optimiser, whose kernels know no sharded tensors: steps this rank's rows of each.

    The rows share the parameters' memory. Quantisation blocks end with a rank's rows, so the number of ranks changes
    the rounding, and a checkpoint is read by as many ranks as wrote it.
    """

    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.rows = {p: nn.Parameter(_rows(p.detach())) for group in groups for p in group["params"]}
        local = [{**group, "params": [self.rows[p] for p in group["params"]]} for group in groups]
        super().__init__(local, **options)  # type: ignore[call-arg]

    def step(self, closure: None = None) -> None:
        for parameter, rows in self.rows.items():
            rows.grad = None if parameter.grad is None or not rows.numel() else _rows(parameter.grad)
        super().step(closure)  # type: ignore[misc]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter, rows in self.rows.items():
            parameter.grad = rows.grad = None

    def ready(self, parameter: Tensor, steps: int) -> None:
        for number, group in enumerate(self.param_groups):
            for index, rows in enumerate(group["params"]):
                if rows is self.rows[parameter]:
                    self.init_state(group, rows, number, index)  # type: ignore[attr-defined]
                    self.state[rows]["step"] = steps


def _rows(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _adamw_8bit(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022); parameters under 4,096 elements keep 32 bits."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"learner.optimizer: adamw_8bit needs bitsandbytes ({error}); pip install 'rlhf-ray[qlora]', or set "
            "learner.optimizer=adamw"
        ) from error
    optimizer: Optimizer = type("LocalAdamW8bit", (_LocalRows, AdamW8bit), {})(groups, **options)
    return optimizer
