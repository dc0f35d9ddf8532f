"""Methods, batches, async functions and pickled code in the sandbox: who is blamed, and what the others get."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.outcome import Outcome
from rlhf_ray.rewards.sandbox import Sandbox

pytestmark = pytest.mark.integration

SOURCE = r"""
import asyncio, os, re, signal, time
import resource

class Graded:
    made = 0
    def __init__(self, scale, bias=0.0):
        self.scale, self.bias = scale, bias
        Graded.made += 1
    def score(self, prompt, response, truth):
        return self.scale * (response == truth) + self.bias
    async def later(self, prompt, response): return self.scale
    def count(self, prompt, response): return Graded.made
    @staticmethod
    def plain(prompt, response): return 7.0
    @classmethod
    def named(cls, prompt, response): return float(len(cls.__name__))
class Broken:
    def __init__(self): raise OSError("no licence file")
    def score(self, prompt, response): return 1.0

def core_limit(prompt, response): return resource.getrlimit(resource.RLIMIT_CORE)[0]

def parts(prompt, response): return {"words": len(response.split()), "empty": None if response else 0.0}

def lengths(prompts, responses): return [float(len(response)) for response in responses]

def in_batches(prompts, responses, weight, path):
    with open(path, "a") as file: file.write(f"{len(prompts)} ")
    if "raise" in prompts: raise ValueError("boom")
    if "loop" in prompts: re.match(r"(a+)+$", "a" * 64 + "b")
    if "kill" in prompts: os.kill(os.getpid(), signal.SIGKILL)
    if "short" in prompts: return [1.0] * (len(prompts) - 1)
    if "text" in prompts: return "x" * len(prompts)
    return [{"nan": float("nan"), "none": None}.get(p, w) for p, w in zip(prompts, weight)]

async def waits(prompt, response):
    await asyncio.sleep(float(prompt))
    return float(prompt)

async def misbehaves(prompt, response):
    if prompt == "raise": raise ValueError("boom")
    if prompt == "exit": raise SystemExit(3)
    if prompt == "hang": await asyncio.Event().wait()
    if prompt == "stubborn":
        while True:
            try: await asyncio.sleep(30)
            except asyncio.CancelledError: pass
    if prompt == "late": time.sleep(1.45)
    if prompt == "loop": re.match(r"(a+)+$", "a" * 64 + "b")
    if prompt == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if prompt == "text": return "high"
    await asyncio.sleep(0.05)
    return 1.0
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions_for_calls.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))


def run(name: str, prompts: Sequence[str], code: bytes | None = None, **options: Any) -> list[Outcome]:
    """Score with `options` of the section; columns: truth and weight, a number per row."""
    table = {"prompt": prompts, "response": ["yes"] * len(prompts), "truth": ["yes"] * len(prompts)}
    table["weight"] = [float(row) for row in range(len(prompts))]
    section = FunctionRewardSection(function=f"functions_for_calls:{name}", **options)
    with Sandbox(section.with_code(code) if code else section, list(table)) as sandbox:
        return list(sandbox.run(table))


def kinds(outcomes: Sequence[Outcome]) -> list[str | None]:
    return [outcome.failure.kind if outcome.failure else None for outcome in outcomes]


def values(outcomes: Sequence[Outcome]) -> list[float | None]:
    return [outcome.value for outcome in outcomes]


def test_a_method_runs_on_one_instance_made_with_the_constructor_s_arguments() -> None:
    assert values(run("Graded.score", ["p"] * 2, constructor={"scale": 3.0, "bias": 0.5})) == [3.5, 3.5]
    assert values(run("Graded.count", ["p"] * 3, constructor={"scale": 1.0})) == [1.0] * 3


def test_static_class_and_async_methods() -> None:
    assert values(run("Graded.plain", ["p"])) == [7.0]
    assert values(run("Graded.named", ["p"])) == [6.0]
    assert values(run("Graded.later", ["p"] * 3, constructor={"scale": 2.0}, concurrency=2)) == [2.0] * 3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Graded.score", {}, "missing a required argument: 'scale'"),
        ("Graded.score", {"constructor": {"scale": 1, "bas": 2}}, "`bas`"),
        ("Broken.score", {}, "no licence file"),
        ("lengths", {"constructor": {"scale": 1}}, "no method that needs an instance"),
        ("lengths", {"concurrency": 4}, "not async"),
    ],
)
def test_what_cannot_be_made_is_a_config_error(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(name, ["p"], **options)


def test_code_of_a_notebook_runs_without_an_import_path() -> None:
    offset = 2.5

    def inline(prompt: str, response: str, truth: str) -> float:
        return offset + (response == truth)

    inline.__module__ = "__main__"  # cloudpickle then stores it by value, as it does a notebook's
    section = {"code": cloudpickle.dumps(inline)}
    assert values(run("inline", ["p"] * 2, **section)) == [3.5, 3.5]
    with pytest.raises(ConfigError, match="cannot be rebuilt in another process"):
        run("inline", ["p"], code=b"garbage")


def test_a_dict_comes_back_with_its_parts() -> None:
    (outcome,) = run("parts", ["p"], keys={"words": 2.0})
    assert (outcome.value, outcome.parts) == (2.0, {"words": 1.0, "empty": None})


def test_the_child_writes_no_core_file() -> None:
    assert values(run("core_limit", ["p"])) == [0.0]


def test_only_the_culprit_of_a_batch_fails(tmp_path: Path) -> None:
    prompts = [f"p{row}" for row in range(40)]
    bad = {3: "raise", 10: "loop", 17: "kill", 24: "short", 25: "text", 31: "nan", 32: "none"}
    for row, prompt in bad.items():
        prompts[row] = prompt
    path = tmp_path / "calls"
    outcomes = run("in_batches", prompts, batch_size=5, timeout_s=1.0, arguments={"path": str(path)})
    expected = {3: "raised", 10: "timeout", 17: "died", 24: "wrong_type", 25: "wrong_type", 31: "not_finite"}
    assert kinds(outcomes) == [expected.get(row) for row in range(40)]
    assert values(outcomes) == [None if row in bad else float(row) for row in range(40)]
    sizes = [int(size) for size in path.read_text().split()]
    assert (sizes.count(5), sizes.count(1)) == (8, 25)  # five of the eight batches were called again row by row
    assert "not a list with one answer per sample (1)" in str(outcomes[24].failure)


def test_batches_have_the_size_asked_for_and_a_shorter_one_ends_the_table() -> None:
    assert values(run("lengths", ["p"] * 100, batch_size=64)) == [3.0] * 100
    assert values(run("lengths", ["p"] * 100, batch_size=1000)) == [3.0] * 100


def test_async_calls_overlap_and_come_back_in_row_order() -> None:
    waits = ["0.5", "0.4", "0.3", "0.2", "0.1"] * 8
    started = time.monotonic()
    outcomes = run("waits", waits, concurrency=40, timeout_s=20)
    assert values(outcomes) == [float(wait) for wait in waits]
    assert time.monotonic() - started < 6  # 12 s one after the other, besides the start of the process


def test_concurrency_bounds_the_calls_that_run_at_a_time() -> None:
    started = time.monotonic()
    run("waits", ["0.3"] * 8, concurrency=2, timeout_s=20)
    assert time.monotonic() - started > 4 * 0.3


def test_only_the_culprit_of_an_async_function_fails() -> None:
    prompts = ["fine"] * 48
    bad = {2: "raise", 5: "exit", 9: "hang", 12: "stubborn", 20: "late", 28: "loop", 36: "kill", 44: "text"}
    for row, prompt in bad.items():
        prompts[row] = prompt
    outcomes = run("misbehaves", prompts, concurrency=4, timeout_s=1.0)
    expected = {
        2: "raised", 5: "raised", 9: "timeout", 12: "timeout", 20: "timeout", 28: "timeout", 36: "died",
        44: "wrong_type",
    }  # fmt: skip
    assert kinds(outcomes) == [expected.get(row) for row in range(48)]
    assert values(outcomes) == [None if row in bad else 1.0 for row in range(48)]
    assert "cancelled" in str(outcomes[9].failure)
    assert outcomes[20].seconds > 1.4
    assert "in misbehaves" in outcomes[28].failure.traceback  # type: ignore[union-attr]
    assert math.isfinite(sum(outcome.seconds for outcome in outcomes))


def test_async_hangs_run_out_together() -> None:
    started = time.monotonic()
    outcomes = run("misbehaves", ["hang"] * 20, concurrency=20, timeout_s=1.0)
    assert kinds(outcomes) == ["timeout"] * 20
    assert time.monotonic() - started < 8  # 20 s one after the other
