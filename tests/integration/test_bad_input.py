"""Bad input at the command line: exit code 2, a message that says what to do, before any actor starts."""

import json
from pathlib import Path

import pytest
import ray
from click.testing import CliRunner, Result
from tiny_runs import TinyRuns

from rlhf_ray.cli.main import main
from rlhf_ray.trainers.run_folder import SUBMITTED_JOB_VARIABLE

pytestmark = pytest.mark.integration

#: (stage, overrides with {data} for the folder below, what the message must say)
BAD = {
    "unknown key": ("ppo", ["ppo.clip_rang=0.3"], ["ppo.clip_rang: unknown key", "did you mean clip_range?"]),
    "wrong type": ("sft", ["sft.epochs=many"], ["sft.epochs", "many"]),
    "out of bounds": ("reward", ["learner.learning_rate=-1"], ["learner.learning_rate: -1", "more than 0"]),
    "does not divide": ("ppo", ["ppo.samples_per_minibatch=3"], ["3 does not divide", "nearest: 2 or 4"]),
    "missing file": ("ppo", ["data.path={data}/nowhere.jsonl"], ["nowhere.jsonl", "does not exist"]),
    "malformed JSONL": ("ppo", ["data.path={data}/torn.jsonl"], ["torn.jsonl', line 3: malformed JSON"]),
    "empty dataset": ("sft", ["data.path={data}/empty.jsonl"], ["empty.jsonl"]),
    "missing column": ("reward", ["data.path={data}/prompts.jsonl"], ["chosen", "prompt"]),
    "too few prompts": ("ppo", ["ppo.prompts_per_iteration=64"], ["64", "has only 16 prompts"]),
    "prompt over the limit": (
        "ppo", ["data.max_prompt_tokens=4"], ["5 tokens, over the limit of 4", "4 of 16 rows", "'drop'", "'truncate'"],
    ),
    "prompt over the context": (
        "ppo", ["generation.max_context_tokens=12"], ["over the limit of 4", "data.too_long"],
    ),
    "no room for a prompt": ("ppo", ["generation.max_new_tokens=32"], ["leaves no room for a prompt"]),
    "more context than the model has": (
        "ppo", ["generation.max_context_tokens=4096"], ["max_context_tokens: 4096", "takes 128 tokens at most"],
    ),
    "prompt and response over the context": (
        "ppo", ["data.max_prompt_tokens=30"], ["data.max_prompt_tokens: 30", "exceed the context of 32 tokens"],
    ),
    "absent hub model": ("ppo", ["model.name=nobody/nothing"], ["'nobody/nothing'", "HF_HUB_OFFLINE", "local path"]),
    "absent reward model": (
        "ppo", ["rewards.judge={{type: neural, model: nobody/judge}}"], ["'nobody/judge'", "local path"],
    ),
    "path that does not exist": ("sft", ["model.name=./nowhere"], ["'./nowhere' does not exist"]),
    "folder that is no model": ("reward", ["model.name={data}/logs"], ["holds no config.json"]),
    "reward module not importable": (
        "ppo", ["rewards.short.function=nowhere:short"], ["there is no module `nowhere`", "working directory"],
    ),
    "reward function absent": (
        "ppo", ["rewards.short.function=tiny_rewards:shrt"], ["`tiny_rewards` has no `shrt`", "Did you mean `short`?"],
    ),
    "reward parameter that is no column": (
        "ppo", ["rewards.short.function=tiny_rewards:of_a_missing_column"], ["needs `truth`", "`topic`"],
    ),
    "critic of another vocabulary": (
        "ppo", ["critic.init_from={data}/other"], ["critic.init_from", "vocabulary of 140", "one of 130"],
    ),
    "reference of another vocabulary": (
        "ppo", ["reference.model={data}/other"], ["reference.model", "vocabulary of 140", "one of 130"],
    ),
    "biased old log-probs": (
        "ppo", ["ppo.old_logprobs=generator", "generation.temperature=0.7"], ["ppo.old_logprobs", "temperature"],
    ),
    "KL loss without a gradient": ("ppo", ["kl.placement=loss"], ["kl: estimator k1 in the loss pulls nowhere"]),
    "no reward enabled": ("ppo", ["rewards.short.enabled=false"], ["No reward component is enabled"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tiny: TinyRuns) -> Path:
    """The tiny runs' folder with damaged files beside the good ones."""
    folder = tiny.folder
    (folder / "torn.jsonl").write_text('{"prompt": "w1"}\n{"prompt": "w2"}\n{"prompt": "w\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "logs").mkdir()
    other = folder / "other"
    other.mkdir()
    config = json.loads((Path(tiny.policy) / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 140}))
    return folder


def run(stage: str, data: Path, root: Path, *overrides: str) -> Result:
    place = [f"run.root={root}", "run.name=bad"]
    return CliRunner().invoke(main, [stage, "-c", str(data / f"{stage}.yaml"), *place, *overrides])


@pytest.mark.parametrize("case", BAD)
def test_refused_before_a_run_folder_exists(case: str, data: Path, tmp_path: Path) -> None:
    stage, overrides, words = BAD[case]
    result = run(stage, data, tmp_path, *(override.format(data=data) for override in overrides))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in " ".join(result.stderr.split())] == [], result.stderr
    assert list(tmp_path.iterdir()) == []  # made before Ray is joined, so there is no actor either


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("ppo", "resources.cpus_per_actor=1", "5 actors ask for 5 CPUs and 0 GPUs, the cluster has 2 and 0"),
        ("sft", "resources.num_gpus=8", "1 actors ask for 1 CPUs and 8 GPUs, the cluster has 2 and 0"),
        ("ppo", "generation.tensor_parallel_size=2", "generation.tensor_parallel_size: 2 asks for as many GPUs"),
    ],
)
def test_more_than_the_cluster_has(
    ray_local: None, data: Path, tmp_path: Path, stage: str, override: str, words: str
) -> None:
    result = run(stage, data, tmp_path, override)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert ray.util.list_named_actors() == []
    assert list((tmp_path / "bad" / "logs").iterdir()) == []
    again = run(stage, data, tmp_path)
    assert again.exit_code == 2
    assert f"continue that run with --resume {tmp_path / 'bad'}" in again.stderr


def test_a_submitted_job_needs_an_absolute_root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_JOB_VARIABLE, "{}")
    result = run("sft", data, Path("runs"))
    assert result.exit_code == 2
    assert "run.root: 'runs' is relative, but a submitted job runs in a temporary copy" in result.stderr
