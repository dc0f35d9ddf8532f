"""Two models against each other, and a benchmark: every number held against transformers or counted again by hand."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from loopback import Reply, Request, serve
from reward_models import save_bert
from tiny_models import response_logprobs, train
from tiny_runs import TinyRuns
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray import EvaluationReport, evaluate
from rlhf_ray.errors import ConfigError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

GENERATION = {
    "max_new_tokens": 8, "max_context_tokens": 64, "cpu_kv_cache_gib": 0.0625, "dtype": "float32", "temperature": 0.7
}  # fmt: skip
PROMPTS = [{"prompt": f"w{i} w{3 * i} w7", "topic": f"w{i}"} for i in range(14)]
TEXTS = [{"prompt": "w1 w2", "completion": "w3 w4 w5"}, {"prompt": "w9", "completion": "w8"}]
QUESTIONS = [
    {"category": "words", "turns": ["w1 w2", "w3"], "reference": ["w2"]},
    {"category": "more", "turns": ["w4"]},
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: "DATA"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@dataclass(frozen=True)
class Evaluated:
    report: EvaluationReport
    tables: dict[str, list[dict[str, Any]]]  # label -> the rows of its answers
    policy: str
    asked: list[str]  # what the judge was sent


def judged(request: Request) -> Reply:
    """A judge that prefers the longer answer, and grades everything 4."""
    if request.method == "GET":
        return Reply({"data": [{"id": "grader"}]})
    text = request.body["messages"][0]["content"]
    first, second = (text.partition(f"[Answer {name}]\n")[2].partition("\n\n")[0] for name in "AB")
    grade = int(np.sign(len(first) - len(second))) if "[Answer A]" in text else 4
    message = {"role": "assistant", "content": json.dumps({"grade": grade})}
    return Reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


@pytest.fixture(scope="module")
def evaluated(ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("eval")
    policy = trained_copy(tiny.policy, folder / "ppo-1" / "policy")
    (folder / "ppo-1" / "config.yaml").write_text("{}")  # as a run leaves it
    save_bert(folder / "classifier")
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    with serve(judged) as server:
        report = evaluate(
            folder / "ppo-1",
            against=tiny.policy,
            reference=tiny.policy,
            prompts=PROMPTS,
            perplexity=TEXTS,
            reward={
                "short": {"type": "function", "function": "tiny_rewards:short"},
                "topic": {"type": "function", "function": "tiny_rewards:on_topic", "normalize": "running"},
            },
            toxicity={"model": str(folder / "classifier"), "label_index": 1, "threshold": 0.4},
            judge={"base_url": f"{server.url}/v1", "model": "grader"},
            questions={"path": str(folder / "question.jsonl"), "chat_template": "chatml"},
            generation=GENERATION,
            run={"root": str(folder / "runs"), "name": "eval-1"},
        )
        asked = [r.body["messages"][0]["content"] for r in server.requests if r.method == "POST"]
    assert report.folder == folder / "runs" / "eval-1"
    files = {label: report.folder / "evaluations" / f"{label}.parquet" for label in report.models}
    tables = {label: pq.read_table(path).to_pylist() for label, path in files.items()}
    return Evaluated(report, tables, policy, asked)


def trained_copy(model: str, folder: Path) -> str:
    """The model after a few steps, with its tokenizer: another policy with the same vocabulary."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    train(policy, steps=3, learning_rate=3e-3)
    policy.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def test_both_models_answer_the_same_prompts_and_are_measured_alike(evaluated: Evaluated) -> None:
    report = evaluated.report
    assert list(report.models) == ["ppo-1", "llama_untied"]
    assert report.models["ppo-1"] == evaluated.policy
    first, second = evaluated.tables.values()
    assert [row["prompt"] for row in first] == [row["prompt"] for row in PROMPTS] == [row["prompt"] for row in second]
    assert [row["response"] for row in first] != [row["response"] for row in second]
    ours, theirs = report.measures.values()
    assert set(ours) == set(theirs)
    assert all(estimate is not None for estimate in ours.values())
    for label, rows in evaluated.tables.items():
        lengths = [len(row["response_tokens"]) for row in rows]
        assert report.value("length/mean", label) == pytest.approx(np.mean(lengths))
        assert report.value("length/truncated", label) == np.mean([row["finish_reason"] == "length" for row in rows])


def test_rewards_are_those_of_the_functions_on_one_scale(evaluated: Evaluated) -> None:
    topics = []
    for label, rows in evaluated.tables.items():
        words = [row["response"].split() for row in rows]
        short = [1 - len(text) / 20 for text in words]
        assert [row["reward/short"] for row in rows] == pytest.approx(short)
        assert evaluated.report.value("reward/short", label) == pytest.approx(np.mean(short))
        topic = [text.count(row["topic"]) / max(len(text), 1) for text, row in zip(words, rows, strict=True)]
        assert [row["reward/topic"] for row in rows] == pytest.approx(topic)
        topics.append(np.array(topic))
        mean, std = topics[0].mean(), topics[0].std() or 1.0  # of the first model's answers, for both
        total = np.array(short) + (np.array(topic) - mean) / std
        assert [row["reward"] for row in rows] == pytest.approx(total)


def test_win_rates_can_be_counted_again(evaluated: Evaluated) -> None:
    first, second = evaluated.tables.values()
    by = {one.standard: one for one in evaluated.report.comparisons}
    assert list(by) == ["reward", "judge"]
    gains = [a["reward"] - b["reward"] for a, b in zip(first, second, strict=True)]
    assert by["reward"].result.wins == sum(gain > 0 for gain in gains)
    assert by["reward"].result.losses == sum(gain < 0 for gain in gains)
    longer = [len(a["response"]) - len(b["response"]) for a, b in zip(first, second, strict=True)]
    assert (by["judge"].result.wins, by["judge"].result.losses) == (
        sum(x > 0 for x in longer),
        sum(x < 0 for x in longer),
    )
    assert (by["judge"].swayed, by["judge"].result.missing) == (0, 0)


def test_kl_is_what_transformers_gives_and_zero_of_the_reference_itself(evaluated: Evaluated, tiny: TinyRuns) -> None:
    report = evaluated.report
    itself = report.measures["llama_untied"]["kl/response"]
    assert itself is not None
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)
    policy, reference = (load(path) for path in (evaluated.policy, tiny.policy))
    sums, tokens = [], 0
    for row in evaluated.tables["ppo-1"]:
        pair = (row["prompt_tokens"], row["response_tokens"])
        sums.append(float((at_temperature(policy, *pair) - at_temperature(reference, *pair)).sum()))
        tokens += len(row["response_tokens"])
    assert report.value("kl/response") == pytest.approx(np.mean(sums), abs=1e-4)
    assert report.value("kl/token") == pytest.approx(sum(sums) / tokens, abs=1e-5)


def load(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def at_temperature(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs of the response at the sampling temperature, [response tokens]."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / GENERATION["temperature"]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_perplexity_is_what_transformers_gives(evaluated: Evaluated) -> None:
    model, tokenizer = load(evaluated.policy), AutoTokenizer.from_pretrained(evaluated.policy)
    nats, tokens = 0.0, 0
    for row in TEXTS:
        prompt = tokenizer(row["prompt"]).input_ids
        completion = [*tokenizer(row["completion"]).input_ids, tokenizer.eos_token_id]
        nats -= float(response_logprobs(model, prompt, completion).sum())
        tokens += len(completion)
    assert evaluated.report.value("perplexity") == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_toxicity_is_the_share_above_the_threshold(evaluated: Evaluated) -> None:
    for label, rows in evaluated.tables.items():
        values = np.array([row["reward/toxicity"] for row in rows])
        assert ((values > 0) & (values < 1)).all()
        assert len(set(values.round(6))) > 1
        assert evaluated.report.value("toxicity/mean", label) == pytest.approx(values.mean())
        assert evaluated.report.value("toxicity/share_above_threshold", label) == (values > 0.4).mean()


def test_questions_are_asked_turn_by_turn(evaluated: Evaluated) -> None:
    for label in evaluated.report.models:
        for name in ("grade", "turn_1", "turn_2", "words", "more"):
            assert evaluated.report.value(f"questions/{name}", label) == pytest.approx(4)
    conversations = [text for text in evaluated.asked if "[Conversation]" in text]
    assert len(conversations) == 2 * 3
    assert sum("user: w1 w2\n\nassistant: " in text and "user: w3" in text for text in conversations) == 2
    assert sum("[Reference answer]\nw2" in text for text in conversations) == 2


def test_the_report_lies_in_the_run_folder(evaluated: Evaluated) -> None:
    report = evaluated.report
    assert report.folder is not None
    assert json.loads((report.folder / "report.json").read_text()) == json.loads(report.to_json())
    assert "| kl/response |" in (report.folder / "report.md").read_text()
    assert len(report.samples) == 3
    assert {"config.yaml", "environment.json"} <= {path.name for path in report.folder.iterdir()}


def test_a_benchmark_gives_the_accuracy_that_transformers_gives(tiny: TinyRuns, tmp_path: Path) -> None:
    rows = [
        {"question": f"w{i} w{i + 1}", "choices": [f"w{i + 2}", f"w{5 * i % 90} w3", "w4 w5"], "answer": i % 3}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.jsonl")))
    model, tokenizer = load(tiny.policy), AutoTokenizer.from_pretrained(tiny.policy)

    def best(row: dict[str, Any]) -> int:
        prompt = tokenizer(row["question"]).input_ids
        scores = [response_logprobs(model, prompt, tokenizer(text).input_ids).sum() for text in row["choices"]]
        return int(torch.stack(scores).argmax())

    benchmarks = {"tasks": ["tiny_choice"], "include_path": str(tmp_path / "tasks")}
    run = {"root": str(tmp_path / "runs"), "name": "bench"}
    report = evaluate(tiny.policy, benchmarks=benchmarks, generation=GENERATION, run=run)
    accuracy = report.measures["llama_untied"]["tiny_choice/acc"]
    assert accuracy is not None
    assert accuracy.value == pytest.approx(np.mean([best(row) == row["answer"] for row in rows]))
    assert accuracy.count == 12
    assert accuracy.low is not None


def test_what_is_wrong_is_said_before_a_model_is_loaded(tiny: TinyRuns, tmp_path: Path) -> None:
    run = {"root": str(tmp_path / "runs"), "name": "never"}
    with pytest.raises(ConfigError, match="the harness knows no no_such_task"):
        evaluate(tiny.policy, benchmarks=["no_such_task"], run=run)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"The folder .*other.* is no saved model"):
        evaluate(tiny.policy, against=tmp_path / "other", prompts=PROMPTS, run=run)
    assert not (tmp_path / "runs" / "never").exists()
