"""Whole PPO runs with every kind of actor: what they leave behind, failing rewards, lost actors, LoRA."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from click.testing import CliRunner
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM

from rlhf_ray.cli.main import main
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RUN = "all-actors"
ACTORS = {
    "generator/0",
    "generator/1",
    "learner/0",
    "learner/1",
    "reference/0",
    "writer/0",
    "reward/short/0",
    "reward/quality/0",
    "reward/fragile/0",
    "reward/shaky/0",
}


class Watcher(Callback):
    """Notes the actors' names while they run; after the first iteration two scorers and the reference die."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        self.seen |= set(ray.util.list_named_actors())
        if iteration == 1:
            for lost in ("reward/quality/0", "reward/short/0", "reference/0"):
                ray.kill(ray.get_actor(f"{RUN}/{lost}"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def everything(ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[PPOResult, Watcher]:
    """Two iterations over all 16 prompts with all kinds of actors, failing rewards and lost actors among them."""
    watcher = Watcher()
    config = tiny.ppo(
        tmp_path_factory.mktemp("ppo"),
        RUN,
        "generation.replicas=2",
        "learner.ranks=2",
        f"rewards.quality={{type: neural, model: {tiny.reward}, weight: 0.3}}",
        "rewards.fragile={type: function, function: 'tiny_rewards:raises_on_some', on_failure: skip_sample}",
        "rewards.shaky={type: function, function: 'tiny_rewards:hangs_or_nan_on_some', on_failure: leave_out,"
        " timeout_s: 1}",
        f"data.eval_path={tiny.folder / 'prompts_eval.jsonl'}",
        "evaluation.prompts=6",
        "tracking.tensorboard=true",
        "ppo.samples_per_minibatch=4",
    )
    return PPOTrainer(config, callbacks=[watcher]).train(), watcher


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_actors_carry_the_run_s_name_and_end_with_it(everything: tuple[PPOResult, Watcher]) -> None:
    assert everything[1].seen == {f"{RUN}/{actor}" for actor in ACTORS}
    assert ray.util.list_named_actors() == []
    logs = {path.stem for path in (everything[0].folder / "logs").glob("*.log")}
    assert logs == {actor.replace("/", "-") for actor in ACTORS}


def test_metrics_reach_file_and_tensorboard(everything: tuple[PPOResult, Watcher]) -> None:
    result, _ = everything
    iterations = [line for line in lines(result.folder / "metrics.jsonl") if "reward/mean" in line]
    assert [line["step"] for line in iterations] == [1, 2]
    assert [line["weights/version"] for line in iterations] == [1, 2]
    for line in iterations:
        assert line["audit/tokens"] > 0
        assert line["audit/max_gap"] < 1e-4
        assert line["policy/grad_norm"] > 0
        assert line["critic/grad_norm"] > 0
    assert result.history[0]["kl/mean"] == pytest.approx(0, abs=1e-4)
    assert result.history[1]["kl/mean"] != 0
    assert result.before is not None
    assert result.after is not None
    assert len(result.after.responses) == 6
    events = EventAccumulator(str(result.folder / "tensorboard")).Reload()
    assert set(iterations[0]) - {"step"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("reward/mean")] == pytest.approx(
        [line["reward/mean"] for line in iterations]
    )


def test_rollouts_are_plain_parquet(everything: tuple[PPOResult, Watcher]) -> None:
    folder = everything[0].folder / "rollouts"
    assert sorted(path.name for path in folder.iterdir()) == ["iteration-000001.parquet", "iteration-000002.parquet"]
    tables = [pq.read_table(path) for path in sorted(folder.iterdir())]
    fixed = {"prompt_id", "sample_index", "policy_version", "prompt", "response", "prompt_tokens", "response_tokens"}
    fixed |= {"response_logprobs", "finish_reason", "number", "topic", "reference_logprobs", "reward"}
    assert set(tables[0].column_names) == fixed | {
        f"reward/{name}" for name in ("short", "quality", "fragile", "shaky")
    }
    rows = [row for table in tables for row in table.to_pylist()]
    assert sorted(row["prompt_id"] for row in rows) == list(range(16))
    assert [set(table["policy_version"].to_pylist()) for table in tables] == [{0}, {1}]
    for row in rows:
        assert len(row["response_tokens"]) == len(row["response_logprobs"]) == len(row["reference_logprobs"])
        assert row["topic"] == f"w{row['number']}"
        assert row["reward/short"] == pytest.approx(1 - len(row["response"].split()) / 20)
    first = tables[0].to_pylist()  # the policy is still its own reference
    gaps = [
        abs(a - b) for row in first for a, b in zip(row["response_logprobs"], row["reference_logprobs"], strict=True)
    ]
    assert max(gaps) < 1e-4


def test_failed_rewards_are_dropped_or_left_out_and_never_a_number(everything: tuple[PPOResult, Watcher]) -> None:
    result, _ = everything
    rows = [row for path in (result.folder / "rollouts").iterdir() for row in pq.read_table(path).to_pylist()]
    weights = {"short": 1.0, "quality": 0.3, "fragile": 1.0, "shaky": 1.0}
    for row in rows:
        number, values = row["number"], {name: row[f"reward/{name}"] for name in weights}
        expected: float | None = sum(weights[name] * (values[name] or 0) for name in weights)
        if number % 4 == 1:  # raises: the sample is dropped
            assert values["fragile"] is None
            expected = None
        elif number % 4 == 2 or number == 3:  # NaN, or hangs: the other weights stand in
            assert values["shaky"] is None
            expected = expected * 3.3 / 2.3 if expected is not None else None
        else:
            assert None not in values.values()
        assert row["reward"] == (None if expected is None else pytest.approx(expected))
    quarantined = lines(result.folder / "quarantine" / "rewards.jsonl")
    found = sorted((line["component"], line["prompt_id"], line["kind"]) for line in quarantined)
    raised = [("fragile", number, "raised") for number in (1, 5, 9, 13)]
    odd = [("shaky", 2, "not_finite"), ("shaky", 3, "timeout")]
    assert found == raised + odd + [("shaky", number, "not_finite") for number in (6, 10, 14)]
    by_row = {(line["component"], line["prompt_id"]): line for line in quarantined}
    assert "ValueError: boom on row 5" in by_row["fragile", 5]["traceback"]
    assert "hangs_or_nan_on_some" in by_row["shaky", 3]["traceback"]
    for name, count in (("reward/dropped_samples", 4), ("reward/fragile/failed", 4), ("reward/shaky/failed", 5)):
        assert sum(metrics[name] for metrics in result.history) == count


def test_the_saved_policy_is_the_last_published_one(everything: tuple[PPOResult, Watcher], tiny: TinyRuns) -> None:
    result, _ = everything
    trained = AutoModelForCausalLM.from_pretrained(result.policy).state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny.policy).state_dict()
    assert trained.keys() == start.keys()
    moved = [name for name in start if not torch.equal(trained[name], start[name])]
    assert len(moved) == len(start)


def test_a_failure_that_should_stop_the_run_does_so_with_everything_said(tiny: TinyRuns, root: Path) -> None:
    function = "{type: function, function: 'tiny_rewards:raises_on_some'}"
    options = [f"run.root={root}", "run.name=fails", f"rewards.fragile={function}", "ppo.prompts_per_iteration=12"]
    limits = ["ppo.samples_per_minibatch=4", "data.max_prompt_tokens=4", "data.too_long=drop"]
    done = CliRunner().invoke(main, ["ppo", "-c", str(tiny.folder / "ppo.yaml"), *options, *limits])
    assert done.exit_code == 2, done.output
    assert "4 dropped" in done.stdout
    number = next(number for number in (1, 5, 9) if f"boom on row {number}" in done.stderr)
    assert f"Reward component `fragile` failed on prompt {number}, sample 0: it raised ValueError" in done.stderr
    assert "in raises_on_some" in done.stderr  # the traceback
    assert "rewards.fragile.on_failure is `fail`. Set it to `skip_sample`" in done.stderr
    assert ray.util.list_named_actors() == []


def test_lora_publishes_merged_weights_and_leaves_an_adapter_for_peft(
    tiny: TinyRuns, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = "model.lora={r: 4, alpha: 8, target_modules: [c_attn, c_proj]}"
    cut = ["data.max_prompt_tokens=4", "data.too_long=truncate"]
    options = [f"model.name={tiny.gpt2}", lora, "critic.kind=auto", "learner.learning_rate=0.01", *cut]
    result = PPOTrainer(tiny.ppo(root, "lora", *options)).train()
    assert "4 truncated" in capsys.readouterr().out
    assert len(result.history) == 2
    for metrics in result.history:  # the second iteration is sampled from the merged weights
        assert metrics["audit/max_gap"] < 1e-4
    assert result.history[1]["kl/mean"] != 0
    merged = AutoModelForCausalLM.from_pretrained(result.policy)
    base = AutoModelForCausalLM.from_pretrained(tiny.gpt2)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        before = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, result.policy / "adapter")(tokens).logits
        after = merged(tokens).logits
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(adapted, after, atol=1e-4, rtol=1e-4)
