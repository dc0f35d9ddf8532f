"""Replays of real runs: the same bits from rollouts and from prompts, and a change of either is found where it is."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from rlhf_ray.cli.main import main

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def replay(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["replay", str(run), "--iteration", "3", *arguments])


def files(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run, with its length and time of change."""
    stats = {str(path.relative_to(run)): path.stat() for path in run.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_a_replay_from_the_prompts_is_the_same_and_leaves_the_run_alone(exact_run: Path, tmp_path: Path) -> None:
    before, report = files(exact_run), tmp_path / "report.json"
    done = replay(exact_run, "--from", "prompts", "--json", str(report), f"run.root={tmp_path}")
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    assert found["same"] is True
    assert found["checkpoint"] == 2
    (iteration,) = found["iterations"]
    compared = {part["name"]: part["compared"] for part in iteration["parts"]}
    assert compared["tokens"] == compared["reward/quality"] == compared["reference log-probs"] == 16
    assert compared["losses"] > 10
    assert compared["weights before"] == compared["weights after"] > 10
    assert files(exact_run) == before


def test_a_replay_from_the_rollouts_finds_the_sample_that_was_changed(exact_run: Path, tmp_path: Path) -> None:
    """The learner alone repeats the iteration; it would find a reward that is not what its components come to."""
    run = tmp_path / "changed"
    shutil.copytree(exact_run, run, ignore=shutil.ignore_patterns("policy"))
    path = run / "rollouts" / "iteration-000003.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("reward/short")
    values = table["reward/short"].to_pylist()
    key = f"prompt {table['prompt_id'][5]}, sample {table['sample_index'][5]}"
    values[5] += 0.25
    pq.write_table(table.set_column(place, "reward/short", pa.array(values, pa.float64())), path)
    report = tmp_path / "report.json"
    done = replay(run, "--json", str(report))
    assert done.exit_code == 1, done.output
    found = json.loads(report.read_text())
    assert found["verdict"].startswith(f"differs first in iteration 3, reward: {key}: ")
    different = {part["name"] for part in found["iterations"][0]["parts"] if part["different"]}
    assert different == {"reward", "losses", "weights after", "metrics"}
    assert "generator" not in {path.name.split("-")[0] for path in (Path(found["replay"]) / "logs").iterdir()}


def test_an_iteration_that_the_run_did_not_reach_is_refused_by_name(exact_run: Path) -> None:
    done = CliRunner().invoke(main, ["replay", str(exact_run), "--iteration", "4"])
    assert done.exit_code == 2
    assert "iteration 4 is not in metrics.jsonl (it has 1 to 3)" in done.output
