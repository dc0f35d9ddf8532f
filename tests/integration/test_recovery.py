"""Ranks of a learner die or hang, and the stage ends with the bits that it would have had."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from exact_runs import assert_same_weights, metrics
from tiny_runs import TinyRuns

from rlhf_ray.config import SFTConfig
from rlhf_ray.errors import InfrastructureError
from rlhf_ray.trainers.sft import SFTTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recovery")


def two_ranks(tiny: TinyRuns, root: Path, name: str, *overrides: str) -> SFTConfig:
    """Eight steps, checkpoints after the third and the sixth."""
    changes = [
        "run.exact=true",
        "learner.ranks=2",
        "checkpoint.every=3",
        "tracking.tensorboard=false",
        "sft.eval_every=4",
    ]
    return tiny.sft(root, name, *changes, *overrides)


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, tiny: TinyRuns, root: Path) -> Path:
    return SFTTrainer(two_ranks(tiny, root, "undisturbed")).train().folder


def fault(once: Path, actor: str, phase: str, after: int, action: str = "kill") -> dict[str, Any]:
    return {"actor": actor, "phase": phase, "after": after, "action": action, "once": str(once)}


def inject(monkeypatch: pytest.MonkeyPatch, *faults: dict[str, Any]) -> None:
    monkeypatch.setenv("RLHF_RAY_FAULTS", json.dumps(faults))


def failures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]


def test_either_rank_dies_and_the_stage_ends_as_it_would_have(
    undisturbed: Path, tiny: TinyRuns, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, and between two; the second is of the group that replaced the first."""
    inject(
        monkeypatch,
        fault(tmp_path / "first", "learner/0", "update", 2),
        fault(tmp_path / "second", "learner/1", "update", 5),
    )
    # synchronous: the second loss finds the checkpoint of step 3 whole, however slow the disk is
    result = SFTTrainer(two_ranks(tiny, root, "ranks", "checkpoint.asynchronous=false")).train()
    assert (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()
    assert metrics(result.folder) == metrics(undisturbed)
    assert len(result.history) == 8
    assert_same_weights(result.folder, undisturbed)
    first, back, second, again = failures(result.folder)
    assert (first["iteration"], second["iteration"]) == (2, 5)
    assert first["action"] == "starting the learner again from iteration 1 (attempt 1), 1 to replay"
    assert second["action"] == "starting the learner again from iteration 4 (attempt 2), 1 to replay"
    assert {first["phase"], second["phase"]} == {"step"}
    assert back["recovery_s"] > 0
    assert again["recovery_s"] > 0


def test_without_restarts_the_run_ends_and_can_be_resumed(
    undisturbed: Path, tiny: TinyRuns, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_ranks(tiny, root, "ended", "resources.restarts=0")
    inject(monkeypatch, fault(tmp_path / "once", "learner/1", "update", 5))
    with pytest.raises(InfrastructureError, match=r"(?s)learner was lost 1 times.*--resume .*ended goes on"):
        SFTTrainer(config).train()
    assert ray.util.list_named_actors() == []
    assert metrics(root / "ended") == metrics(undisturbed)[:6]  # the start and step 4 were evaluated
    SFTTrainer(config, resume=root / "ended").train()
    assert metrics(root / "ended") == metrics(undisturbed)
    assert_same_weights(root / "ended", undisturbed)


@pytest.mark.chaos
def test_a_rank_that_hangs_is_ended_after_its_stacks_were_written(
    undisturbed: Path, tiny: TinyRuns, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, fault(tmp_path / "once", "learner/1", "update", 5, "hang"))
    config = two_ranks(tiny, root, "hung", "resources.call_timeout_s=30")
    folder = SFTTrainer(config).train().folder
    assert metrics(folder) == metrics(undisturbed)
    assert_same_weights(folder, undisturbed)
    loss = next(line for line in failures(folder) if line["action"].startswith("starting"))
    assert "What the threads of all ranks were doing is in" in loss["cause"]
    stacks = next((folder / "logs").glob("stacks-*.txt")).read_text()
    assert "===== learner/0 =====" in stacks
    assert "faults.py" in stacks.split("===== learner/1 =====")[1]
