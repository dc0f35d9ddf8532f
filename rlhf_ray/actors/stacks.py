"""Where all threads of a process stand: asked for by the driver, or written by itself when a call takes too long."""

import faulthandler
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_ERROR = 2


def thread_stacks() -> str:
    """The Python stack of every thread of this process, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"Thread {names.get(ident, 'not started by Python')} ({ident}):\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
    ]
    return "\n".join(stacks)


@contextmanager
def watched(deadline_s: float | None) -> Iterator[None]:
    """While this goes on for longer than `deadline_s`, every thread's stack is written to standard error, once.

    It works where Python itself no longer runs (a call that holds the interpreter's lock). One watch per process.
    """
    if deadline_s is None:
        yield
        return
    faulthandler.dump_traceback_later(deadline_s, file=STANDARD_ERROR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
