"""What an evaluation's configuration accepts, and that options, Python arguments and YAML come to the same."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from rlhf_ray.cli.main import main
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.load import load_config, merge_config
from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.build_evaluation import build_evaluation
from rlhf_ray.trainers.evaluation_inputs import EvaluationInputs, saved_model

pytestmark = pytest.mark.unit

RUBRIC: dict[str, Any] = {"base_url": "http://localhost:1/v1", "model": "judge"}
SHORT = {"type": "function", "function": "tiny:short"}


def config(**keys: Any) -> EvalConfig:
    return merge_config(EvalConfig, [("the test", {"model": {"name": "m"}, **keys})])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "nothing to measure: give data"),
        ({"benchmarks": {"tasks": ["x"]}, "rewards": {"short": SHORT}}, "rewards: measured on responses to prompts"),
        ({"perplexity": {"path": "p"}, "reference": "r"}, "reference: measured on responses"),
        ({"questions": {"path": "q"}}, "there is nobody to judge"),
        ({"data": {"path": "p"}, "judge": RUBRIC}, "judge: nothing to judge"),
        ({"data": {"path": "p"}, "reference": "r", "greedy": True}, "the policy itself draws"),
        ({"data": {"path": "p"}, "reference": "r", "generation": {"top_k": 5}}, "the policy itself draws"),
        (
            {"data": {"path": "p"}, "rewards": {"toxicity": SHORT}, "toxicity": {"model": "t"}},
            "the classifier of section toxicity has this name",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**keys)


def test_the_judge_asks_with_either_rubric_and_never_stops_the_evaluation() -> None:
    judge = config(data={"path": "p"}, against="b", judge={**RUBRIC, "concurrency": 3}).judge
    assert judge is not None
    section = judge.component("rubric.txt", -1, 1)
    assert (section.rubric, section.minimum, section.maximum, section.concurrency) == ("rubric.txt", -1, 1, 3)
    assert section.on_failure == "skip_sample"


def test_toxicity_reads_the_response_alone_as_a_probability() -> None:
    toxicity = config(data={"path": "p"}, toxicity={"model": "t"}).toxicity
    assert toxicity is not None
    assert (toxicity.template, toxicity.activation, toxicity.threshold) == ("{response}", "sigmoid", 0.5)


def test_it_is_a_yaml_file(tmp_path: Path) -> None:
    first = config(data={"path": "p"}, rewards={"short": SHORT}, against="b", judge=RUBRIC)
    (tmp_path / "eval.yaml").write_text(first.to_yaml())
    assert load_config(EvalConfig, [tmp_path / "eval.yaml"]) == first


def run_folder(folder: Path) -> Path:
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "config.json").write_text("{}")
    (folder / "config.yaml").write_text("run: {}")
    return folder


def test_a_run_stands_for_its_policy(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "ppo-1")
    assert saved_model(str(run)) == str(run / "policy")
    assert saved_model(str(run / "policy")) == str(run / "policy")
    assert saved_model("org/model") == "org/model"
    inputs = EvaluationInputs(config(model={"name": str(run)}, against=str(run), data={"path": "p"}))
    assert inputs.config.models == [str(run / "policy")] * 2


def test_another_model_has_a_tokenizer_and_revision_of_its_own() -> None:
    model = {"name": "m", "revision": "v1", "tokenizer": "t", "trust_remote_code": True}
    inputs = EvaluationInputs(config(model=model, against="b", data={"path": "p"}))
    ours, other = inputs.model("m"), inputs.model("b")
    assert (ours.revision, ours.tokenizer) == ("v1", "t")
    assert (other.name, other.revision, other.tokenizer, other.trust_remote_code) == ("b", None, None, True)


# --- Python


def shortness(prompt: str, response: str) -> float:
    return -float(len(response))


def test_python_arguments_are_the_same_configuration(tmp_path: Path) -> None:
    built = build_evaluation(
        Path("m"),
        reward=shortness,
        prompts="p.jsonl",
        against="b",
        reference=None,
        perplexity="texts.jsonl",
        benchmarks=["truthfulqa_mc2"],
        judge=RUBRIC,
        questions="q.jsonl",
        toxicity="classifier",
        generation={"max_new_tokens": 9},
        greedy=True,
        run="named",
    )
    assert (built.model.name, built.against, built.reference, built.run.name) == ("m", "b", None, "named")
    assert built.data is not None
    assert built.perplexity is not None
    assert built.questions is not None
    assert built.benchmarks is not None
    assert built.toxicity is not None
    paths = (built.data.path, built.perplexity.path, built.questions.path, built.toxicity.model)
    assert paths == ("p.jsonl", "texts.jsonl", "q.jsonl", "classifier")
    assert (built.benchmarks.tasks, built.generation.max_new_tokens, built.greedy) == (["truthfulqa_mc2"], 9, True)
    assert list(built.rewards) == ["shortness"]


def test_rows_in_memory_are_stored_below_the_runs(tmp_path: Path) -> None:
    built = build_evaluation(
        "m", prompts=["hello", "you"], perplexity=["a text"], run={"root": str(tmp_path / "runs"), "name": "x"}
    )
    assert built.data is not None
    assert built.perplexity is not None
    assert Path(built.data.path).parent == tmp_path / "runs" / "data"
    assert pq.read_table(built.data.path)["prompt"].to_pylist() == ["hello", "you"]
    assert pq.read_table(built.perplexity.path)["text"].to_pylist() == ["a text"]


def test_a_function_of_a_notebook_keeps_its_code() -> None:
    function = eval("lambda prompt, response: 1.0")  # has no import path
    built = build_evaluation("m", reward={"mine": function}, prompts="p")
    section = built.rewards["mine"]
    assert isinstance(section, FunctionRewardSection)
    assert section.code
    again = build_evaluation(built, greedy=True)
    changed = again.rewards["mine"]
    assert isinstance(changed, FunctionRewardSection)
    assert (changed.code, again.greedy) == (section.code, True)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\(generation=\.\.\.\)"):
        build_evaluation("m", prompts="p", generation={"max_new_token": 3})


# --- the command


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["eval", *arguments])
    return result.exit_code, result.output


def test_the_command_shows_what_is_missing() -> None:
    assert invoke()[0] == 2
    assert "nothing to evaluate" in invoke()[1]
    assert "nothing to measure" in invoke("gpt2")[1]
    assert "one MODEL at a time" in invoke("a", "b", "--prompts", "p")[1]


def test_options_are_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[EvalConfig] = []
    monkeypatch.setattr("rlhf_ray.trainers.evaluate.run_evaluation", seen.append)
    run = {"model": {"name": "old"}, "rewards": {"short": SHORT}, "ppo": {"iterations": 3}}
    (tmp_path / "ppo.yaml").write_text(json.dumps(run))
    options = ["--prompts", "p.jsonl", "--against", "b", "--rewards", str(tmp_path / "ppo.yaml"), "--greedy"]
    code, output = invoke("m", *options, "--task", "t1", "--task", "t2", "run.name=7", "generation.max_new_tokens=9")
    assert code == 0, output
    expected = config(
        run={"name": "7"},
        against="b",
        data={"path": "p.jsonl"},
        rewards={"short": SHORT},
        benchmarks={"tasks": ["t1", "t2"]},
        generation={"max_new_tokens": 9},
        greedy=True,
    )
    assert seen == [expected]


def test_a_file_without_rewards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("model: {name: m}\n")
    code, output = invoke("m", "--prompts", "p", "--rewards", str(tmp_path / "sft.yaml"))
    assert code == 2
    assert "rewards: missing" in output


def test_its_schema_is_printed() -> None:
    result = CliRunner().invoke(main, ["config", "schema", "eval"])
    assert result.exit_code == 0
    assert set(json.loads(result.output)["properties"]) >= {"against", "judge", "benchmarks", "perplexity"}
