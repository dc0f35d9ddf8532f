"""One thread owns an actor's heavy state; the actor's other threads stay free to answer health probes."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OwnedThread:
    """Runs calls one after the other on a thread of its own and knows what it is doing.

    Torch keeps its thread pool per calling thread, so compute must not wander between the threads that Ray lends a
    method.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="owner")
        self._state, self._since = "idle", time.monotonic()

    def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function` run on the owned thread; exceptions pass through. `what` is for health answers."""

        def run() -> T:
            self._state, self._since = what, time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self._state, self._since = "idle", time.monotonic()

        return self._executor.submit(run).result()

    def health(self) -> dict[str, Any]:
        """What the thread does and for how many seconds."""
        return {"state": self._state, "since_s": time.monotonic() - self._since}
