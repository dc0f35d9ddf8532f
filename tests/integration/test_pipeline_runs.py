"""A pipeline by its command: interrupted, continued, left alone when nothing changed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM

from rlhf_ray import RLHFTrainer
from rlhf_ray.cli.main import main
from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.tracking.console import Advance, Console

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

YAML = """
run: {root: ROOT, name: all}
sft: {include: TINY/sft.yaml, sft: {epochs: 1}}
dpo:
  include: TINY/dpo.yaml
  model: {name: "${sft}"}
  dpo: {epochs: 1}
  checkpoint: {every: 1}
evaluation:
  model: {name: "${dpo}"}
  against: "${sft}"
  perplexity: {path: TINY/demonstrations_eval.jsonl}
"""


class InterruptedIn(Console):
    """Ctrl-C, twice, in the third step of a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.interrupted = stage

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Advance]:
        with super().progress(title, total) as advance:
            done = 0.0

            def counted(count: float = 1, note: str = "") -> None:
                nonlocal done
                done += count
                if title == self.interrupted and done == 3:
                    raise KeyboardInterrupt
                advance(count, note)

            yield counted


@pytest.fixture(scope="module")
def file(ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a pipeline that was killed in its second stage."""
    root = tmp_path_factory.mktemp("pipeline")
    path = root / "pipeline.yaml"
    path.write_text(YAML.replace("ROOT", str(root)).replace("TINY", str(tiny.folder)))
    with pytest.raises(KeyboardInterrupt):
        RLHFTrainer(load_config(RLHFConfig, [path]), console=InterruptedIn("dpo")).train()
    return path


@pytest.fixture(scope="module")
def finished(file: Path) -> str:
    """What the command says that does the rest."""
    return run(file)


def run(file: Path, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["pipeline", "--config", str(file), *arguments])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_goes_on_where_the_pipeline_was_killed(file: Path, finished: str) -> None:
    runs = file.parent / "all"
    assert "sft: skipped" in finished
    assert "dpo: goes on, it did not finish" in finished
    assert "evaluation: runs" in finished
    starts = {stage: len(json.loads((runs / stage / "environment.json").read_text())) for stage in ("sft", "dpo")}
    assert starts == {"sft": 1, "dpo": 2}
    steps = [row["step"] for row in rows(runs / "dpo" / "metrics.jsonl") if "loss/dpo" in row]
    assert steps == [1, 2, 3, 4], "the step in hand was done again, none twice"
    assert AutoModelForCausalLM.from_pretrained(runs / "dpo" / "policy").config.name_or_path
    report = json.loads((runs / "evaluation" / "report.json").read_text())
    assert report["models"] == {stage: str(runs / stage / "policy") for stage in ("dpo", "sft")}
    perplexities = [report["measures"][stage]["perplexity"]["value"] for stage in ("dpo", "sft")]
    assert perplexities[0] != perplexities[1]


def written(runs: Path) -> dict[Path, int]:
    """When each file below was written, but for those that say who runs there and with which options."""
    files = (path for path in runs.rglob("*") if path.is_file() and path.name not in ("lock", "pipeline.yaml"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_nothing_is_left_to_do(file: Path, finished: str) -> None:
    runs = file.parent / "all"
    before = written(runs)
    said = run(file, "sft.resources.threads=1", "dpo.tracking.tensorboard=false")
    assert said.count("skipped, unchanged since") == 3
    assert written(runs) == before
    gain = rows(runs / "sft" / "metrics.jsonl")
    first, last = gain[0]["eval/loss"], gain[-1]["eval/loss"]
    assert f"held-out loss {first:.4g} -> {last:.4g}" in said, "results are read back"
    assert "held-out reward margin 0 ->" in said


def test_stages_that_cannot_be_are_refused_before_any_starts(file: Path, finished: str) -> None:
    for arguments, problem in (
        (["--from", "ppo"], "no stage 'ppo' to start from: there are sft, dpo, evaluation"),
        (["dpo.model.name=${ppo}"], "dpo.model.name names ${ppo}, but there is ${sft}"),
    ):
        refused = CliRunner().invoke(main, ["pipeline", "--config", str(file), *arguments])
        assert refused.exit_code == 2
        assert problem in refused.output
