"""Whole PPO runs with every kind of actor: what they leave behind, failing rewards, lost actors, LoRA."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from click.testing import CliRunner
from faulty_rewards import WELL
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM

from rlhf_ray.cli.main import main
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

RUN = "all-actors"
COLUMNS = ("short", "quality", "patient", "bulk", "keyed", "keyed/tone", "keyed/facts")
ACTORS = {
    "generator/0",
    "generator/1",
    "learner/0",
    "learner/1",
    "reference/0",
    "writer/0",
    "reward/short/0",
    "reward/quality/0",
    "reward/patient/0",
    "reward/bulk/0",
    "reward/keyed/0",
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
        "rewards.patient={type: function, function: 'faulty_rewards:waiting', concurrency: 4, timeout_s: 1,"
        " on_failure: leave_out, arguments: {faults: {gil: [1], raises: [2], none: [3]}}}",
        "rewards.bulk={type: function, function: 'faulty_rewards:batch', batch_size: 4, timeout_s: 1,"
        " on_failure: skip_sample, arguments: {faults: {dies: [5], nan: [6]}}}",
        "rewards.keyed={type: function, function: 'faulty_rewards:Judge.keys', constructor: {value: 0.25},"
        " on_failure: leave_out, arguments: {faults: {wrong_type: [9], none: [10]}}}",
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
    assert set(tables[0].column_names) == fixed | {f"reward/{name}" for name in COLUMNS}
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
    for number, row in ((row["number"], row) for row in rows):
        patient = None if number in (1, 2, 3) else WELL
        bulk = None if number in (5, 6) else WELL
        facts = None if number in (9, 10) else WELL
        keyed = None if number == 9 else 0.25 + (facts or 0.0)
        assert [row[f"reward/{name}"] for name in ("patient", "bulk", "keyed")] == [patient, bulk, keyed]
        assert row["reward/keyed/facts"] == facts
        total = row["reward/short"] + 0.3 * row["reward/quality"] + sum(v or 0.0 for v in (patient, bulk, keyed))
        if number in (1, 2, 9):
            total *= 4.3 / 3.3  # the other weights stand in
        assert row["reward"] == (None if bulk is None else pytest.approx(total))

    quarantined = lines(result.folder / "quarantine" / "rewards.jsonl")
    found = sorted((line["component"], line["prompt_id"], line["kind"]) for line in quarantined)
    assert found == [
        ("bulk", 5, "died"), ("bulk", 6, "not_finite"), ("keyed", 9, "wrong_type"), ("patient", 1, "timeout"),
        ("patient", 2, "raised"),
    ]  # fmt: skip
    tracebacks = {line["prompt_id"]: line["traceback"] for line in quarantined}
    assert "ValueError: boom" in tracebacks[2]
    counts = {
        "dropped_samples": 2,
        "patient/failed": 2,
        "bulk/failed": 2,
        "keyed/failed": 1,
        "patient/did_not_apply": 1,
    }
    assert {name: sum(metrics[f"reward/{name}"] for metrics in result.history) for name in counts} == counts


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
    limits = ["kl.coef=0", "ppo.samples_per_minibatch=4", "data.max_prompt_tokens=4", "data.too_long=drop"]
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
    torch.testing.assert_close(adapted.log_softmax(-1), after.log_softmax(-1), atol=1e-5, rtol=0)
