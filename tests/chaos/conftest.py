"""What long runs under faults share: the integration tests' helpers, the tiny runs' files, one Ray, one table."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

from recovery_table import RecoveryTable
from tiny_runs import TinyRuns, write_tiny_runs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Models, data and configurations of runs that take seconds."""
    return write_tiny_runs(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def recoveries() -> Iterator[RecoveryTable]:
    """Seconds of recovery by actor and moment; written to benchmarks/results at the end."""
    table = RecoveryTable(Path(__file__).parents[2] / "benchmarks" / "results")
    yield table
    table.write()
