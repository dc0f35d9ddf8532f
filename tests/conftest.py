"""Shared by all tests: quiet, offline, few threads; one local Ray for all integration tests; a learner of one rank."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# An engine's first sample would compile the kernel that ranks its token: seconds per engine, for a number no one reads.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import pytest

if TYPE_CHECKING:
    from rlhf_ray.learner.group import LearnerGroup


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this test session's own, without dashboard; what runs before stays untouched."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="rlhf_ray")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def group() -> Iterator["LearnerGroup"]:
    """A learner of one rank, in this process."""
    from learner_world import single_rank

    group = single_rank()
    yield group
    group.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama."""
    from learner_world import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model"))
