"""SFT and reward modelling on real learner actors: they learn, export, resume bit for bit, and end well when killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from tiny_runs import TinyRuns
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.errors import InfrastructureError
from rlhf_ray.models.load import load_scalar_lm
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.reward_model import RewardTrainer
from rlhf_ray.trainers.sft import SFTTrainer
from rlhf_ray.trainers.stage_result import StageResult

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


class InterruptAfterCheckpoint(Callback):
    """What a second Ctrl-C does, right after checkpoint `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, path: Path) -> None:
        if path.name == f"step-{self.step:06d}":
            raise KeyboardInterrupt


class StopAfter(Callback):
    """Asks for the end of the run after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_start(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        if iteration == self.step:
            self.trainer.request_stop("enough")


class KillLearner(Callback):
    """Kills the actor of this name after each step."""

    def __init__(self, actor: str) -> None:
        self.actor = actor

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        ray.kill(ray.get_actor(self.actor))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def sft(ray_local: None, tiny: TinyRuns, root: Path) -> StageResult:
    """An SFT run of 8 steps on packed demonstrations that nothing interrupts."""
    return SFTTrainer(tiny.sft(root, "sft", "checkpoint.every=3", "sft.packing=true")).train()


@pytest.fixture(scope="module")
def reward(ray_local: None, tiny: TinyRuns, root: Path) -> StageResult:
    """A reward model after 16 steps that nothing interrupts."""
    return RewardTrainer(tiny.reward_model(root, "reward")).train()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(result: StageResult) -> dict[str, torch.Tensor]:
    return load_file(result.model / "model.safetensors")


def test_sft_learns_and_exports_a_plain_model(sft: StageResult, tiny: TinyRuns) -> None:
    assert sft.steps == len(sft.history) == 8
    assert sft.after["eval/loss"] < 0.7 * sft.before["eval/loss"]
    assert sft.after["eval/token_accuracy"] > sft.before["eval/token_accuracy"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(sft.model), AutoTokenizer.from_pretrained(sft.model)
    losses = []
    for row in rows(tiny.folder / "demonstrations_eval.jsonl"):
        prompt, response = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]
        tokens = torch.tensor([*prompt, *response, tokenizer.eos_token_id])
        with torch.no_grad():
            logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-logprobs.gather(1, tokens[1:, None])[len(prompt) - 1 :, 0])
    assert torch.cat(losses).mean().item() == pytest.approx(sft.after["eval/loss"], abs=1e-5)


def test_a_reward_model_learns_and_exports_with_its_scale(reward: StageResult, tiny: TinyRuns) -> None:
    assert reward.after["eval/accuracy"] == 1.0
    assert reward.after["eval/loss"] < 0.5 * reward.before["eval/loss"]
    model = AutoModelForSequenceClassification.from_pretrained(reward.model)
    tokenizer = AutoTokenizer.from_pretrained(reward.model)

    def score(row: dict[str, Any], column: str) -> torch.Tensor:
        text = tokenizer(f"{row['prompt']} {row[column]}")["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([[*text, tokenizer.eos_token_id]])).logits[0, 0]

    held_out, train = rows(tiny.folder / "preferences_eval.jsonl"), rows(tiny.folder / "preferences.jsonl")
    margins = torch.stack([score(row, "chosen") - score(row, "rejected") for row in held_out])
    assert -logsigmoid(margins).mean().item() == pytest.approx(reward.after["eval/loss"], abs=1e-5)
    scores = torch.stack([score(row, column) for row in train for column in ("chosen", "rejected")])
    scale = json.loads((reward.model / "rlhf_ray_reward.json").read_text())
    assert scale["mean"] == pytest.approx(scores.mean().item(), abs=1e-4)
    assert scale["std"] == pytest.approx(scores.std(correction=0).item(), abs=1e-4)


def test_an_interrupted_sft_resumes_bit_for_bit_past_a_damaged_checkpoint(
    sft: StageResult, tiny: TinyRuns, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saving = ("checkpoint.every=3", "checkpoint.asynchronous=false")
    config, folder = tiny.sft(root, "interrupted", *saving, "sft.packing=true"), root / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        SFTTrainer(config, callbacks=[InterruptAfterCheckpoint(6)]).train()
    assert ray.util.list_named_actors() == []
    assert not (folder / "policy").exists()
    shard = folder / "checkpoints" / "step-000006" / "learner" / "rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    resumed = SFTTrainer(config, resume=folder, console=Console()).train()
    assert "step-000006 is damaged (learner/rank-00000.safetensors does not match its checksum)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len(resumed.history) == 5
    assert weights(resumed).keys() == weights(sft).keys()
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(sft).items())
    assert resumed.after == sft.after
    assert resumed.before == sft.before
    steps = [line["step"] for line in rows(folder / "metrics.jsonl") if "loss/sft" in line]
    assert steps == list(range(1, 9))


def test_two_ranks_give_the_weights_of_one_also_when_resumed(reward: StageResult, tiny: TinyRuns, root: Path) -> None:
    config = tiny.reward_model(root, "two-ranks", "learner.ranks=2")
    stopped = RewardTrainer(config, callbacks=[StopAfter(8)]).train()
    assert (stopped.steps, stopped.stopped_because, stopped.interrupted) == (8, "enough", False)
    resumed = RewardTrainer(config, resume=root / "two-ranks").train()
    one, two = weights(reward), weights(resumed)
    assert one.keys() == two.keys()
    worst = max((one[name] - two[name]).abs().max().item() for name in one)
    assert worst < 1e-5
    assert [step["loss/pairwise"] for step in resumed.history] == pytest.approx(
        [step["loss/pairwise"] for step in reward.history[8:]], abs=1e-5
    )


def test_a_lost_rank_ends_the_run_by_name(sft: StageResult, tiny: TinyRuns, root: Path) -> None:
    """Rank 0 notices first, by the error of its torn collective call. Unpacked on two ranks, the loss is the same."""
    config = tiny.sft(root, "lost", "learner.ranks=2", "resources.restarts=0")
    trainer = SFTTrainer(config, callbacks=[KillLearner("lost/learner/1")])
    with pytest.raises(InfrastructureError, match=r"learner/1 was lost: .*killed"):
        trainer.train()
    assert ray.util.list_named_actors() == []
    first = rows(root / "lost" / "metrics.jsonl")[1]
    assert first["loss/sft"] == pytest.approx(sft.history[0]["loss/sft"], abs=1e-5)


def test_conversations_in_memory_train_on_every_reply(tiny: TinyRuns, root: Path) -> None:
    def conversation(i: int) -> list[dict[str, str]]:
        turns = [("user", f"w{i} w9"), ("assistant", "w1 w2 w3"), ("user", f"w{i + 3}"), ("assistant", "w1 w2")]
        return [{"role": role, "content": f" {content} "} for role, content in turns]

    options = {"epochs": 4, "samples_per_step": 8, "loss_on": "assistant", "learning_rate": 1e-2, "dtype": "float32"}
    trainer = SFTTrainer(
        tiny.policy,
        data={"path": [conversation(i) for i in range(32)], "eval_fraction": 0.25, "chat_template": "chatml"},
        training=options,
        run={"root": str(root), "name": "python-sft"},
    )
    result = trainer.train()
    assert result.steps == 4 * 24 // 8
    assert {step["tokens"] for step in result.history} == {8 * (4 + 3)}  # the words of both replies, and their ends
    assert result.after["eval/loss"] < 0.5 * result.before["eval/loss"]
    assert "token accuracy" in result.summary()
    assert SFTTrainer(resume=result.folder).config == trainer.config


def test_rankings_in_memory_train_a_head_with_a_hidden_layer(tiny: TinyRuns, root: Path) -> None:
    rows = [
        {"prompt": f"w{i} w{i + 1}", "responses": ["w1 w2", "w60 w70", "w2 w3"], "scores": [1.0, -1.0, 0.9]}
        for i in range(16)
    ]
    result = RewardTrainer(
        tiny.policy,
        data={"path": rows, "eval_fraction": 0.25},
        training={"epochs": 4, "pairs_per_step": 9, "margin": "scores", "head_hidden": 16, "center_coef": 0.01}
        | {"learning_rate": 1e-3, "dtype": "float32", "learner.ranks": 2},
        run={"root": str(root), "name": "python-reward"},
    ).train()
    assert result.steps == 4 * 36 // 9  # three pairs of each of twelve prompts
    assert result.after["eval/accuracy"] > result.before["eval/accuracy"]
    assert 0 <= result.after["eval/calibration_error"] <= 1
    model, stats = load_scalar_lm(str(result.model)).eval(), RewardStats.load(result.model)
    with torch.no_grad():
        states = model.model(torch.tensor([[5, 6, 1, 2, 129], [5, 6, 60, 70, 129]]))[0][:, -1]
        better, worse = (stats.normalise(float(score)) for score in model.score(states)[:, 0])
    assert better > worse
