"""Which weights an engine holds, and the way from one version to the next.

Runs on the engine's thread, through worker methods: those of vLLM's weight transfer, or our own for an adapter. An
update is all or nothing in what it claims: `version` moves only when every worker proved the new weights complete;
until then, and after an update that was abandoned or failed, `require_whole` refuses.
"""

from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.errors import AuditError, InfrastructureError
from rlhf_ray.weights.audit import compare_receipts
from rlhf_ray.weights.bucket import Bucket, SentReceipt


@dataclass(frozen=True)
class UpdateMethods:
    """The worker methods that an update calls."""

    start: str
    load: str  # takes the update info
    finish: str
    receipt: str  # returns {"digests": {name: digest}, "faults": [text]}


WEIGHTS = UpdateMethods("start_weight_update", "update_weights", "finish_weight_update", "weight_receipt")
ADAPTER = UpdateMethods("start_adapter_update", "load_adapter", "finish_adapter_update", "adapter_receipt")


@dataclass
class _Update:
    """Weights being loaded; `active` while vLLM is inside start/finish. Buckets may come in any order, each once."""

    version: int
    attempt: int
    buckets: set[int] = field(default_factory=set)
    active: bool = True
    sent: SentReceipt | None = None


class WeightReceiver:
    """Holds (attempt, version) of an engine's weights; 0, 0 are those it was started with."""

    def __init__(self, methods: UpdateMethods = WEIGHTS) -> None:
        self.version = self.attempt = 0
        self.started = 0  # updates, whole or not
        self._methods = methods
        self._update: _Update | None = None

    def require_whole(self) -> int:
        """The version that the engine holds.

        Raises:
            InfrastructureError: an update is under way, or ended without a proof.
        """
        if self._update is not None:
            raise InfrastructureError(
                f"The generator is between weights version {self.version} and {self._update.version}: finish that "
                "update, or publish again, before generating."
            )
        return self.version

    def begin(self, engine: Any, version: int, attempt: int) -> None:
        """Start an update, in place of one that was abandoned. Publishing the held version again is allowed.

        Raises:
            AuditError: the engine holds later weights already.
        """
        if (attempt, version) < (self.attempt, self.version):
            raise AuditError(
                f"Weights version {version} of attempt {attempt} were published to a generator that holds version "
                f"{self.version} of attempt {self.attempt}. Publish a later version, or start a new attempt."
            )
        if self._update is not None and self._update.active:
            engine.collective_rpc(self._methods.finish)
        engine.collective_rpc(self._methods.start)
        self.started += 1
        self._update = _Update(version, attempt)

    def load(self, engine: Any, update_info: dict[str, Any]) -> None:
        """Hand one update info to the transport; for the object store that is {"bucket": Bucket}.

        Raises:
            AuditError: no update is under way, or the bucket does not belong to it, or came before.
        """
        update = self._active_update()
        bucket = update_info.get("bucket")
        if isinstance(bucket, Bucket):
            _expect(update, bucket)
        update.active = False  # vLLM leaves the update when loading fails
        engine.collective_rpc(self._methods.load, args=(update_info,))
        update.active = True

    def note_sent(self, sent: SentReceipt) -> None:
        """Keep the sender's receipt: an update that does not agree with it does not count as loaded."""
        self._active_update().sent = sent

    def finish(self, engine: Any) -> dict[str, Any]:
        """End the update: {"version", "attempt", "digests": {name: digest}, "faults": [text]}."""
        update = self._active_update()
        update.active = False
        engine.collective_rpc(self._methods.finish)
        receipt = _merge(engine.collective_rpc(self._methods.receipt))
        if update.sent is not None:
            receipt["faults"] += compare_receipts(update.sent.digests, receipt["digests"])
        if not engine.reset_prefix_cache():
            receipt["faults"].append("the prefix cache still holds keys and values of the old weights")
        if not receipt["faults"]:
            self.version, self.attempt, self._update = update.version, update.attempt, None
        return {"version": update.version, "attempt": update.attempt, **receipt}

    def _active_update(self) -> _Update:
        if self._update is None or not self._update.active:
            raise AuditError("No weight update is under way: call begin_update first.")
        return self._update


def _expect(update: _Update, bucket: Bucket) -> None:
    belongs = (bucket.attempt, bucket.version) == (update.attempt, update.version)
    if not belongs or bucket.index in update.buckets:
        raise AuditError(
            f"Bucket {bucket.index} of weights version {bucket.version}, attempt {bucket.attempt}, came "
            f"{'twice' if belongs else f'during the update to version {update.version}, attempt {update.attempt}'}."
        )
    update.buckets.add(bucket.index)


def _merge(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """One receipt of all tensor-parallel workers, which must have consumed the same bytes."""
    first = receipts[0]
    faults = [f"worker {rank}: {text}" for rank, receipt in enumerate(receipts) for text in receipt["faults"]]
    faults += [
        f"worker {rank} loaded other bytes than worker 0"
        for rank, receipt in enumerate(receipts)
        if receipt["digests"] != first["digests"]
    ]
    return {"digests": first["digests"], "faults": faults}
