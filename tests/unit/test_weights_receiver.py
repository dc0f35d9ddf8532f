"""Which version a generator holds, over updates that go right and wrong, on a fake engine that records its calls."""

from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.errors import AuditError, InfrastructureError
from rlhf_ray.weights.bucket import Bucket, SentReceipt, TensorRecord
from rlhf_ray.weights.publish import choose_transport
from rlhf_ray.weights.receiver import ADAPTER, WeightReceiver

pytestmark = pytest.mark.unit


class FakeEngine:
    """Two workers that load what they get; refuses what vLLM's worker refuses."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.active = False
        self.receipts: list[dict[str, Any]] = [{"digests": {"w": "d0"}, "faults": []} for _ in range(2)]
        self.breaks = False
        self.cache_resets = 0

    def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:
        self.calls.append(method)
        method = method.replace("adapter", "weight") if method != "load_adapter" else "update_weights"
        if method == "start_weight_update":
            assert not self.active, "vLLM refuses to start twice"
            self.active = True
        elif method == "update_weights":
            if self.breaks:
                self.active = False
                raise RuntimeError("no such parameter")
        elif method == "finish_weight_update":
            assert self.active, "vLLM refuses to finish what was not started"
            self.active = False
        return self.receipts

    def reset_prefix_cache(self) -> bool:
        self.cache_resets += 1
        return True


def bucket(version: int, attempt: int = 0, index: int = 0) -> dict[str, Bucket]:
    record = TensorRecord("w", "float32", (1,), "d0")
    return {"bucket": Bucket(version, attempt, index, (record,), (np.zeros(4, np.uint8),))}


def update(receiver: WeightReceiver, engine: FakeEngine, version: int, attempt: int = 0) -> dict[str, Any]:
    receiver.begin(engine, version, attempt)
    receiver.load(engine, bucket(version, attempt))
    return receiver.finish(engine)


def test_a_proven_update_moves_the_version_and_resets_the_cache() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    assert receiver.require_whole() == 0
    receipt = update(receiver, engine, version=1)
    assert receipt == {"version": 1, "attempt": 0, "digests": {"w": "d0"}, "faults": []}
    assert receiver.require_whole() == 1
    assert engine.cache_resets == 1


def test_sampling_is_refused_in_the_middle_of_an_update() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    receiver.begin(engine, 1, 0)
    with pytest.raises(InfrastructureError, match="between weights version 0 and 1"):
        receiver.require_whole()


@pytest.mark.parametrize(("version", "attempt"), [(2, 0), (9, 0), (2, 1)])
def test_earlier_weights_are_refused(version: int, attempt: int) -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    update(receiver, engine, version=3, attempt=1)
    with pytest.raises(AuditError, match="holds version 3 of attempt 1"):
        receiver.begin(engine, version, attempt)
    assert receiver.require_whole() == 3, "a refused update leaves the held weights usable"


def test_the_same_version_again_and_a_rewind_in_a_new_attempt_are_allowed() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    update(receiver, engine, version=3)
    update(receiver, engine, version=3)
    update(receiver, engine, version=1, attempt=1)
    assert (receiver.version, receiver.attempt) == (1, 1)


@pytest.mark.parametrize("wrong", [bucket(2), bucket(1, attempt=1)])
def test_a_bucket_of_other_weights_is_refused(wrong: dict[str, Bucket]) -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    receiver.begin(engine, 1, 0)
    with pytest.raises(AuditError, match="during the update to version 1, attempt 0"):
        receiver.load(engine, wrong)


def test_a_bucket_twice_and_a_bucket_without_update_are_refused() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    with pytest.raises(AuditError, match="No weight update is under way"):
        receiver.load(engine, bucket(1))
    receiver.begin(engine, 1, 0)
    receiver.load(engine, bucket(1, index=1))
    receiver.load(engine, bucket(1, index=0))
    with pytest.raises(AuditError, match="came twice"):
        receiver.load(engine, bucket(1, index=1))


def test_faults_keep_the_version_and_refuse_sampling_until_the_next_update() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    engine.receipts[1]["faults"] = ["layer: 3 of 4 elements loaded"]
    assert update(receiver, engine, version=1)["faults"] == ["worker 1: layer: 3 of 4 elements loaded"]
    assert receiver.version == 0
    with pytest.raises(InfrastructureError):
        receiver.require_whole()
    engine.receipts[1]["faults"] = []
    assert update(receiver, engine, version=1)["faults"] == []
    assert receiver.require_whole() == 1


def test_workers_that_differ_and_a_sender_that_differs_are_faults() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    engine.receipts[1]["digests"] = {"w": "other"}
    assert update(receiver, engine, version=1)["faults"] == ["worker 1 loaded other bytes than worker 0"]
    engine.receipts[1]["digests"] = {"w": "d0"}
    receiver.begin(engine, 1, 0)
    receiver.load(engine, bucket(1))
    receiver.note_sent(SentReceipt(1, 0, {"w": "d0", "v": "d1"}, 8))
    assert receiver.finish(engine)["faults"] == ["1 not loaded: v"]


def test_an_abandoned_and_a_broken_update_can_be_replaced() -> None:
    receiver, engine = WeightReceiver(), FakeEngine()
    receiver.begin(engine, 1, 0)
    update(receiver, engine, version=1)
    engine.breaks = True
    with pytest.raises(RuntimeError, match="no such parameter"):
        update(receiver, engine, version=2)
    engine.breaks = False
    update(receiver, engine, version=2)
    assert receiver.require_whole() == 2


def test_an_adapter_update_calls_its_own_methods_and_is_numbered() -> None:
    receiver, engine = WeightReceiver(ADAPTER), FakeEngine()
    receiver.begin(engine, 1, 0)  # abandoned
    update(receiver, engine, version=1)
    start, finish = "start_adapter_update", "finish_adapter_update"
    assert engine.calls == [start, finish, start, "load_adapter", finish, "adapter_receipt"]
    assert receiver.started == 2, "adapters are numbered as the workers number them"


@pytest.mark.parametrize(
    ("options", "cuda", "shared", "chosen"),
    [
        ({}, False, False, "object_store"),
        ({}, True, True, "ipc"),
        ({}, True, False, "nccl"),
        ({"lora": "adapter"}, True, True, "object_store"),
        ({"transport": "nccl"}, True, True, "nccl"),
    ],
)
def test_the_transport_suits_where_the_weights_go(
    options: dict[str, Any], cuda: bool, shared: bool, chosen: str
) -> None:
    assert choose_transport(SyncSection(**options), cuda=cuda, shared_gpus=shared) == chosen
