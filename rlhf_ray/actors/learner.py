"""The learner as Ray actors: one `Learner` per rank, all of them one FSDP group."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from rlhf_ray import faults
from rlhf_ray.actors.stacks import thread_stacks
from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.errors import InfrastructureError
from rlhf_ray.files import FileDigest
from rlhf_ray.learner.dpo import DPOObjective
from rlhf_ray.learner.experience import RolloutIndex
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.pairwise import PairwiseObjective
from rlhf_ray.learner.ppo import PPOIteration, PPOObjective
from rlhf_ray.learner.rank import Config, LearnerRank
from rlhf_ray.learner.sft import SFTObjective
from rlhf_ray.models.load import default_device, resolve_dtype
from rlhf_ray.models.quantized import weight_count
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.weights.audit import LogprobGap
from rlhf_ray.weights.bucket import Bucket, SentReceipt, stream_weights


class Learner:
    """Rank `rank` of `size`. `join` builds it; then one of the stage's `start_*` methods attaches the objective.

    `quarantine` is the folder for batches of bad updates; empty: they are not kept.
    """

    def __init__(self, config: Config, rank: int, size: int, quarantine: str = "") -> None:
        self._config, self._rank, self._size = config, rank, size
        self._quarantine = Path(quarantine) if quarantine else None
        self._thread = OwnedThread()
        self._listener: socket.socket | None = None
        self._learner: LearnerRank | None = None
        self._publisher: Any = None
        self._objective: SFTObjective | PairwiseObjective | DPOObjective | PPOObjective | None = None

    def address(self) -> str:
        """A free host:port on this rank's node."""
        with self._bound() as probe:
            return _address(probe)

    def meeting_point(self) -> str:
        """host:port where the ranks meet; rank 0 is asked, and keeps the port until `join`."""
        self._listener = self._bound()
        return _address(self._listener)

    def _bound(self) -> socket.socket:
        bound = socket.socket()
        bound.bind((ray.util.get_node_ip_address(), 0))
        return bound

    def compute_dtype(self) -> str:
        """The dtype this rank computes in, resolved on its own device."""
        dtype = "float32" if self._config.run.exact else self._config.learner.dtype
        return str(resolve_dtype(dtype, default_device())).removeprefix("torch.")

    def health(self) -> dict[str, Any]:
        return self._thread.health()

    def stacks(self) -> str:
        """What every thread of this rank is doing, while it trains too."""
        return thread_stacks()

    def join(self, address: str, total_steps: int) -> dict[str, Any]:
        """Meet the other ranks at `address` and build the stage's networks."""

        def build() -> LearnerRank:
            timeout_s = self._config.resources.call_timeout_s
            group = LearnerGroup(self._rank, self._size, address, default_device(), timeout_s, self._listener)
            faults.reach("load")
            return LearnerRank(self._config, group, total_steps, self._quarantine)

        self._learner = self._thread.call("loading the model", build)
        sizes = {
            name: sum(weight_count(p) for p in t.network.parameters()) for name, t in self._learner.trainables.items()
        }
        trained = {name: sum(p.numel() for p in t.parameters.values()) for name, t in self._learner.trainables.items()}
        return {"parameters": sizes, "trained": trained, "dtype": str(self._learner.dtype).removeprefix("torch.")}

    @property
    def _ready(self) -> LearnerRank:
        if self._learner is None:
            raise InfrastructureError(f"learner rank {self._rank} was called before it joined its group")
        return self._learner

    # -- SFT, reward model and DPO -----------------------------------------------------------------------------------

    def start_sft(self, table: pa.Table, eval_table: pa.Table | None) -> None:
        self._objective = self._thread.call("preparing the data", self._ready.sft, table, eval_table)

    def start_pairwise(self, table: pa.Table, eval_table: pa.Table | None) -> None:
        self._objective = self._ready.pairwise(table, eval_table)

    def start_dpo(self, table: pa.Table, eval_table: pa.Table | None) -> tuple[int, int]:
        """How many pairs either table has."""
        self._objective = self._thread.call("loading the reference", self._ready.dpo, table, eval_table)
        return table.num_rows, eval_table.num_rows if eval_table is not None else 0

    def reference_logprobs(self, rows: np.ndarray, held_out: bool) -> np.ndarray:
        """The reference's log-probs of these rows' chosen and rejected responses, [rows, 2]."""
        assert isinstance(self._objective, DPOObjective)
        return self._thread.call("asking the reference", self._objective.reference_logprobs, rows, held_out)

    def set_reference(self, train: np.ndarray, held_out: np.ndarray | None) -> None:
        """Give all rows' reference log-probs to the objective."""
        assert isinstance(self._objective, DPOObjective)
        self._objective.set_reference(train, held_out)

    def step(self, rows: np.ndarray, number: int | None = None) -> dict[str, float]:
        """One optimiser step on these rows of the training table, the run's step `number`."""
        assert isinstance(self._objective, SFTObjective | PairwiseObjective | DPOObjective)
        return self._thread.call("training", self._objective.step, rows, number)

    def evaluate(self) -> dict[str, float]:
        """Metrics over the evaluation table."""
        faults.reach("evaluate")
        assert isinstance(self._objective, SFTObjective | PairwiseObjective | DPOObjective)
        return self._thread.call("evaluating", self._objective.evaluate)

    def score_moments(self) -> dict[str, float]:
        """Mean and std of a reward model's scores over its training pairs."""
        assert isinstance(self._objective, PairwiseObjective)
        return self._thread.call("measuring the scores", self._objective.score_moments)

    # -- PPO ----------------------------------------------------------------------------------------------------------

    def start_ppo(self, engine_dtype: str) -> None:
        self._objective = self._ready.ppo(engine_dtype)

    def train_ppo(
        self,
        index: RolloutIndex,
        samples: list[ray.ObjectRef],
        references: list[ray.ObjectRef] | None,
        iteration: PPOIteration,
    ) -> tuple[dict[str, float], LogprobGap]:
        """The PPO epochs of one iteration; fetches the Arrow batches that hold this rank's share, and no others."""
        tables: dict[int, tuple[pa.Table, pa.Table | None]] = {}

        def fetch(batch: int) -> tuple[pa.Table, pa.Table | None]:
            if batch not in tables:
                sample, reference = samples[batch], references[batch] if references is not None else None
                found = ray.get([sample] if reference is None else [sample, reference])
                tables[batch] = (found[0].combine_chunks(), found[1].combine_chunks() if len(found) > 1 else None)
            return tables[batch]

        assert isinstance(self._objective, PPOObjective)
        return self._thread.call(
            f"training iteration {iteration.number}", self._objective.train, index, fetch, iteration
        )

    # -- weights ------------------------------------------------------------------------------------------------------

    def publish(self, version: int, attempt: int, dtype: str, bucket_bytes: int) -> Iterator[Bucket | SentReceipt]:
        """Stream the policy's weights: rank 0 yields buckets and at last the receipt; the others help to gather."""
        tensors = self._thread.call("publishing", self._ready.published_tensors)
        if self._rank:
            faults.reach("publish")
            self._thread.call("publishing", lambda: [None for _ in tensors])
            return
        items = stream_weights(
            tensors, version=version, attempt=attempt, dtype=getattr(torch, dtype), bucket_bytes=bucket_bytes
        )
        while (item := self._thread.call("publishing", next, items, None)) is not None:
            yield item
            if isinstance(item, Bucket):
                faults.reach("publish")

    def open_transport(self, *arguments: Any) -> None:
        """Open NCCL or CUDA IPC to the generators, with the arguments of `gpu_transport.GPUPublisher`."""
        from rlhf_ray.weights.gpu_transport import GPUPublisher  # imports vLLM, which a CPU learner does without

        self._publisher = self._thread.call(
            "opening the transport",
            lambda: GPUPublisher(*arguments, rank=self._rank, named_tensors=self._ready.published_tensors),
        )

    def publish_direct(self, version: int, attempt: int) -> tuple[SentReceipt, list[dict[str, Any]]]:
        """Send the weights over the opened transport; what was sent, and the generators' receipts (rank 0)."""
        result: tuple[SentReceipt, list[dict[str, Any]]] = self._thread.call(
            "publishing", self._publisher.publish, version, attempt
        )
        return result

    def snapshot(self) -> None:
        """Copy this rank's state for a checkpoint; `save` writes it while training goes on."""
        self._thread.call("copying its state", self._ready.snapshot)

    def save(self, folder: str, from_snapshot: bool) -> dict[str, FileDigest]:
        """Write this rank's part of a checkpoint into `folder`: the last snapshot, or the state as it is."""
        if from_snapshot:
            return self._ready.save_snapshot(Path(folder))
        return self._thread.call("saving", self._ready.save, Path(folder))

    def load(self, folder: str) -> None:
        """Restore from a checkpoint's learner folder."""
        self._thread.call("loading", self._ready.load, Path(folder))

    def export(self, folder: str, stats: RewardStats | None = None) -> None:
        """Write the model as a Hugging Face folder (rank 0; all ranks gather)."""
        self._thread.call("exporting", self._ready.export, Path(folder), stats)

    def close(self) -> None:
        """Leave the process group."""
        if self._learner is not None:
            self._thread.call("closing", self._learner.group.close)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()
    return f"{host}:{port}"
