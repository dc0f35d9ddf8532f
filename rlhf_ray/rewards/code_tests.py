"""Run the code of a response against tests, in a process of its own that cannot run away.

It is a guard against accidents, not a prison: the code runs as the user who runs the scorer, sees the files that user
sees, and **has whatever network the machine has**. For code that may be hostile, run the scorers in containers. The
test results carry a secret that the code is not given, so that `exit(0)` or a forged line pass no test; a program that
searches its own interpreter for it could still cheat.

The limits: `timeout_s` of wall clock, after which the process and its process group are killed; CPU seconds, address
space and file size by rlimits; no further processes or threads (the kernel does not hold root to that). The process
works in a temporary folder that is deleted afterwards, with an environment that holds none of the caller's variables.
"""

import fcntl
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_RUNNER = Path(__file__).with_name("code_runner.py")
_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_MAX_RESULTS = 1 << 20


def code_passes(
    prompt: str,
    response: str,
    tests: str | Sequence[str] | None,
    partial: bool = False,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    file_mb: int = 16,
) -> float | None:
    """1.0 if the response's Python code passes all `tests`, else 0.0; with `partial` the share that it passes.

    The code is the response's last Python code block, or the whole response if it has none. Each test is Python that is
    run after the code, in its namespace, and passes if it raises nothing (`assert add(1, 2) == 3`). Code that hangs,
    crashes or hits a limit fails the tests that it did not get to: that is its reward, not a failure of the component.
    Keep the component's own `timeout_s` above this one, which covers the code and all its tests.
    """
    if tests is None:
        return None
    listed = [tests] if isinstance(tests, str) else list(tests)
    if not listed:
        raise ValueError("tests: the list is empty, so nothing can be checked; use null where there are no tests")
    limits = {"cpu_s": max(1, int(timeout_s + 1)), "memory": memory_mb << 20, "file": file_mb << 20}
    passed = _run(code_of(response), listed, limits, timeout_s)
    return passed / len(listed) if partial else float(passed == len(listed))


def code_of(response: str) -> str:
    """The last Python code block (or one of no stated language), closed or not; without one, the whole response."""
    blocks = _FENCE.findall(response)
    return blocks[-1] if blocks else response


def _run(code: str, tests: Sequence[str], limits: dict[str, int], timeout_s: float) -> int:
    """How many tests pass."""
    secret = secrets.token_hex(16)
    order = json.dumps({"code": code, "tests": tests, "limits": limits, "secret": secret}).encode()
    workplace = tempfile.TemporaryDirectory(prefix="code_tests_", ignore_cleanup_errors=True)
    with workplace as folder, tempfile.TemporaryFile() as results:
        _run_process(order, folder, results, timeout_s)
        results.seek(0)
        lines = set(results.read(_MAX_RESULTS).decode(errors="replace").splitlines())
    return sum(f"{secret} {index}" in lines for index in range(len(tests)))


def _run_process(order: bytes, folder: str, results: BinaryIO, timeout_s: float) -> None:
    lifeline = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=results,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
            pass_fds=[lifeline[0]],
        )
        alarm = threading.Timer(timeout_s, _kill_group, [process.pid])
        try:
            _kill_when_closed(lifeline[0], process.pid)
            alarm.start()
            with suppress(BrokenPipeError), process.stdin as stdin:  # type: ignore[union-attr]
                stdin.write(order)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            alarm.cancel()
            alarm.join()
            _kill_group(process.pid)  # what the code left running; its number is ours until the process is reaped
            process.wait()
    finally:
        for fd in lifeline:
            os.close(fd)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _kill_when_closed(fd: int, group: int) -> None:
    """Have the kernel kill the process group when the other end of this pipe closes: when we die ourselves."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _environment(folder: str) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", **threads}
