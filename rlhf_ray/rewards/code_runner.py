"""The process of `code_tests`: a script of the standard library alone, run by path with `python -I`.

Reads its order as JSON from standard input, limits itself, runs the code, then each test, and writes `<secret> <index>`
to standard output for each that passes.
"""

import contextlib
import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    results = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    _limit(order["limits"])
    _run(order["code"], order["tests"], lambda index: os.write(results, f"{order['secret']} {index}\n".encode()))
    os._exit(0)  # threads and exit handlers of the code are not waited for


def _limit(limits: dict[str, int]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _run(code: str, tests: list[str], report: Any) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(code, "<response>", "exec"), namespace)
    except BaseException:  # SystemExit too
        return
    for index, test in enumerate(tests):
        with contextlib.suppress(BaseException):
            exec(compile(test, f"<test {index}>", "exec"), namespace)
            report(index)


if __name__ == "__main__":
    main()
