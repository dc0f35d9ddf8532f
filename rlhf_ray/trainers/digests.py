"""What the policy was after each iteration: the digests of the tensors that its sync proved, one small file each.

<run>/digests/version-000004.json   {"weights": digest of the digests, "tensors": {name: digest}}

They are of the weights as they travelled, in the engine's dtype. Version 0 is the start. An iteration that is run again
after a failure writes its file again.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import xxhash

from rlhf_ray.files import disk_errors, write_whole


def write_digests(folder: Path, version: int, tensors: Mapping[str, str]) -> None:
    """Store {tensor: digest} of weights `version` in the run's folder of digests, whole or not at all.

    Raises:
        InfrastructureError: they cannot be written; DiskFull, if there is no room.
    """
    content = {"weights": combined(tensors), "tensors": dict(tensors)}
    with disk_errors("digests of the weights", folder):
        folder.mkdir(exist_ok=True)
        write_whole(_file(folder, version), json.dumps(content, indent=1))


def read_digests(folder: Path, version: int) -> dict[str, str] | None:
    """{tensor: digest} of weights `version`; None where they were not stored."""
    path = _file(folder, version)
    return json.loads(path.read_text(encoding="utf-8"))["tensors"] if path.is_file() else None


def combined(tensors: Mapping[str, str]) -> str:
    """One XXH3-128 digest for all tensors: of their names and digests, in the order of the names."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
    return xxhash.xxh3_128_hexdigest(lines.encode())


def _file(folder: Path, version: int) -> Path:
    return folder / f"version-{version:06d}.json"
