"""One weight sync: the learner streams buckets, every generator loads and acknowledges them, the receipts are compared.

The driver only passes references on. A bucket's reference is dropped when all generators acknowledged it, so that the
object store reuses its pages: memory touched for the first time is many times slower than memory in use.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.errors import AuditError, InfrastructureError
from rlhf_ray.weights.audit import compare_receipts
from rlhf_ray.weights.bucket import SentReceipt

#: buckets under way: one being packed, one waiting, one being loaded
IN_FLIGHT = 3


@dataclass(frozen=True)
class SyncReport:
    """A proven sync: `bytes` sent, {tensor: digest} of them, `seconds` from the first call to the last receipt."""

    version: int
    seconds: float
    bytes: int
    digests: dict[str, str]


class WeightSync:
    """Publishes the learner's weights to all generators and proves that they arrived.

    Over the object store, every learner rank has a method `publish(version, attempt, dtype, bucket_bytes)`, a
    generator: all ranks gather the weights together, rank 0 yields what `bucket.stream_weights` yields, the others
    nothing. Over NCCL or CUDA IPC, every rank has `open_transport(...)` and `publish_direct(version, attempt)`: those
    of a `gpu_transport.GPUPublisher`, constructed with the same arguments.

    Args:
        section: with `transport` resolved (`choose_transport`); "auto" is the object store.
        dtype: the engine's, in which weights travel.
    """

    def __init__(
        self,
        learner_ranks: Sequence[ActorHandle],
        generators: Sequence[ActorHandle],
        section: SyncSection,
        dtype: str,
        timeout_s: float = 600,
    ) -> None:
        self.learner_ranks = list(learner_ranks)
        self.generators = list(generators)
        self._transport = section.transport
        self._bucket_bytes = section.bucket_mib * 2**20
        self._dtype = dtype
        self._timeout_s = timeout_s

    def connect(self, address: str, tensor_parallel_size: int) -> None:
        """Open NCCL or CUDA IPC between learner and generators; `address` is a free host:port on rank 0's node."""
        arguments = (self._transport, self._dtype, self.generators, address, tensor_parallel_size, self._timeout_s)
        opening = [rank.open_transport.remote(*arguments) for rank in self.learner_ranks]
        self._get(opening, "to open the transport")

    def publish(self, version: int, attempt: int = 0) -> SyncReport:
        """Make every generator sample from the learner's present weights, as (attempt, version), and prove it.

        Raises:
            AuditError: a generator loaded other tensors than the learner sent, or not all of its own.
            InfrastructureError: an actor was lost, or did not answer in time.
        """
        started = time.perf_counter()
        if self._transport in ("nccl", "ipc"):
            sending = [rank.publish_direct.remote(version, attempt) for rank in self.learner_ranks]
            sent, received = self._get(sending, "to send the weights")[0]
        else:
            sent, received = self._publish_buckets(version, attempt)
        self._audit(sent, received)
        return SyncReport(version, time.perf_counter() - started, sent.nbytes, sent.digests)

    def _publish_buckets(self, version: int, attempt: int) -> tuple[SentReceipt, list[dict[str, Any]]]:
        beginning = [generator.begin_update.remote(version, attempt) for generator in self.generators]
        streams = [self._stream(rank, version, attempt) for rank in self.learner_ranks]
        self._get(beginning, "to begin the update")
        sent = self._forward(streams[0])
        for stream in streams[1:]:
            self._get(stream.completed(), "to end the gathering on another learner rank")
        finishing = [generator.finish_update.remote() for generator in self.generators]
        return sent, self._get(finishing, "to finish the update")

    def _stream(self, rank: ActorHandle, version: int, attempt: int) -> Any:
        streaming = rank.publish.options(num_returns="streaming", _generator_backpressure_num_objects=IN_FLIGHT)
        return streaming.remote(version, attempt, self._dtype, self._bucket_bytes)

    def _forward(self, stream: Any) -> SentReceipt:
        """Pass what the learner streams on to all generators; the last item is its receipt."""
        under_way: deque[list[ray.ObjectRef]] = deque()
        for item in self._references(stream):
            under_way.append([generator.load_bucket.remote(item) for generator in self.generators])
            if len(under_way) > IN_FLIGHT:
                self._get(under_way.popleft(), "to load a bucket")
        for acknowledgements in under_way:
            self._get(acknowledgements, "to load a bucket")
        return self._get(item, "to send its receipt")

    def _references(self, stream: Any) -> Iterator[ray.ObjectRef]:
        while True:
            ready, _ = ray.wait([stream], timeout=self._timeout_s, fetch_local=False)
            if not ready:
                raise InfrastructureError(f"The learner sent no bucket of weights within {self._timeout_s:g} s.")
            try:
                yield next(stream)
            except StopIteration:
                return

    def _audit(self, sent: SentReceipt, received: Sequence[dict[str, Any]]) -> None:
        for replica, receipt in enumerate(received):
            problems = compare_receipts(sent.digests, receipt["digests"]) + receipt["faults"]
            if (receipt["version"], receipt["attempt"]) != (sent.version, sent.attempt):
                problems.append(f"it answered for version {receipt['version']} of attempt {receipt['attempt']}")
            if problems:
                raise AuditError(
                    f"The sync of weights version {sent.version} to generator {replica} failed: {'; '.join(problems)}."
                )

    def _get(self, refs: Any, purpose: str) -> Any:
        try:
            return ray.get(refs, timeout=self._timeout_s)
        except GetTimeoutError:
            text = f"A weight sync waited more than {self._timeout_s:g} s for an actor {purpose}."
            raise InfrastructureError(text) from None
        except RayActorError as exc:
            raise InfrastructureError(f"A weight sync lost an actor while it waited for it {purpose}: {exc}") from exc


def choose_transport(section: SyncSection, *, cuda: bool, shared_gpus: bool) -> str:
    """`sync.transport` with "auto" resolved: the object store on CPU, IPC where both sides share GPUs, else NCCL.

    An adapter alone is small and always goes through the object store.
    """
    if section.transport != "auto":
        return section.transport
    if not cuda or section.lora == "adapter":
        return "object_store"
    return "ipc" if shared_gpus else "nccl"
