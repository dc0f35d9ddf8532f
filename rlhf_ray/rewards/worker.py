"""The child process of a sandbox: `python -m rlhf_ray.rewards.worker` imports one reward function and answers calls.

Started by `process.py` with four inherited file descriptors: calls (read), results (write), lifeline (read) and stacks
(write). Standard output was pointed at standard error, so that what the function prints cannot touch the results.
"""

import faulthandler
import fcntl
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import Any, BinaryIO

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.function import BoundFunction, bind_function
from rlhf_ray.rewards.wire import Kind, pack_result, read_call, write_all


def main() -> None:
    calls_fd, results_fd, lifeline_fd, stacks_fd = (int(argument) for argument in sys.argv[1:5])
    for fd in (calls_fd, results_fd, lifeline_fd, stacks_fd):
        os.set_inheritable(fd, False)
    _die_with_parent(lifeline_fd)
    # faulthandler answers from the signal handler itself: it shows the stack of a call that never releases the GIL too.
    faulthandler.register(signal.SIGUSR1, file=stacks_fd, all_threads=True)
    faulthandler.enable(file=stacks_fd, all_threads=True)  # the same for a crash in compiled code
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # or a kill loses the last prints

    with os.fdopen(calls_fd, "rb") as calls:
        spec = read_call(calls)
        if spec is None:
            return
        try:
            bound = bind_function(spec["function"], spec["arguments"], spec["columns"])
        except ConfigError as error:
            write_all(results_fd, pack_result(Kind.REFUSED, message=str(error)))
            return
        write_all(results_fd, pack_result(Kind.READY, columns=list(bound.columns)))
        _serve(bound, calls, results_fd)


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel kill our process group when the parent, which holds the lifeline's other end, is gone.

    PR_SET_PDEATHSIG would fire when the parent's *thread* ends, and a thread watching for EOF starves under a loop that
    holds the GIL. A signal-driven descriptor has neither weakness.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


def _serve(bound: BoundFunction, calls: BinaryIO, results_fd: int) -> None:
    """Answer each batch of calls, [prompt, response, *columns] as lists, one result per call as it finishes."""
    function, names, arguments = bound.function, bound.columns, bound.arguments
    while (batch := read_call(calls)) is not None:
        for prompt, response, *extras in zip(*batch, strict=True):
            started = perf_counter()
            try:
                answer = function(prompt, response, **dict(zip(names, extras, strict=True)), **arguments)
            except BaseException as error:  # sys.exit() in a reward function is a failed call, not the end of us
                packed = _pack_exception(error, perf_counter() - started)
            else:
                packed = pack_answer(answer, perf_counter() - started)
            write_all(results_fd, packed)


def pack_answer(answer: Any, seconds: float) -> bytes:
    """A number (numpy's and torch's scalars included) or None; everything else is a failure that says what came."""
    if answer is None:
        return pack_result(Kind.DOES_NOT_APPLY, seconds=seconds)
    value = answer
    if hasattr(answer, "item"):
        try:
            value = answer.item()
        except Exception:
            value = answer  # more than one element: reported as the wrong type below
    if not isinstance(value, (int, float)):
        message = f"returned {_described(answer)}, not a number; return a float, or None where it does not apply"
        return pack_result(Kind.WRONG_TYPE, seconds=seconds, message=message, traceback="")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        message = f"returned {_described(answer)}; a reward must be finite (return None where it does not apply)"
        return pack_result(Kind.NOT_FINITE, seconds=seconds, message=message, traceback="")
    return pack_result(Kind.VALUE, number, seconds)


def _pack_exception(error: BaseException, seconds: float) -> bytes:
    own_frame = error.__traceback__
    cause = own_frame.tb_next if own_frame else None  # without the line in this file
    lines = traceback.format_exception(type(error), error.with_traceback(cause), cause)
    name, text = type(error).__name__, _shown(str, error, 400)
    message = f"raised {name}: {text}" if text else f"raised {name}"
    return pack_result(Kind.RAISED, seconds=seconds, message=message, traceback="".join(lines).rstrip())


def _described(answer: object) -> str:
    return f"{_shown(repr, answer, 120)} ({type(answer).__name__})"


def _shown(render: Callable[[object], str], thing: object, limit: int) -> str:
    try:
        text = render(thing)
    except Exception:
        return "<unprintable>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


if __name__ == "__main__":
    main()
