"""The report in its three forms, and the harness's results on their way into it."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.evaluation.estimates import Estimate, WinRate
from rlhf_ray.evaluation.harness import read_results
from rlhf_ray.evaluation.report import REPORT_JSON, REPORT_MARKDOWN, Comparison, Report, cell, label_models
from rlhf_ray.tracking.console import Console

pytestmark = pytest.mark.unit


@pytest.fixture
def report() -> Report:
    report = Report({"ppo": "runs/ppo/policy", "sft": "runs/sft/policy"}, facts={"prompts": "2"})
    report.add("ppo", {"reward": Estimate(0.5, 0.4, 0.6, 2), "length/truncated": Estimate(0.25, 0.1, 0.5, 2)})
    report.add("sft", {"reward": Estimate(0.1), "perplexity": None})
    report.comparisons.append(Comparison("reward", "ppo", "sft", WinRate.of(np.array([1.0, 0.0, np.nan]))))
    report.comparisons.append(Comparison("judge", "ppo", "sft", WinRate.of(np.array([1.0, -1.0])), swayed=1))
    report.samples.append({"prompt": "two\nlines", "responses": {"ppo": ("a ```b```", 0.5), "sft": ("c", None)}})
    return report


def test_json_is_strict_and_holds_everything(report: Report) -> None:
    data = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["models"] == {"ppo": "runs/ppo/policy", "sft": "runs/sft/policy"}
    assert data["measures"]["ppo"]["reward"] == {"value": 0.5, "low": 0.4, "high": 0.6, "count": 2}
    assert data["measures"]["sft"]["perplexity"] is None
    first, second = data["comparisons"]
    assert first["result"] == {"wins": 1, "ties": 1, "losses": 0, "missing": 1}
    assert first["win_rate"]["value"] == 0.75
    assert (second["count"], second["swayed"]) == (2, 1)
    assert data["samples"][0]["responses"]["sft"] == ["c", None]


def test_every_measure_has_a_row_and_every_model_a_column(report: Report) -> None:
    assert report.rows() == [
        ["reward", "0.500 [0.400, 0.600]", "0.100"],
        ["length/truncated", "25.0% [10.0%, 50.0%]", "-"],
        ["perplexity", "-", "-"],
    ]
    assert report.comparison_rows()[0][0] == "reward: ppo over sft"
    assert report.comparison_rows()[0][2] == "1 / 1 / 0, 1 without a verdict"
    assert report.comparison_rows()[1][2] == "1 / 0 / 1, 1 swayed by the order"


def test_values_are_read_by_name(report: Report) -> None:
    assert report.value("reward") == 0.5
    assert report.value("reward", "sft") == 0.1
    assert math.isnan(report.value("perplexity", "sft"))
    with pytest.raises(KeyError):
        report.value("nothing")


def test_markdown_quotes_what_the_models_said(report: Report) -> None:
    text = report.to_markdown()
    assert "| reward | 0.500 [0.400, 0.600] | 0.100 |" in text
    assert "> two\n> lines" in text
    assert "````text\na ```b```\n````" in text  # a longer fence than any in the response
    assert "**ppo** (0.5)" in text
    assert "**sft**\n" in text


def test_files_are_written_and_the_console_stays_within_80_columns(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    assert json.loads((tmp_path / REPORT_JSON).read_text()) == json.loads(report.to_json())
    assert (tmp_path / REPORT_MARKDOWN).read_text() == report.to_markdown()
    assert Report.read(tmp_path).to_json() == report.to_json()
    assert Report.read(tmp_path).value("reward") == 0.5
    out = io.StringIO()
    report.show(Console(out, width=80, terminal=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("reward: ppo over sft" in line and "75.0%" in line for line in lines)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["runs/ppo-1/policy"], ["ppo-1"]),
        (["/a/ppo/policy", "/a/sft/policy"], ["ppo", "sft"]),
        (["/a/x/policy", "/b/x/policy"], ["a/x", "b/x"]),
        (["gpt2", "org/gpt2"], ["gpt2", "org/gpt2"]),
        (["meta/llama", "other/mistral"], ["llama", "mistral"]),
        (["gpt2", "gpt2"], ["gpt2 (1)", "gpt2 (2)"]),
    ],
)
def test_labels_tell_the_models_apart(names: list[str], labels: list[str]) -> None:
    assert label_models(names) == dict(zip(labels, names, strict=True))


def test_large_and_missing_numbers_stay_readable() -> None:
    assert cell("perplexity", Estimate(123456.789, 120000.0, 130000.0)) == "123,456.8 [120,000.0, 130,000.0]"
    assert cell("reward", None) == "-"


def test_harness_results_become_estimates() -> None:
    results = {
        "truthfulqa_mc2": {"alias": "truthfulqa_mc2", "acc,none": 0.4, "acc_stderr,none": 0.01, "sample_len": 817},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A", "sample_len": 4},
    }
    measures = read_results(results)
    assert list(measures) == ["truthfulqa_mc2/acc", "gsm8k/exact_match,strict-match"]
    accuracy = measures["truthfulqa_mc2/acc"]
    assert accuracy is not None
    assert (accuracy.value, accuracy.count) == (0.4, 817)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.4 - 0.0196, 0.4 + 0.0196), abs=1e-5)
    assert measures["gsm8k/exact_match,strict-match"] == Estimate(0.25, count=4)
