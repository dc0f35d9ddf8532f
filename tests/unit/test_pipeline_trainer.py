"""A pipeline over stages that only write what they were given: what runs, what is skipped, what goes on."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers import rlhf
from rlhf_ray.trainers.rlhf import RLHFResult, RLHFTrainer
from rlhf_ray.trainers.run_folder import CONFIG_FILE
from rlhf_ray.trainers.run_record import RunRecord
from rlhf_ray.trainers.settings import settings_digest
from rlhf_ray.trainers.stage_result import StageResult
from rlhf_ray.trainers.stages import STAGES, Stage, read_supervised

pytestmark = pytest.mark.unit

YAML = """
run: {root: ROOT, name: all}
sft: {model: {name: base}, data: {path: ROOT/demonstrations.jsonl}}
reward_model: {model: {name: gpt2}, data: {path: ROOT/pairs.jsonl}}
dpo: {model: {name: "${sft}"}, data: {path: ROOT/pairs.jsonl}}
ppo:
  model: {name: "${sft}"}
  data: {path: ROOT/prompts.jsonl}
  rewards: {quality: {type: neural, model: "${reward_model}"}}
  ppo: {iterations: 2}
evaluation: {model: {name: "${ppo}"}, against: "${dpo}", data: {path: ROOT/prompts.jsonl}}
"""
ALL = ["sft", "reward_model", "dpo", "ppo", "evaluation"]


class Stages:
    """Fake stages: each writes its model from its start and its learning rate, and notes that it was called."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.resumed: list[str] = []
        self.seeds: dict[str, int] = {}
        self.killed: str | None = None

    def stage(self, name: str) -> Stage:
        def run(config: Any, resume: Path | None, callbacks: Sequence[Any], console: Console) -> StageResult:
            folder = Path(config.run.root) / name
            (folder / "policy").mkdir(parents=True, exist_ok=resume is not None)
            (folder / CONFIG_FILE).touch()
            if self.killed == name:
                raise KeyboardInterrupt
            (self.ran if resume is None else self.resumed).append(name)
            self.seeds[name] = config.run.seed
            start = Path(config.model.name) / "config.json"
            made = f"{start.read_text() if start.is_file() else config.model.name}, {name}"
            if name != "evaluation":
                made += f" at {config.learner.learning_rate}"
            (folder / "policy" / "config.json").write_text(made)
            (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
            return read_supervised(folder)

        return replace(STAGES[name], run=run, read=read_supervised, gain=lambda result: None, leaves=["policy"])


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    fakes = Stages()
    monkeypatch.setattr(rlhf, "STAGES", {name: fakes.stage(name) for name in ALL})
    monkeypatch.setattr(rlhf, "connect", lambda *arguments: None)
    monkeypatch.setattr(rlhf, "disconnect", lambda cluster: None)
    return fakes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for stem in ("demonstrations", "pairs", "prompts"):
        (tmp_path / f"{stem}.jsonl").write_text("{}\n")
    (tmp_path / "pipeline.yaml").write_text(YAML.replace("ROOT", str(tmp_path)))
    return tmp_path


def pipeline(root: Path, *overrides: str, start: str | None = None) -> tuple[RLHFResult, str]:
    """The result, and what the console said."""
    out = io.StringIO()
    config = load_config(RLHFConfig, [root / "pipeline.yaml"], overrides)
    return RLHFTrainer(config, console=Console(out, width=200)).train(start), out.getvalue()


def test_nothing_runs_twice(root: Path, stages: Stages) -> None:
    first, _ = pipeline(root)
    assert stages.ran == ALL
    assert first.skipped == []
    again, said = pipeline(root, "sft.tracking.tensorboard=false", "ppo.resources.threads=1")
    assert stages.ran == ALL
    assert again.skipped == ALL
    assert again.sft is not None
    assert again.sft.history == [{"loss": 2.0}]
    assert "sft: skipped, unchanged since" in said


@pytest.mark.parametrize(
    ("override", "ran"),
    [
        ("sft.learner.learning_rate=0.5", ["sft", "dpo", "ppo", "evaluation"]),
        ("reward_model.learner.learning_rate=0.5", ["reward_model", "ppo"]),
        ("ppo.kl.coef=0.5", ["ppo"]),
        ("evaluation.greedy=true", ["evaluation"]),
    ],
)
def test_a_change_repeats_the_stage_and_what_it_made_different(
    root: Path, stages: Stages, override: str, ran: list[str]
) -> None:
    pipeline(root)
    stages.ran.clear()
    _, said = pipeline(root, override)
    assert stages.ran == ran
    key = override.partition("=")[0].partition(".")[2]
    assert f"{ran[0]}: runs, {key} was" in said
    assert (root / "all" / "earlier" / f"{ran[0]}-1").is_dir()
    pipeline(root, override)
    assert stages.ran == ran


def test_changed_rows_repeat_what_read_them(root: Path, stages: Stages) -> None:
    pipeline(root)
    stages.ran.clear()
    (root / "pairs.jsonl").write_text("{}\n{}\n")
    pipeline(root)
    assert stages.ran == ["reward_model", "dpo"], "and their models came out as before"


def test_an_interrupted_stage_goes_on(root: Path, stages: Stages) -> None:
    stages.killed = "dpo"
    with pytest.raises(KeyboardInterrupt):
        pipeline(root)
    stages.killed = None
    result, said = pipeline(root)
    assert stages.ran == ["sft", "reward_model", "ppo", "evaluation"]
    assert stages.resumed == ["dpo"]
    assert result.skipped == ["sft", "reward_model"]
    assert "dpo: goes on, it did not finish" in said


def test_an_interrupted_evaluation_begins_again(root: Path, stages: Stages) -> None:
    stages.killed = "evaluation"
    with pytest.raises(KeyboardInterrupt):
        pipeline(root)
    stages.killed = None
    pipeline(root)
    assert (stages.ran, stages.resumed) == (ALL, [])


def test_from_a_stage_on(root: Path, stages: Stages) -> None:
    with pytest.raises(ConfigError, match=r"cannot start from ppo: sft has not finished in .*; start from sft"):
        pipeline(root, start="ppo")
    pipeline(root)
    stages.ran.clear()
    result, _ = pipeline(root, "sft.learner.learning_rate=0.5", start="dpo")
    assert stages.ran == ["dpo", "ppo", "evaluation"]
    assert result.skipped == ["sft", "reward_model"], "as they are, changed or not"
    with pytest.raises(ConfigError, match="no stage 'rlhf' to start from: there are sft, reward_model"):
        pipeline(root, start="rlhf")


def test_the_pipelines_seed_is_every_stages_unless_it_has_its_own(root: Path, stages: Stages) -> None:
    pipeline(root, "run.seed=5", "dpo.run.seed=6")
    assert stages.seeds == {**dict.fromkeys(ALL, 5), "dpo": 6}


def test_what_stands_in_the_metrics_becomes_the_result_again(tmp_path: Path) -> None:
    lines = [
        '{"step": 0, "eval/loss": 3.0}',
        '{"step": 1, "loss/sft": 2.0}',
        '{"step": 2, "loss/sft": null}',
        '{"step": 2, "eval/loss": 1.0}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    result = read_supervised(tmp_path)
    assert (result.before, result.after, result.steps) == ({"eval/loss": 3.0}, {"eval/loss": 1.0}, 2)
    assert result.history[0] == {"loss/sft": 2.0}
    assert result.curves["loss/sft"].tolist()[0] == 2.0


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_stage_in_a_file_of_its_own(root: Path) -> None:
    (root / "stages").mkdir()
    (root / "stages" / "sft.yaml").write_text("model: {name: gpt2}\ndata: {path: rows.jsonl}\nsft: {epochs: 3}\n")
    (root / "whole.yaml").write_text("sft:\n  include: stages/sft.yaml\n  sft: {samples_per_step: 4}\n")
    config = load_config(RLHFConfig, [root / "whole.yaml"])
    assert config.sft is not None
    assert (config.sft.sft.epochs, config.sft.sft.samples_per_step) == (3, 4)
    (root / "stages" / "sft.yaml").write_text("model: {name: gpt2}\ndata: {path: rows.jsonl}\nsft: {epochs: none}\n")
    with pytest.raises(ConfigError, match=r"sft.sft.epochs: .*in .*stages/sft.yaml"):
        load_config(RLHFConfig, [root / "whole.yaml"])
    (root / "whole.yaml").write_text("sft: {include: [1]}\n")
    with pytest.raises(ConfigError, match=r"sft.include: got 1 in .*whole.yaml, expected a list of file names"):
        load_config(RLHFConfig, [root / "whole.yaml"])


def test_a_stage_that_had_finished_when_the_pipeline_was_killed_is_not_gone_on_with(
    root: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have stopped early, and would then train past its stop."""
    run = stages.stage("sft").run

    def finish(config: Any, *arguments: Any) -> None:
        run(config, *arguments)
        RunRecord.new("sft", settings_digest(config), "finished").write(root / "all" / "sft")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setitem(rlhf.STAGES, "sft", replace(rlhf.STAGES["sft"], run=finish))
        with pytest.raises(KeyboardInterrupt):
            pipeline(root)
    result, said = pipeline(root)
    assert stages.resumed == []
    assert stages.ran == ALL
    assert result.skipped == ["sft"]
    assert "sft: skipped, it had finished" in said
    assert pipeline(root)[0].skipped == ALL
