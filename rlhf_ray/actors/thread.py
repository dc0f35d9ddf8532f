"""One thread owns an actor's heavy state; the actor's other threads stay free to answer health probes."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from rlhf_ray.actors import memory
from rlhf_ray.actors.stacks import watched

#: The environment variable that tells an actor after how many seconds its callers give up.
CALL_TIMEOUT = "RLHF_RAY_CALL_TIMEOUT_S"
#: The share of that time after which a call has its stacks written: before the process may be killed for it.
PATIENCE = 0.9
P = ParamSpec("P")
T = TypeVar("T")


class OwnedThread:
    """Runs calls one after the other on a thread of its own and knows what it is doing.

    Torch keeps its thread pool per calling thread, so compute must not wander between the threads that Ray lends a
    method.
    """

    def __init__(self) -> None:
        timeout_s = os.environ.get(CALL_TIMEOUT)
        self._deadline_s = float(timeout_s) * PATIENCE if timeout_s else None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="owner")
        self._state, self._since = "idle", time.monotonic()

    def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function` run on the owned thread; exceptions pass through. `what` is for health answers.

        Raises:
            OutOfMemory: there was no memory for it; says how much there is, and what to lower.
        """

        def run() -> T:
            self._state, self._since = what, time.monotonic()
            try:
                with watched(self._deadline_s):
                    return function(*args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if memory.ran_out(error):
                    raise memory.explained(error, what) from error
                raise
            finally:
                self._state, self._since = "idle", time.monotonic()

        return self._executor.submit(run).result()

    def health(self) -> dict[str, Any]:
        """What the thread does and for how many seconds, and the process's and its node's memory."""
        return {"state": self._state, "since_s": time.monotonic() - self._since, **memory.memory_use()}
