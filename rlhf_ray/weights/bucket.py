"""Buckets: the unit in which weights travel from the learner to the generators.

A bucket holds the bytes of whole tensors as uint8 arrays. Pickle protocol 5 hands such arrays over out of band, so Ray
copies each one straight from the learner's tensor into shared memory (no staging buffer, one copy in all) and every
generator on the node maps the same pages. What is not a contiguous CPU tensor of the wire dtype is converted first.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_ray.errors import DataError
from rlhf_ray.weights.digest import digest, tensor_bytes

# Arrays mapped from the object store are read-only. So is every use of them here, which torch cannot know.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class TensorRecord:
    """One tensor on the wire: its name in the Hugging Face model, torch dtype name, shape and digest of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Bucket:
    """Some tensors of weights (attempt, version); `data[i]` holds the bytes of `records[i]`, uint8 [nbytes]."""

    version: int
    attempt: int
    index: int
    records: tuple[TensorRecord, ...]
    data: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.data)


@dataclass(frozen=True)
class SentReceipt:
    """What the learner sent: {name: digest} of every tensor, and the number of bytes in all."""

    version: int
    attempt: int
    digests: dict[str, str]
    nbytes: int


def pack_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    version: int,
    attempt: int,
    dtype: torch.dtype,
    bucket_bytes: int,
) -> Iterator[Bucket]:
    """Group tensors, in order, into buckets of at most `bucket_bytes` (a larger tensor travels alone).

    Floating-point tensors are cast to `dtype`, the engine's. Arrays may be views of the tensors' own memory: hand a
    bucket over (Ray copies it at once) before the weights change.

    Raises:
        DataError: a name occurs twice.
    """
    names: set[str] = set()
    records: list[TensorRecord] = []
    arrays: list[np.ndarray] = []
    index = nbytes = 0
    for name, tensor in named_tensors:
        if name in names:
            raise DataError(f"Weights of version {version} name the tensor {name!r} twice: send each tensor once.")
        names.add(name)
        wire = tensor.to(dtype) if tensor.is_floating_point() else tensor
        array = tensor_bytes(wire)
        if records and nbytes + array.nbytes > bucket_bytes:
            yield Bucket(version, attempt, index, tuple(records), tuple(arrays))
            records, arrays, nbytes, index = [], [], 0, index + 1
        dtype_name = str(wire.dtype).removeprefix("torch.")
        records.append(TensorRecord(name, dtype_name, tuple(wire.shape), digest(array)))
        arrays.append(array)
        nbytes += array.nbytes
    if records:
        yield Bucket(version, attempt, index, tuple(records), tuple(arrays))


def unpack(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) for each tensor of the bucket, as views of its arrays: read them, do not write.

    Raises:
        DataError: an array has not the size that its record states.
    """
    for record, array in zip(bucket.records, bucket.data, strict=True):
        dtype = getattr(torch, record.dtype)
        expected = int(np.prod(record.shape)) * dtype.itemsize
        if array.nbytes != expected:
            raise DataError(
                f"Bucket {bucket.index} of weights version {bucket.version} is torn: {record.name!r} has "
                f"{array.nbytes} bytes instead of {expected}. Publish the weights again."
            )
        yield record.name, torch.from_numpy(array).view(dtype).view(record.shape)


def stream_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    version: int,
    attempt: int,
    dtype: torch.dtype,
    bucket_bytes: int,
) -> Iterator[Bucket | SentReceipt]:
    """What the learner's rank 0 streams: the buckets, and last the receipt of all that it sent."""
    digests: dict[str, str] = {}
    nbytes = 0
    for bucket in pack_buckets(named_tensors, version=version, attempt=attempt, dtype=dtype, bucket_bytes=bucket_bytes):
        digests.update((record.name, record.digest) for record in bucket.records)
        nbytes += bucket.nbytes
        yield bucket
    yield SentReceipt(version, attempt, digests, nbytes)
