"""What integration tests share: importable helpers in every Ray worker, and the tiny runs' files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray's workers, and the reward sandboxes they start, find the helper modules beside this file and above it.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*map(str, Path(__file__).parents[:2]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from exact_runs import exact
from learner_world import Ranks
from tiny_runs import TinyRuns, write_tiny_runs

from rlhf_ray.trainers.ppo import PPOTrainer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Models, data and configurations of runs that take seconds."""
    return write_tiny_runs(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exact_run(ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exact run of three iterations that nothing disturbed; to be read only."""
    return PPOTrainer(exact(tiny, tmp_path_factory.mktemp("exact"), "undisturbed")).train().folder


@pytest.fixture(scope="session")
def one() -> Iterator[Ranks]:
    """A learner rank in a process, without Ray."""
    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    """Two learner ranks over gloo in processes of their own, without Ray."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()
