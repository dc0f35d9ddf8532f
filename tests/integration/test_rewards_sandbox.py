"""The sandbox against functions that misbehave for real: endless loops, crashes, kills, garbage answers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.outcome import Outcome
from rlhf_ray.rewards.sandbox import Sandbox

pytestmark = pytest.mark.integration

SOURCE = r"""
import ctypes, math, os, re, signal, sys, time
import numpy as np

def length(prompt, response): return len(response)

def scaled(prompt, response, truth, scale): return scale * (response == truth)

def recorded(prompt, response, path, hang_on):
    with open(path, "a") as file: file.write(prompt + " ")
    while prompt == hang_on: pass
    return 1.0

def sleeps(prompt, response):
    time.sleep(float(prompt))
    return 1.0

def noisy(prompt, response):
    print("x" * 5000)
    os.write(1, b"\x02" * 5000)
    sys.stdout.flush()
    assert sys.stdin.read() == ""
    return 1.0

def misbehaves(prompt, response): return MISBEHAVIOURS[prompt]()

def _raise(): raise ValueError("boom " + "x" * 100_000)
def _recurse(): return _recurse()
def _loop():
    while True: pass
def _regex_loop(): re.match(r"(a+)+$", "a" * 64 + "b")  # one call into C that never releases the GIL
def _shut():
    os.closerange(3, 4096)
    time.sleep(60)
def _fork_and_die():
    if os.fork() == 0: time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)
class Unprintable(Exception):
    def __str__(self): raise RuntimeError("no text")
def _unprintable(): raise Unprintable()

MISBEHAVIOURS = {
    "fine": lambda: 0.5, "integer": lambda: 3, "true": lambda: True, "numpy": lambda: np.float32(0.25),
    "array of one": lambda: np.array([2.0]), "none": lambda: None,
    "raise": _raise, "recurse": _recurse, "exit": lambda: sys.exit(3), "unprintable": _unprintable,
    "nan": lambda: math.nan, "inf": lambda: -math.inf, "huge": lambda: 10**400, "numpy nan": lambda: np.float64("nan"),
    "text": lambda: "high", "list": lambda: [1.0], "array": lambda: np.zeros(3), "complex": lambda: 1j,
    "loop": _loop, "regex": _regex_loop, "sleep": lambda: time.sleep(60),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "os exit": lambda: os._exit(4),
    "crash": lambda: ctypes.string_at(0), "shut": _shut, "fork": _fork_and_die,
}
"""
VALUES = {"fine": 0.5, "integer": 3.0, "true": 1.0, "numpy": 0.25, "array of one": 2.0, "none": None}
FAILURES = {
    "raise": ("raised", "raised ValueError: boom", "in _raise"),
    "recurse": ("raised", "raised RecursionError", "in _recurse"),
    "exit": ("raised", "raised SystemExit: 3", "sys.exit(3)"),
    "unprintable": ("raised", "raised Unprintable", "in _unprintable"),
    "nan": ("not_finite", "returned nan", ""),
    "inf": ("not_finite", "returned -inf", ""),
    "huge": ("not_finite", "must be finite", ""),
    "numpy nan": ("not_finite", "nan", ""),
    "text": ("wrong_type", "returned 'high' (str), not a number", ""),
    "list": ("wrong_type", "returned [1.0] (list)", ""),
    "array": ("wrong_type", "(ndarray)", ""),
    "complex": ("wrong_type", "(complex)", ""),
    "loop": ("timeout", "did not return within 1 s", "in _loop"),
    "regex": ("timeout", "did not return within 1 s", "in _regex_loop"),
    "sleep": ("timeout", "did not return within 1 s", "in <lambda>"),
    "kill": ("died", "was killed by SIGKILL", ""),
    "os exit": ("died", "exited with code 4", ""),
    "crash": ("died", "was killed by SIGSEGV", "in string_at"),
    "shut": ("died", "closed its pipes", ""),
    "fork": ("died", "was killed by SIGKILL", ""),
}


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions_for_sandbox.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))


def sandbox_of(
    name: str, timeout_s: float = 5.0, columns: Sequence[str] = ("prompt", "response"), **options: object
) -> Sandbox:
    section = FunctionRewardSection(function=f"functions_for_sandbox:{name}", timeout_s=timeout_s, **options)
    return Sandbox(section, columns)


def run(name: str, prompts: list[str], timeout_s: float = 5.0, **arguments: object) -> list[Outcome]:
    with sandbox_of(name, timeout_s, arguments=arguments) as sandbox:
        return list(sandbox.run({"prompt": prompts, "response": [""] * len(prompts)}))


def test_every_failure_stays_with_its_sample() -> None:
    prompts = [*VALUES]
    for behaviour in FAILURES:
        prompts += [behaviour, "fine"]
    outcomes = run("misbehaves", prompts, timeout_s=1.0)
    assert len(outcomes) == len(prompts)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if prompt in VALUES:
            assert (outcome.value, outcome.failure) == (VALUES[prompt], None), prompt
            continue
        kind, message, traceback = FAILURES[prompt]
        assert outcome.value is None
        assert outcome.failure is not None
        assert outcome.failure.kind == kind, prompt
        assert message in outcome.failure.message
        assert traceback in outcome.failure.traceback
        assert "rewards/worker.py" not in outcome.failure.traceback
        assert len(outcome.failure.message) < 1000
        assert len(outcome.failure.traceback) < 25_000


def test_a_hang_costs_its_timeout_and_no_call_runs_twice(tmp_path: Path) -> None:
    prompts = [str(i) for i in range(300)]
    path = tmp_path / "calls"
    started = time.monotonic()
    outcomes = run("recorded", prompts, timeout_s=0.5, path=str(path), hang_on="100")
    assert time.monotonic() - started < 10
    assert [i for i, outcome in enumerate(outcomes) if outcome.failure] == [100]
    assert path.read_text().split() == prompts


def test_the_timeout_is_per_call_not_per_batch() -> None:
    assert all(outcome.value == 1.0 for outcome in run("sleeps", ["0.1"] * 10, timeout_s=0.6))


def test_a_slow_consumer_neither_causes_nor_hides_a_timeout() -> None:
    with sandbox_of("sleeps", timeout_s=0.3) as sandbox:
        outcomes = []
        for outcome in sandbox.run({"prompt": ["0", "0.5", "0", "0"], "response": [""] * 4}):
            time.sleep(0.8)
            outcomes.append(outcome)
        assert [outcome.failure.kind if outcome.failure else None for outcome in outcomes] == [
            None,
            "timeout",
            None,
            None,
        ]
        assert sandbox.starts == 1  # the late call had come back by itself before anybody looked
        assert "returned after 0.5" in outcomes[1].failure.message


def test_what_a_slow_consumer_kept_us_from_sending_is_not_a_late_answer() -> None:
    texts = [f"{row:05}" * 4_000 for row in range(200)]  # a message is many times what a pipe holds
    with sandbox_of("length", timeout_s=0.5) as sandbox:
        for row, outcome in enumerate(sandbox.run({"prompt": texts, "response": texts})):
            assert outcome.value == 20_000
            time.sleep(0.8 if row in (63, 127) else 0)  # the last of a message, when the next is half sent
        assert sandbox.starts == 1


def test_prints_and_standard_input_do_not_touch_the_results() -> None:
    assert [outcome.value for outcome in run("noisy", ["p"] * 3)] == [1.0] * 3


def test_columns_and_arguments_reach_the_function() -> None:
    table = {"prompt": ["a", "b"], "response": ["x", "y"], "truth": ["x", "z"], "unused": [1, 2]}
    with sandbox_of("scaled", columns=list(table), arguments={"scale": 3.0}) as sandbox:
        assert sandbox.start() == ("truth",)
        assert [outcome.value for outcome in sandbox.run(table)] == [3.0, 0.0]


def test_many_calls_and_large_texts_come_back_in_order() -> None:
    responses = ["x" * (i % 50_000) for i in range(0, 5_000_000, 9_973)]
    with sandbox_of("length") as sandbox:
        outcomes = sandbox.run({"prompt": [""] * len(responses), "response": responses})
        assert [outcome.value for outcome in outcomes] == [len(response) for response in responses]
        assert list(sandbox.run({"prompt": [], "response": []})) == []


def test_quick_calls_cost_little() -> None:
    table = {"prompt": ["p" * 200] * 10_000, "response": ["r" * 300] * 10_000}
    with sandbox_of("length") as sandbox:
        sandbox.start()
        started = time.monotonic()
        assert sum(1 for _ in sandbox.run(table)) == 10_000
        assert time.monotonic() - started < 1.0  # 20 to 50 times less on an idle machine


def test_stopping_early_kills_the_call_in_progress_and_the_sandbox_goes_on() -> None:
    with sandbox_of("sleeps", timeout_s=30.0) as sandbox:
        calls = sandbox.run({"prompt": ["0", "20"], "response": ["", ""]})
        assert next(calls).value == 1.0
        calls.close()
        assert [outcome.value for outcome in sandbox.run({"prompt": ["0"], "response": [""]})] == [1.0]
        assert sandbox.starts == 2


def test_a_child_that_died_while_idle_blames_no_sample() -> None:
    with sandbox_of("length") as sandbox:
        table = {"prompt": ["p"] * 5, "response": ["r"] * 5}
        assert [outcome.value for outcome in sandbox.run(table)] == [1.0] * 5
        os.kill(children_of(os.getpid())[0], signal.SIGKILL)
        time.sleep(0.1)
        assert [outcome.value for outcome in sandbox.run(table)] == [1.0] * 5


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os._exit(7)", "exited with code 7"),
        ("while True: pass", "took longer than 1 s"),
    ],
)
def test_a_module_that_does_not_import_is_a_config_error(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "bad_module.py").write_text(source + "\n")
    sandbox = Sandbox(FunctionRewardSection(function="bad_module:f"), ["prompt", "response"], start_timeout_s=1.0)
    with pytest.raises(ConfigError, match=words):
        sandbox.start()
    assert children_of(os.getpid()) == []


def test_the_child_dies_with_its_parent_even_in_a_loop_that_holds_the_gil(tmp_path: Path) -> None:
    script = (
        "from rlhf_ray.config.rewards import FunctionRewardSection\n"
        "from rlhf_ray.rewards.sandbox import Sandbox\n"
        "section = FunctionRewardSection(function='functions_for_sandbox:misbehaves', timeout_s=60)\n"
        "sandbox = Sandbox(section, ['prompt', 'response'])\n"
        "sandbox.start(); print('started', flush=True)\n"
        "list(sandbox.run({'prompt': ['regex'], 'response': ['']}))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        (child,) = children_of(parent.pid)
        time.sleep(0.3)  # into the loop
        assert Path(f"/proc/{child}").exists()
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 5
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(child)


def test_the_child_starts_without_heavy_imports() -> None:
    code = "import sys, rlhf_ray.rewards.worker; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "rlhf_ray.rewards.worker" in modules
    assert not {"torch", "numpy", "pyarrow", "pydantic", "ray"} & set(modules)


def children_of(pid: int) -> list[int]:
    """Worker processes of `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"rlhf_ray.rewards.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def running(pid: int) -> bool:
    """Alive, not merely unreaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
