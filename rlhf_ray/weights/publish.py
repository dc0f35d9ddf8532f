"""One weight sync: the learner streams buckets, every generator loads and acknowledges them, the receipts are compared.

The driver only passes references on. A bucket's reference is dropped when all generators acknowledged it, so that the
object store reuses its pages: memory touched for the first time is many times slower than memory in use.

A generator that is lost on the way is left out; the others keep what they proved. Its successor starts from other
weights and gets the published ones by a sync of its own before it samples: `catch_up`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.errors import ActorLost, AuditError, DeadlineError
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


class Receivers(Protocol):
    """The generators that weights go to, by index: what `actors.replicas.Replicas` offers for a sync."""

    catch_up: Callable[[int], None]

    @property
    def handles(self) -> list[ActorHandle]: ...
    def wait_ready(self, deadline_s: float) -> None: ...
    def life(self, index: int) -> int: ...
    def withdraw(self) -> list[int]: ...
    def admit(self, index: int) -> None: ...
    def ask(self, to: Iterable[int], method: str, *arguments: Any) -> Any: ...
    def answers(self, asked: Any, phase: str, deadline_s: float) -> dict[int, Any]: ...


class WeightSync:
    """Publishes the learner's weights to all generators and proves that they arrived.

    Over the object store, every learner rank has a method `publish(version, attempt, dtype, bucket_bytes)`, a
    generator: all ranks gather the weights together, rank 0 yields what `bucket.stream_weights` yields, the others
    nothing. Over NCCL or CUDA IPC, every rank has `open_transport(...)` and `publish_direct(version, attempt)`: those
    of a `gpu_transport.GPUPublisher`, constructed with the same arguments.

    Args:
        generators: from now on they catch up through this sync.
        section: with `transport` resolved (`choose_transport`); "auto" is the object store.
        dtype: the engine's, in which weights travel.
    """

    def __init__(
        self,
        learner_ranks: Sequence[ActorHandle],
        generators: Receivers,
        section: SyncSection,
        dtype: str,
        timeout_s: float = 600,
    ) -> None:
        self.learner_ranks = list(learner_ranks)
        self._generators = generators
        self._transport = section.transport
        self._bucket_bytes = section.bucket_mib * 2**20
        self._dtype = dtype
        self._timeout_s = timeout_s
        self._published: SentReceipt | None = None
        self._connect: tuple[Callable[[], str], int] | None = None
        self._connected: dict[int, int] = {}  # generator -> its life that the direct transport reaches
        generators.catch_up = self.catch_up

    def connect(self, address: Callable[[], str], tensor_parallel_size: int) -> None:
        """How NCCL or CUDA IPC is to be opened: `address()` is a free host:port on rank 0's node."""
        self._connect = address, tensor_parallel_size

    def publish(self, version: int, attempt: int = 0) -> SyncReport:
        """Make every generator sample from the learner's present weights, as (attempt, version), and prove it.

        Raises:
            AuditError: a generator loaded other tensors than the learner sent, or not all of its own.
            ActorLost: a learner rank is gone.
            DeadlineError: the learner did not answer in time.
        """
        started = time.perf_counter()
        sent, proven = self._send(self._generators.withdraw(), version, attempt)
        self._published = sent
        self._admit(proven)
        return SyncReport(version, time.perf_counter() - started, sent.nbytes, sent.digests)

    def catch_up(self, index: int) -> None:
        """Bring a generator that started anew to the weights last published, which the learner still holds.

        Raises:
            AuditError: nothing was published yet, or the learner holds other weights by now. And as `publish`.
        """
        last = self._published
        if last is None:
            raise AuditError(f"Generator {index} is to catch up, but nothing was published to it yet.")
        to = [index] if self._over_object_store else self._generators.withdraw()
        sent, proven = self._send(to, last.version, last.attempt)
        if sent.digests != last.digests:
            raise AuditError(
                f"Generator {index} was to get weights version {last.version} again, but the learner holds others now."
            )
        self._admit(proven)

    @property
    def _over_object_store(self) -> bool:
        return self._transport not in ("nccl", "ipc")

    def _admit(self, proven: Iterable[int]) -> None:
        for index in proven:
            self._generators.admit(index)

    def _send(self, to: Sequence[int], version: int, attempt: int) -> tuple[SentReceipt, list[int]]:
        """Send to some generators: what was sent, and those that proved that they loaded it."""
        try:
            send = self._send_buckets if self._over_object_store else self._send_directly
            sent, received = send(to, version, attempt)
        except RayActorError as error:
            raise ActorLost(f"A learner rank was lost while it published its weights: {error}") from error
        self._audit(sent, received)
        return sent, list(received)

    def _send_buckets(self, to: Sequence[int], version: int, attempt: int) -> tuple[SentReceipt, dict[int, Any]]:
        generators, timeout_s = self._generators, self._timeout_s
        beginning = generators.ask(to, "begin_update", version, attempt)
        reached = set(generators.answers(beginning, "begin_update", timeout_s))
        # Not before: a stream that a refusal left open would keep the learner busy.
        streams = [self._stream(rank, version, attempt) for rank in self.learner_ranks]
        sent = self._forward(streams[0], reached)
        for stream in streams[1:]:
            self._get(stream.completed(), "to end the gathering on another rank")
        return sent, generators.answers(generators.ask(reached, "finish_update"), "finish_update", timeout_s)

    def _stream(self, rank: ActorHandle, version: int, attempt: int) -> Any:
        streaming = rank.publish.options(num_returns="streaming", _generator_backpressure_num_objects=IN_FLIGHT)
        return streaming.remote(version, attempt, self._dtype, self._bucket_bytes)

    def _forward(self, stream: Any, reached: set[int]) -> SentReceipt:
        """Pass what the learner streams on to the generators `reached`, and drop those that are lost on the way.

        The last item is the learner's receipt.
        """
        under_way: deque[Any] = deque()
        for item in self._references(stream):
            under_way.append(self._generators.ask(reached, "load_bucket", item))
            if len(under_way) > IN_FLIGHT:
                reached &= self._acknowledged(under_way.popleft())
        for asked in under_way:
            reached &= self._acknowledged(asked)
        return self._get(item, "to send its receipt")

    def _acknowledged(self, asked: Any) -> set[int]:
        return set(self._generators.answers(asked, "load_bucket", self._timeout_s))

    def _references(self, stream: Any) -> Iterator[ray.ObjectRef]:
        while True:
            ready, _ = ray.wait([stream], timeout=self._timeout_s, fetch_local=False)
            if not ready:
                raise DeadlineError(f"The learner sent no bucket of weights within {self._timeout_s:g} s.")
            try:
                yield next(stream)
            except StopIteration:
                return

    def _send_directly(self, to: Sequence[int], version: int, attempt: int) -> tuple[SentReceipt, dict[int, Any]]:
        """All generators at once: they and the learner are one group, which is formed anew when one has changed."""
        generators = self._generators
        to = list(generators.answers(generators.ask(to, "health"), "publish", self._timeout_s))  # without the dead
        if not to:  # a group needs members
            generators.wait_ready(self._timeout_s)
            to = generators.withdraw()
        lives = {index: generators.life(index) for index in to}
        if lives != self._connected:
            self._open(to)
            self._connected = lives
        sending = [rank.publish_direct.remote(version, attempt) for rank in self.learner_ranks]
        sent, received = self._get(sending, "to send the weights")[0]
        return sent, dict(zip(to, received, strict=True))

    def _open(self, to: Sequence[int]) -> None:
        assert self._connect is not None, "a direct transport needs `connect` first"
        address, workers_each = self._connect
        handles = [self._generators.handles[index] for index in to]
        arguments = (self._transport, self._dtype, handles, address(), workers_each, self._timeout_s)
        opening = [rank.open_transport.remote(*arguments) for rank in self.learner_ranks]
        self._get(opening, "to open the transport")

    def _audit(self, sent: SentReceipt, received: Mapping[int, dict[str, Any]]) -> None:
        for replica, receipt in sorted(received.items()):
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
            text = f"A weight sync waited more than {self._timeout_s:g} s for the learner {purpose}."
            raise DeadlineError(text) from None


def choose_transport(section: SyncSection, *, cuda: bool, shared_gpus: bool) -> str:
    """`sync.transport` with "auto" resolved: the object store on CPU, IPC where both sides share GPUs, else NCCL.

    An adapter alone is small and always goes through the object store.
    """
    if section.transport != "auto":
        return section.transport
    if not cuda or section.lora == "adapter":
        return "object_store"
    return "ipc" if shared_gpus else "nccl"
