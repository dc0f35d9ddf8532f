"""Log-probs of given responses under saved models, by actors that live as long as the answer takes."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle

from rlhf_ray.actors.placement import ActorNeed
from rlhf_ray.actors.pool import ActorPool, Lost, events
from rlhf_ray.actors.reference import Reference
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import ModelSection
from rlhf_ray.errors import InfrastructureError
from rlhf_ray.trainers.session import ActorSession

ROWS = 64  # responses per call


@dataclass
class FrozenModel:
    """A model and the responses it is to look at: key -> (table, temperature of the log-probs).

    The tables have `prompt_id`, `sample_index`, `prompt_tokens` and `response_tokens`.
    """

    model: ModelSection
    tables: dict[Hashable, tuple[pa.Table, float]] = field(default_factory=dict)


def frozen_logprobs(
    models: Sequence[FrozenModel], session: ActorSession, config: PPOConfig, progress: Callable[..., None]
) -> dict[Hashable, list[np.ndarray]]:
    """Key of a table -> float32 [response tokens] for each of its rows. The models work side by side.

    `config.reference` says how they compute; a session serves one call.
    """
    replicas, start_s = config.reference.replicas, config.resources.start_timeout_s
    session.reserve([ActorNeed(_kind(n), i, gpus=1) for n in range(len(models)) for i in range(replicas)])
    pools = [_pool(number, frozen.model, session, config) for number, frozen in enumerate(models)]
    for pool in pools:
        pool.wait_ready(start_s)
    parts: dict[Hashable, dict[int, list[np.ndarray]]] = {}
    for pool, frozen in zip(pools, models, strict=True):
        for key, (table, temperature) in frozen.tables.items():
            parts[key] = {}
            for first in range(0, table.num_rows, ROWS):
                pool.submit((key, first), table.slice(first, ROWS), temperature)
    for _, done in events(pools):
        if isinstance(done, Lost):
            raise InfrastructureError("responses were lost with their node before they reached a model; run it again")
        key, first = done.key
        answer = ray.get(done.refs[0])
        parts[key][first] = [row.values.to_numpy() for row in answer["reference_logprobs"]]
        progress(answer.num_rows)
    return {key: [row for first in sorted(found) for row in found[first]] for key, found in parts.items()}


def _kind(number: int) -> str:
    return f"logprobs/{number}"


def _pool(number: int, model: ModelSection, session: ActorSession, config: PPOConfig) -> ActorPool:
    section = config.reference
    dtype = "float32" if config.run.exact else config.generation.dtype
    arguments = (model, dtype, section.tokens_per_batch, 1.0)

    def start(index: int) -> ActorHandle:
        return session.start(_kind(number), index, Reference, *arguments)

    return ActorPool(_kind(number), start, section.replicas, "logprobs", returns=2, supervision=session.supervision)
