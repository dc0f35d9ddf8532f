"""The error that ends a run is told apart in its log of failures."""

import json
from pathlib import Path

import pytest

from rlhf_ray.errors import BadUpdate, ConfigError, DeadlineError, RLHFRayError
from rlhf_ray.trainers.failure_log import FailureLog

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConfigError("a key"), "configuration"), (BadUpdate("NaN"), "data"), (DeadlineError("silence"), "infrastructure")],
)
def test_the_kind_of_the_last_error(tmp_path: Path, error: RLHFRayError, kind: str) -> None:
    log = FailureLog(tmp_path / "failures.jsonl")
    log.iteration = 4
    log.ended(error)
    line = json.loads((tmp_path / "failures.jsonl").read_text())
    assert (line["kind"], line["actor"], line["iteration"], line["action"]) == (kind, "driver", 4, "the run ends")
    assert (line["phase"], line["cause"]) == (type(error).__name__, str(error))
    assert log.metrics() == {}
