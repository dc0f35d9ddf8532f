"""Buckets: what is packed comes out again, with digests that see any change."""

import pickle

import numpy as np
import pytest
import torch

from rlhf_ray.errors import DataError
from rlhf_ray.weights.bucket import Bucket, SentReceipt, pack_buckets, stream_weights, unpack
from rlhf_ray.weights.digest import digest, tensor_bytes

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore:The given NumPy array")]


def weights() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    shapes = {"embed": (7, 5), "norm": (5,), "scalar": (), "proj": (3, 5), "wide": (40, 5)}
    named = [(name, torch.randn(shape)) for name, shape in shapes.items()]
    return [*named, ("transposed", torch.randn(4, 6).t()), ("steps", torch.arange(3))]


def pack(named: list[tuple[str, torch.Tensor]], dtype: torch.dtype = torch.float32, size: int = 200) -> list[Bucket]:
    return list(pack_buckets(named, version=3, attempt=1, dtype=dtype, bucket_bytes=size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_through_out_of_band_pickle(dtype: torch.dtype) -> None:
    named = weights()
    received = []
    for bucket in pack(named, dtype):
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(bucket, protocol=5, buffer_callback=buffers.append)
        assert len(buffers) == len(bucket.data), "every array must travel out of band"
        read_only = [memoryview(bytes(buffer.raw())) for buffer in buffers]
        received += list(unpack(pickle.loads(body, buffers=read_only)))
    assert [name for name, _ in received] == [name for name, _ in named]
    for (_, tensor), (name, sent) in zip(received, named, strict=True):
        expected = sent.to(dtype) if sent.is_floating_point() else sent
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name


def test_buckets_respect_their_size_and_keep_order() -> None:
    buckets = pack(weights(), size=200)
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    assert all(bucket.nbytes <= 200 or len(bucket.records) == 1 for bucket in buckets)
    assert max(bucket.nbytes for bucket in buckets) == 40 * 5 * 4, "a tensor larger than a bucket travels alone"
    assert len(pack(weights(), size=10**6)) == 1


def test_contiguous_tensors_of_the_wire_dtype_are_not_copied() -> None:
    tensor = torch.zeros(10)
    (bucket,) = pack([("a", tensor)])
    tensor[3] = 1.0
    assert bucket.data[0].view(np.float32)[3] == 1.0


def test_digest_sees_the_smallest_step_of_each_element() -> None:
    tensor = torch.randn(50)
    before = digest(tensor_bytes(tensor))
    for index in range(50):
        changed = tensor.clone()
        changed[index] = torch.nextafter(changed[index], torch.tensor(9e9))
        assert digest(tensor_bytes(changed)) != before
    assert digest(tensor_bytes(tensor.clone())) == before
    assert len(before) == 32


def test_receipt_ends_the_stream_and_covers_every_tensor() -> None:
    *buckets, receipt = stream_weights(weights(), version=3, attempt=1, dtype=torch.float32, bucket_bytes=200)
    assert isinstance(receipt, SentReceipt)
    assert list(receipt.digests) == [name for name, _ in weights()]
    assert receipt.nbytes == sum(bucket.nbytes for bucket in buckets)
    assert receipt.digests["proj"] == digest(tensor_bytes(dict(weights())["proj"]))


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'a' twice"):
        pack([("a", torch.zeros(1)), ("a", torch.ones(1))])


def test_a_torn_bucket_is_refused() -> None:
    (bucket,) = pack([("a", torch.zeros(4))])
    torn = Bucket(bucket.version, bucket.attempt, bucket.index, bucket.records, (bucket.data[0][:8],))
    with pytest.raises(DataError, match="has 8 bytes instead of 16"):
        list(unpack(torn))


def test_no_weights_are_no_bucket() -> None:
    assert pack([]) == []
