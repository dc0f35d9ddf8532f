"""What the loops say and do about updates that were left out."""

import json
from types import SimpleNamespace

import pytest

from rlhf_ray.config.guards import GuardsSection
from rlhf_ray.errors import BadUpdate, DataError
from rlhf_ray.trainers.failure_log import FailureLog
from rlhf_ray.trainers.guarding import ROLLED_BACK, review_updates, roll_back

pytestmark = pytest.mark.unit

GOOD, BAD = {"loss/sft": 1.0}, {"loss/sft": 1.0, "guards/bad_updates": 2.0}
SKIP = GuardsSection(on_bad_update="skip", max_bad_updates=3)


def test_updates_left_out_are_told_once_each(tmp_path):
    failures = FailureLog(tmp_path / "failures.jsonl")
    history: list[dict[str, float]] = []
    for metrics in (GOOD, BAD, GOOD, BAD, BAD):
        failures.iteration = len(history) + 1
        review_updates(metrics, history, SKIP, failures)
        history.append(metrics)
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["kind"], line["action"]) for line in lines] == [
        (2, "data", "left out"),
        (4, "data", "left out"),
        (5, "data", "left out"),
    ]
    assert lines[0]["cause"] == "2 bad updates, see quarantine/updates.jsonl."
    assert failures.metrics() == {"failures/data": 3}


@pytest.mark.parametrize("bad", [BAD, ROLLED_BACK], ids=["skip", "rollback"])
def test_bad_updates_that_do_not_end_stop_the_run(bad):
    review_updates(bad, [GOOD, bad], SKIP, FailureLog())
    review_updates(GOOD, [bad, bad], SKIP, FailureLog())
    with pytest.raises(DataError, match=r"3 iterations in a row had bad updates \(guards\.max_bad_updates=3\)"):
        review_updates(bad, [GOOD, bad, bad], SKIP, FailureLog())


def test_a_rollback_has_told_of_itself(tmp_path):
    rollback = GuardsSection(on_bad_update="rollback")
    review_updates(ROLLED_BACK, [], rollback, FailureLog(tmp_path / "failures.jsonl"))
    assert not (tmp_path / "failures.jsonl").exists()


@pytest.mark.parametrize("step", [None, 4])
def test_a_rollback_takes_the_learner_to_its_last_checkpoint_or_the_beginning(tmp_path, step):
    calls = []
    session = SimpleNamespace(
        checkpoints=SimpleNamespace(latest=lambda: None if step is None else SimpleNamespace(step=step, learner="L4")),
        failures=FailureLog(tmp_path / "failures.jsonl"),
        learner=SimpleNamespace(load=lambda folder: calls.append(f"load {folder}")),
    )
    found = roll_back(session, BadUpdate("the loss is nan"), lambda: calls.append("start anew"))
    assert found == ROLLED_BACK
    assert found is not ROLLED_BACK
    assert calls == ["start anew" if step is None else "load L4"]
    line = json.loads((tmp_path / "failures.jsonl").read_text())
    assert (line["kind"], line["cause"]) == ("data", "the loss is nan")
    goal = "the beginning" if step is None else "iteration 4"
    assert line["action"] == f"the learner goes back to {goal}, the run goes on with the next data"
