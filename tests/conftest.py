"""Shared by all tests: quiet, offline, few threads; one local Ray for all integration tests."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# An engine's first sample would compile the kernel that ranks its token: seconds per engine, for a number no one reads.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import pytest


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this test session's own, without dashboard; what runs before stays untouched."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="rlhf_ray")
    yield
    ray.shutdown()
