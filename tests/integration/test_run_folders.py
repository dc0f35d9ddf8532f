"""A run folder while its run goes on and after: locked, saved beside the training, resumed by who finds it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_runs import TinyRuns

from rlhf_ray.cli.main import main
from rlhf_ray.config import SFTConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.callbacks import Callback, CallbackError
from rlhf_ray.trainers.resume import run_to_resume
from rlhf_ray.trainers.run_record import status_of
from rlhf_ray.trainers.sft import SFTTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

STEPS = 8


class Intruder(Callback):
    """At step 5 it looks at the run from outside, tries to start a second one there, and then breaks the first."""

    def on_train_start(self, trainer: SFTTrainer) -> None:
        self.trainer, self.whole = trainer, list[str]()

    def on_checkpoint(self, path: Path) -> None:
        self.whole.append(path.name)

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        if iteration == 5:
            self.status = status_of(self.trainer.folder.path)
            with pytest.raises(ConfigError, match=r"is in use by process \d+ on .*; wait for its end"):
                SFTTrainer(self.trainer.config, resume=self.trainer.folder.path).train()
            raise ValueError("no more")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders")


def config(tiny: TinyRuns, root: Path, name: str) -> SFTConfig:
    return tiny.sft(root, name, "checkpoint.every=2", "checkpoint.best=true", "sft.eval_every=2")


@pytest.fixture(scope="module")
def whole(ray_local: None, tiny: TinyRuns, root: Path) -> Path:
    """The folder of a run that nothing interrupts."""
    return SFTTrainer(config(tiny, root, "whole")).train().folder


def runs(*arguments: object) -> Any:
    return json.loads(CliRunner().invoke(main, ["runs", *map(str, arguments), "--json"]).output)


def test_a_broken_run_is_found_and_ends_with_the_same_bits(whole: Path, tiny: TinyRuns, root: Path) -> None:
    intruder, broken = Intruder(), config(tiny, root, "broken")
    with pytest.raises(CallbackError, match="no more"):
        SFTTrainer(broken, callbacks=[intruder]).train()
    assert intruder.status == "running"
    assert "step-000002" in intruder.whole
    found = {run["name"]: (run["status"], run["checkpoint"]) for run in runs("list", root)}
    assert found == {"whole": ("finished", STEPS), "broken": ("failed", 4)}  # the write in flight was waited for
    folder = run_to_resume(broken, broken.run, "sft")
    assert folder == root / "broken"
    SFTTrainer(broken, resume=folder).train()
    one, two = (load_file(path / "policy" / "model.safetensors") for path in (whole, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    shown = runs("show", folder)
    assert (shown["status"], shown["error"], len(shown["starts"])) == ("finished", None, 2)


def test_its_checkpoints_are_whole_and_the_best_one_is_among_them(whole: Path) -> None:
    assert not any(runs("verify", whole)[str(whole)].values())
    checkpoints = runs("show", whole)["checkpoints"]
    metrics = {checkpoint["step"]: checkpoint["metric"] for checkpoint in checkpoints}
    held_out = {}
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "eval/loss" in values and values["step"]:
            held_out[values["step"]] = -values["eval/loss"]
    assert metrics == {step: held_out[step] for step in metrics}
    assert max(held_out, key=held_out.__getitem__) in metrics
    assert {STEPS, STEPS - 2} <= metrics.keys()  # checkpoint.keep_last
