"""Code of responses run for real: right, wrong, endless, greedy, cheating, and what it leaves behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.rewards.code_tests import code_of, code_passes

pytestmark = pytest.mark.unit

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
RIGHT = "def add(a, b):\n    return a + b\n"


def passes(code: str, tests: list[str] | str | None = None, **options: object) -> float | None:
    return code_passes("", code, TESTS if tests is None else tests, **options)  # type: ignore[arg-type]


def test_right_wrong_and_partly_right() -> None:
    assert passes(f"Sure!\n```python\n{RIGHT}```\nHope it helps.") == 1.0
    assert passes(RIGHT) == 1.0
    assert passes("def add(a, b): return abs(a) + abs(b)") == 0.0
    assert passes("def add(a, b): return abs(a) + abs(b)", partial=True) == 0.5
    assert passes("def add(a, b) return a + b") == 0.0
    assert passes(RIGHT, "import math\nassert math.isclose(add(0.1, 0.2), 0.3)") == 1.0


def test_nothing_to_check() -> None:
    assert code_passes("", RIGHT, None) is None
    with pytest.raises(ValueError, match="the list is empty"):
        code_passes("", RIGHT, [])


def test_the_code_is_the_last_block() -> None:
    assert code_of("```python\nold\n```\nbetter:\n```py\nnew\n```") == "new\n"
    assert code_of("```\nplain\n```") == "plain\n"
    assert code_of("```python\ncut off") == "cut off"
    assert code_of("no block") == "no block"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        "import ctypes; ctypes.string_at(0)",
        "print('\\n'.join(f'0 {i}' for i in range(9)))",
        "def add(a, b): raise SystemExit(0)",
        "x = bytearray(1 << 34)\n" + RIGHT,
        "open('big', 'wb').write(bytes(1 << 25))\n" + RIGHT,
    ],
)
def test_what_exits_crashes_or_passes_a_limit_fails(code: str) -> None:
    assert passes(code) == 0.0


def test_endless_code_costs_its_timeout_and_keeps_the_tests_it_passed() -> None:
    started = time.monotonic()
    assert passes("while True: pass", timeout_s=0.5) == 0.0
    looping = "import re\ndef add(a, b):\n    return a + b if a > 0 else re.match('(a+)+$', 'a' * 64 + 'b')"
    assert passes(looping, partial=True, timeout_s=1.0) == 0.5
    assert time.monotonic() - started < 6


def test_it_runs_in_an_empty_folder_that_is_gone_afterwards_and_sees_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    note = tmp_path / "note"
    code = (
        "import os\n"
        "assert 'HF_TOKEN' not in os.environ and os.listdir() == []\n"
        "open('left', 'w').write('x')\n"
        f"open({str(note)!r}, 'w').write(os.getcwd())\n"
    )
    assert passes(code, ["pass"]) == 1.0
    assert not Path(note.read_text()).exists()


def test_processes_it_started_do_not_outlive_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import os, time\n"
        "try: child = os.fork()\n"
        "except OSError: child = -1\n"  # a limit that the kernel does not hold root to
        f"if child > 0: open({str(note)!r}, 'w').write(str(child))\n"
        "if child == 0: time.sleep(60)\n"
    )
    assert passes(code, ["pass"]) == 1.0
    if note.exists():
        assert gone(int(note.read_text()))


def test_it_dies_with_the_process_that_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"from rlhf_ray.rewards.code_tests import code_passes; code_passes('', {code!r}, 'pass', timeout_s=60)"
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    try:
        deadline = time.monotonic() + 20
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    assert gone(int(note.read_text()))


def gone(pid: int) -> bool:
    """Within five seconds, dead or at least a zombie."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
