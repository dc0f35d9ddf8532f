"""The child process of a sandbox: `python -m rlhf_ray.rewards.worker` imports one reward function and answers calls.

Started by `process.py` with four inherited file descriptors: calls (read), results (write), lifeline (read) and stacks
(write). Standard output was pointed at standard error, so that what the function prints cannot touch the results.
"""

import asyncio
import faulthandler
import fcntl
import os
import pickle
import resource
import signal
import sys
from typing import BinaryIO

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.calling import Emit, call_in_turn, call_together
from rlhf_ray.rewards.function import BoundFunction, bind_function
from rlhf_ray.rewards.wire import LENGTH, Calls, Kind, pack_outcome, pack_start, read_payload, write_all


def main() -> None:
    calls_fd, results_fd, lifeline_fd, stacks_fd = (int(argument) for argument in sys.argv[1:5])
    for fd in (calls_fd, results_fd, lifeline_fd, stacks_fd):
        os.set_inheritable(fd, False)
    _die_with_parent(lifeline_fd)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is one sample's failure, not a gigabyte on disk
    # faulthandler answers from the signal handler itself: it shows the stack of a call that never releases the GIL too.
    faulthandler.register(signal.SIGUSR1, file=stacks_fd, all_threads=True)
    faulthandler.enable(file=stacks_fd, all_threads=True)  # the same for a crash in compiled code
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # or a kill loses the last prints

    with os.fdopen(calls_fd, "rb") as calls:
        start = read_payload(calls)
        if start is None:
            return
        try:
            bound = bind_function(*start)
        except ConfigError as error:
            write_all(results_fd, pack_start(Kind.REFUSED, message=str(error)))
            return
        facts = {"columns": list(bound.columns), "is_async": bound.is_async, "calls_at_once": bound.calls_at_once}
        write_all(results_fd, pack_start(Kind.READY, **facts))
        _serve(bound, calls, lambda row, outcome: write_all(results_fd, pack_outcome(row, outcome)))


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel kill our process group when the parent, which holds the lifeline's other end, is gone.

    PR_SET_PDEATHSIG would fire when the parent's *thread* ends, and a thread watching for EOF starves under a loop that
    holds the GIL. A signal-driven descriptor has neither weakness.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


def _serve(bound: BoundFunction, calls: BinaryIO, emit: Emit) -> None:
    """Answer messages of calls until the parent closes its end."""
    if bound.is_async:
        asyncio.run(_serve_async(bound, calls, emit))
        return
    while (message := read_payload(calls)) is not None:
        call_in_turn(bound, message, emit)


async def _serve_async(bound: BoundFunction, calls: BinaryIO, emit: Emit) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), calls)

    async def next_calls() -> Calls | None:
        try:
            header = await reader.readexactly(LENGTH.size)
            message: Calls = pickle.loads(await reader.readexactly(LENGTH.unpack(header)[0]))
        except asyncio.IncompleteReadError:
            return None
        return message

    await call_together(bound, next_calls, emit)


if __name__ == "__main__":
    main()
