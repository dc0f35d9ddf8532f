"""What a replay reads: the recorded rollouts as actors gave them, and the checkpoint before the iteration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlhf_ray.actors.sample_table import Sample, sample_meta, sample_table
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import CheckpointSection
from rlhf_ray.config.load import load_config, merge_config
from rlhf_ray.errors import DataError
from rlhf_ray.files import FileDigest
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.schema import PROMPTS
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.checkpoint import Checkpoints
from rlhf_ray.trainers.recorded import recorded_rollouts
from rlhf_ray.trainers.replay import SETTINGS as REPLAYED
from rlhf_ray.trainers.replay import RecordedCheckpoints, StopAfter
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit

SETTINGS: dict[str, Any] = {
    "model": {"name": "gpt2"},
    "data": {"path": "prompts.jsonl"},
    "rewards": {"short": {"type": "function", "function": "rules:short", "on_failure": "skip_sample"}},
}
CONFIG = merge_config(PPOConfig, [("this test", SETTINGS)])
FAILURE = RewardFailure("short", 7, 1, "raised", "raised ValueError", "a traceback", "p7", "r3")


def prompts() -> pa.Table:
    topics = pa.array(["a", "b"])
    return pa.table([[4, 7], ["p4", "p7"], [[1, 2], [3]]], schema=PROMPTS).append_column("topic", topics)


def samples() -> list[Sample]:
    return [
        Sample(0, 0, [5, 6], [-0.5, -1.0], "r0", "stop"),
        Sample(0, 1, [7], [-2.0], "r1", "length"),
        Sample(1, 0, [8, 9, 10], [-0.1, -0.2, -0.3], "r2", "stop"),
        Sample(1, 1, [11], [-0.7], "r3", "stop"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose third iteration was recorded as the writer records it, with a failed reward."""
    run = RunFolder(tmp_path)
    table = sample_table(prompts(), samples(), policy_version=2)
    table = table.append_column("reference_logprobs", table["response_logprobs"])
    table = table.append_column("reward/short", pa.array([0.5, 0.25, 1.0, None], pa.float64()))
    table = table.append_column("reward", pa.array([0.5, 0.25, 1.0, None], pa.float64()))
    run.rollouts.mkdir()
    pq.write_table(table, run.rollouts / "iteration-000003.parquet")
    append_failures(run.quarantine, [FAILURE], 3)
    append_failures(run.quarantine, [FAILURE], 2)
    append_failures(run.quarantine, [FAILURE], 3, "evaluation")
    return run


def read(run: RunFolder, rounds: int = 1) -> Rollouts:
    """With tables in the place of references to them."""
    return recorded_rollouts(run, 3, rounds, put=lambda table: table)


def test_recorded_rollouts_are_what_the_generator_streamed(run: RunFolder) -> None:
    (batch,) = read(run).batches
    expected = sample_table(prompts(), samples(), policy_version=2)
    assert batch.samples.equals(expected)
    meta = sample_meta(expected, samples(), 2, seconds=1.0)
    for name in ("prompt_id", "sample_index", "prompt_length", "response_length", "truncated"):
        np.testing.assert_array_equal(batch.meta[name], meta[name], err_msg=name)
    assert batch.meta["policy_version"] == 2
    assert batch.reference is not None
    assert batch.reference.column_names == ["prompt_id", "sample_index", "reference_logprobs"]
    np.testing.assert_array_equal(batch.scores["short"], [0.5, 0.25, 1.0, np.nan])


def test_failed_rewards_come_back_from_the_quarantine_and_drop_their_sample(run: RunFolder) -> None:
    rollouts = read(run, rounds=2)
    assert rollouts.failures == [FAILURE]
    assert rollouts.rounds == 2
    composed = rollouts.compose(CONFIG)
    assert composed.keep.tolist() == [True, True, True, False]
    assert composed.total[:3].tolist() == [0.5, 0.25, 1.0]


def test_failures_of_an_earlier_attempt_do_not_count(run: RunFolder) -> None:
    """Its line comes first: of the same sample, of one that was scored the next time, of one that is gone."""
    earlier = [replace(FAILURE, **changes) for changes in ({"message": "did"}, {"sample_index": 0}, {"prompt_id": 99})]
    (run.quarantine / "rewards.jsonl").unlink()
    append_failures(run.quarantine, [*earlier, FAILURE], 3)
    assert read(run).failures == [FAILURE]


def test_an_iteration_without_rollouts_is_named(run: RunFolder) -> None:
    with pytest.raises(DataError, match=r"iteration-000004.parquet is missing: .* from its prompts"):
        recorded_rollouts(run, 4)


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


class FakeLearner:
    """Its whole state is a text."""

    def snapshot(self) -> None: ...

    def save(self, folder: Path, from_snapshot: bool) -> list[dict[str, FileDigest]]:
        (folder / "weights").write_text("all of them")
        return [{"weights": FileDigest.of(folder / "weights")}]


def ignore(*_: Any) -> None: ...


@pytest.mark.parametrize(("last", "expected"), [(1, None), (2, 2), (3, 2), (4, 4), (9, 4)])
def test_a_replay_starts_from_the_newest_checkpoint_before_it_and_writes_none(
    tmp_path: Path, last: int, expected: int | None
) -> None:
    run, section = RunFolder(tmp_path), CheckpointSection(asynchronous=False, keep_last=9)
    written = Checkpoints(run.checkpoints, section, warn=ignore)
    for step in (2, 4):
        written.write(step, {"attempt": 0}, FakeLearner())
    before = files(tmp_path)
    found = RecordedCheckpoints(run, last, CONFIG, Console())
    resumed = found.latest()
    assert (resumed.step if resumed is not None else None) == expected
    found.write(last + 1, {"attempt": 1}, FakeLearner())
    assert found.finish() == []
    assert files(tmp_path) == before


def test_the_loop_is_asked_to_stop_at_the_iteration_and_not_before() -> None:
    asked: list[str] = []
    ask: Callable[[str], None] = asked.append
    stop = StopAfter(3)
    stop.on_train_start(SimpleNamespace(request_stop=ask))
    for iteration in (1, 2):
        stop.on_iteration_start(iteration)
    assert asked == []
    stop.on_iteration_start(3)
    assert len(asked) == 1


def test_a_run_that_rolls_back_can_be_replayed(tmp_path: Path) -> None:
    """Its configuration is refused without checkpoints, though a replay writes none."""
    run = SETTINGS | {"guards": {"on_bad_update": "rollback"}, "checkpoint": {"every": 2}}
    (tmp_path / "config.yaml").write_text(yaml.dump(run))
    config = load_config(PPOConfig, [tmp_path / "config.yaml"], REPLAYED)
    assert config.guards.on_bad_update == "rollback"
