"""A replay's report: nothing that differs is missed, and the first difference is named with its place."""

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rlhf_ray.cli.main import main
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.digests import combined, read_digests, write_digests
from rlhf_ray.trainers.replay_report import NOT_RECORDED, TAKEN, Part, ReplayReport, compare_iteration, compare_samples
from rlhf_ray.trainers.results import read_metrics
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit

NUMBER = 3
METRICS = {"loss/policy": 0.25, "kl/mean": 1.5, "reward/mean": 0.75, "reward/std": None, "seconds/total": 9.0}
DIGESTS = {"embed.weight": "aa", "head.weight": "bb"}


def samples(**changes: Any) -> pa.Table:
    """Four samples of two prompts."""
    columns: dict[str, Any] = {
        "prompt_id": pa.array([4, 4, 7, 7], pa.int64()),
        "sample_index": pa.array([0, 1, 0, 1], pa.int32()),
        "prompt_tokens": pa.array([[1, 2], [1, 2], [3], [3]], pa.list_(pa.int32())),
        "response_tokens": pa.array([[5, 6], [7], [8, 9, 10], []], pa.list_(pa.int32())),
        "response_logprobs": pa.array([[-0.5, -1.0], [-2.0], [-0.1, -0.2, -0.3], []], pa.list_(pa.float32())),
        "reward/short": pa.array([0.5, None, 0.25, 1.0], pa.float64()),
        "reward": pa.array([0.5, 0.0, 0.25, 1.0], pa.float64()),
    }
    for name, values in changes.items():
        columns[name] = pa.array(values, columns[name].type)
    return pa.table(columns)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """A run and its replay, equal but for the times that they took."""
    for name, seconds in (("run", 9.0), ("replay", 11.0)):
        folder = RunFolder(tmp_path / name)
        folder.rollouts.mkdir(parents=True)
        pq.write_table(samples(), folder.rollouts / "iteration-000003.parquet")
        write_metrics(folder, METRICS | {"seconds/total": seconds})
        for version in (NUMBER - 1, NUMBER):
            write_digests(folder.digests, version, DIGESTS | {"version": str(version)})
    return RunFolder(tmp_path / "run"), RunFolder(tmp_path / "replay")


def write_metrics(folder: RunFolder, metrics: dict[str, float | None]) -> None:
    """The metrics of an iteration, and the line that an evaluation after it leaves."""
    lines = [{"step": NUMBER, **metrics}, {"step": NUMBER, "eval/length_mean": 4.0}]
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def parts(runs: tuple[RunFolder, RunFolder], taken: bool = False) -> dict[str, Part]:
    return {part.name: part for part in compare_iteration(*runs, NUMBER, taken).parts}


def part(name: str, taken: bool = False, **changes: Any) -> Part:
    return next(part for part in compare_samples(samples(), samples(**changes), taken) if part.name == name)


def report(runs: tuple[RunFolder, RunFolder], taken: bool = False, exact: bool = True) -> ReplayReport:
    source = "rollouts" if taken else "prompts"
    found = compare_iteration(*runs, NUMBER, taken)
    return ReplayReport(runs[0].path, runs[1].path, source, NUMBER - 1, exact, [found])


def test_equal_runs_are_the_same_and_everything_was_looked_at(runs: tuple[RunFolder, RunFolder]) -> None:
    found = parts(runs)
    assert all(part.same for part in found.values())
    assert {name: part.compared for name, part in found.items()} == {
        "weights before": 3,
        "samples": 4,
        "prompts": 4,
        "tokens": 4,
        "log-probs": 4,
        "reward/short": 4,
        "reward": 4,
        "losses": 2,
        "weights after": 3,
        "metrics": 2,  # without the time
    }
    assert report(runs).same


def test_a_changed_token_is_named_by_sample_and_position() -> None:
    found = part("tokens", response_tokens=[[5, 6], [7], [8, 11, 12], [1]])
    assert (found.compared, found.different) == (4, 2)
    assert found.first == "prompt 7, sample 0, token 1: 9 recorded, 11 replayed"


def test_a_shorter_response_differs_where_it_ends() -> None:
    found = part("tokens", response_tokens=[[5], [7], [8, 9, 10], []])
    assert found.first == "prompt 4, sample 0, token 1: 6 recorded, the end replayed"


def test_the_last_bit_of_a_log_prob_differs_and_its_size_is_told() -> None:
    changed = -2.0000002384185791015625  # the next float32
    found = part("log-probs", response_logprobs=[[-0.5, -1.0], [changed], [-0.1, -0.2, -0.3], []])
    assert found.different == 1
    assert found.largest == pytest.approx(2.4e-7, rel=0.01)
    assert found.first.startswith("prompt 4, sample 1, token 0: -2.0 recorded")


def test_samples_are_matched_by_key_not_by_row() -> None:
    shuffled = samples().take([2, 0, 3, 1])
    assert all(part.same for part in compare_samples(samples(), shuffled, taken=False))


def test_a_sample_that_is_missing_is_named_and_the_others_still_compared() -> None:
    found = {part.name: part for part in compare_samples(samples(), samples().slice(0, 3), taken=False)}
    assert found["samples"].first == "prompt 7, sample 1 is in the record alone"
    assert found["samples"].different == 1
    assert found["tokens"].same
    assert found["tokens"].compared == 3


def test_rewards_are_compared_by_component() -> None:
    found = part("reward/short", **{"reward/short": [0.5, 0.5, 0.25, 1.5]})
    assert found.different == 2
    assert found.largest == 0.5
    assert found.first == "prompt 4, sample 1: nan recorded, 0.5 replayed"
    assert part("reward/short").same  # null on both sides


def test_a_component_of_one_run_alone_differs() -> None:
    more = samples().append_column("reward/new", pa.array([1.0, 2.0, 3.0, 4.0]))
    found = {part.name: part for part in compare_samples(samples(), more, taken=False)}
    assert found["reward/new"].different == 4


def test_what_was_taken_from_the_record_is_not_called_the_same(runs: tuple[RunFolder, RunFolder]) -> None:
    found = parts(runs, taken=True)
    taken = {name for name, part in found.items() if part.note == TAKEN}
    assert taken == {"samples", "prompts", "tokens", "log-probs", "reward/short"}
    assert part("reward", taken=True, reward=[0.5, 0.0, 0.25, 2.0]).different == 1


def test_losses_and_metrics_are_told_apart(runs: tuple[RunFolder, RunFolder]) -> None:
    write_metrics(runs[1], METRICS | {"loss/policy": 0.2500001, "reward/std": 0.5})
    found = parts(runs)
    assert found["losses"].first == "loss/policy: 0.25 recorded, 0.2500001 replayed"
    assert found["losses"].largest == pytest.approx(1e-7, rel=1e-3)
    assert found["metrics"].first == "reward/std: nan recorded, 0.5 replayed"
    assert found["metrics"].largest is None


def test_a_stale_tensor_is_named(runs: tuple[RunFolder, RunFolder]) -> None:
    write_digests(runs[1].digests, NUMBER, DIGESTS | {"head.weight": "cc", "version": str(NUMBER)})
    found = parts(runs)
    assert found["weights before"].same
    assert (found["weights after"].different, found["weights after"].first) == (1, "tensor head.weight")


def test_what_the_run_does_not_hold_is_named(runs: tuple[RunFolder, RunFolder]) -> None:
    for path in (*runs[0].digests.iterdir(), *runs[0].rollouts.iterdir()):
        path.unlink()
    found = parts(runs)
    assert {name for name, part in found.items() if part.note == NOT_RECORDED} == {
        "weights before",
        "samples",
        "weights after",
    }
    assert found["losses"].compared == 2
    assert report(runs).same


def test_a_line_that_is_being_written_is_no_iteration_yet(runs: tuple[RunFolder, RunFolder]) -> None:
    with runs[0].metrics_file.open("a") as file:
        file.write('{"step": 4, "reward/me')
    assert list(read_metrics(runs[0].metrics_file)) == [NUMBER]


def test_the_verdict_names_the_cause_before_its_effects(runs: tuple[RunFolder, RunFolder]) -> None:
    write_digests(runs[1].digests, NUMBER, {})
    pq.write_table(
        samples(response_tokens=[[5, 6], [7], [8, 9, 11], []]), runs[1].rollouts / "iteration-000003.parquet"
    )
    found = report(runs)
    assert not found.same
    assert found.verdict == (
        "differs first in iteration 3, tokens: prompt 7, sample 0, token 2: 10 recorded, 11 replayed"
    )
    data = json.loads(json.dumps(found.to_json()))
    assert data["same"] is False
    assert data["verdict"] == found.verdict
    assert [part["name"] for part in data["iterations"][0]["parts"] if part["different"]] == ["tokens", "weights after"]


@pytest.mark.parametrize("exact", [True, False])
def test_the_console_shows_every_part_and_what_to_expect(runs: tuple[RunFolder, RunFolder], exact: bool) -> None:
    write_metrics(runs[1], METRICS | {"loss/policy": 0.5})
    out = io.StringIO()
    report(runs, taken=True, exact=exact).show(Console(out, width=80))
    text = out.getvalue()
    assert "iteration 3, losses: loss/policy: 0.25 recorded, 0.5 replayed" in text
    assert ("run.exact=false" in text) is not exact
    for name in ("weights before", "tokens", TAKEN, "weights after", "verdict"):
        assert name in text


@pytest.mark.parametrize(("loss", "code"), [(0.25, 0), (0.5, 1)])
def test_the_command_tells_by_its_exit_code_and_in_json(
    runs: tuple[RunFolder, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, code: int
) -> None:
    write_metrics(runs[1], METRICS | {"loss/policy": loss})
    asked: list[tuple[Any, ...]] = []
    module = types.ModuleType("rlhf_ray.trainers.replay")
    module.replay_iteration = lambda *given: asked.append(given) or report(runs)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlhf_ray.trainers.replay", module)
    file = tmp_path / "report.json"
    command = ["replay", "runs/a", "--iteration", "3", "--from", "prompts", "--json", str(file), "learner.ranks=2"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == code, done.output
    assert json.loads(file.read_text())["same"] is (code == 0)
    assert asked[0][:4] == (Path("runs/a"), 3, "prompts", ("learner.ranks=2",))


def test_digests_are_kept_per_version_and_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "digests"
    assert read_digests(folder, 1) is None
    write_digests(folder, 1, {"b": "2", "a": "1"})
    write_digests(folder, 1, {"a": "3", "b": "2"})
    assert read_digests(folder, 1) == {"a": "3", "b": "2"}
    assert json.loads((folder / "version-000001.json").read_text())["weights"] == combined({"b": "2", "a": "3"})
    assert combined({"a": "3", "b": "2"}) != combined({"a": "2", "b": "3"})
