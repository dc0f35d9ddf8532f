"""Just enough of Ray for pools, replicas and syncs, in one thread: calls run when somebody waits for them.

`RayInProcess` takes the place of the module `ray`, and its clock that of `time`: seconds pass only while somebody waits
for what does not come. An actor's method that raises `Died` ends the actor, one that raises `Hangs` never answers, and
nor does the actor from then on.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.exceptions import ActorDiedError, RayError, RayTaskError

PENDING = object()


class Died(BaseException):
    """The process is gone."""


class Hangs(BaseException):
    """The process does nothing any more."""


class Ref:
    """The future answer of `run`."""

    def __init__(self, actor: "Actor", run: Callable[[], Any]) -> None:
        self.actor, self.run, self.value = actor, run, PENDING

    def poll(self) -> bool:
        """Whether there is an answer now, after a try."""
        if self.value is PENDING:
            self.value = self.actor.carry_out(self.run)
        return self.value is not PENDING

    def get(self) -> Any:
        assert self.poll(), "waits for ever"
        if isinstance(self.value, RayTaskError):
            raise self.value.as_instanceof_cause()
        if isinstance(self.value, RayError):
            raise self.value
        return self.value


class Stream:
    """What a generator method yields, one reference after the other; an error comes in the place of the next one."""

    def __init__(self, actor: "Actor", start: Callable[[], Iterator[Any]]) -> None:
        self.actor, self.start, self.items, self.ready = actor, start, None, deque[Ref]()
        self.ended = False

    def poll(self) -> bool:
        if not self.ready and not self.ended:
            value = self.actor.carry_out(self._advance)
            if value is not PENDING:
                self.ended = self.ended or isinstance(value, RayError)
                if value is not StopIteration:
                    ref = Ref(self.actor, lambda: None)
                    ref.value = value
                    self.ready.append(ref)
        return bool(self.ready) or self.ended

    def _advance(self) -> Any:
        self.items = self.items or self.start()
        for value in self.items:
            return value
        self.ended = True
        return StopIteration

    def __next__(self) -> Ref:
        assert self.poll(), "waits for ever"
        if not self.ready:
            raise StopIteration
        return self.ready.popleft()


class Actor:
    """A handle, and the process behind it."""

    def __init__(self, made: Any) -> None:
        self.made, self.alive, self.hangs = made, True, False

    def __getattr__(self, method: str) -> "Method":
        return Method(self, method)

    def carry_out(self, run: Callable[[], Any]) -> Any:
        """What it answers: a value, a RayError, or PENDING."""
        if not self.alive:
            return ActorDiedError()
        if self.hangs:
            return PENDING
        try:
            return run()
        except Died:
            self.alive = False
            return ActorDiedError()
        except Hangs:
            self.hangs = True
            return PENDING
        except Exception as error:
            return RayTaskError("method", "traceback", error, "test", 1, "127.0.0.1")


class Method:
    def __init__(self, actor: Actor, name: str, returns: Any = 1) -> None:
        self.actor, self.name, self.returns = actor, name, returns

    def options(self, num_returns: Any, **_: Any) -> "Method":
        return Method(self.actor, self.name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        def run() -> Any:
            values = [value.get() if isinstance(value, Ref) else value for value in arguments]
            return getattr(self.actor.made, self.name)(*values)

        if self.returns == "streaming":
            return Stream(self.actor, run)
        if self.returns == 1:
            return Ref(self.actor, run)
        whole = Ref(self.actor, run)
        return [Ref(self.actor, lambda place=place: whole.get()[place]) for place in range(self.returns)]


class Clock:
    """What is used of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class RayInProcess:
    """`wait` lets each of its items come one step further."""

    def __init__(self) -> None:
        self.clock = Clock()

    def wait(
        self, items: Sequence[Any], num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
    ) -> tuple[list[Any], list[Any]]:
        assert len({id(item) for item in items}) == len(items) >= num_returns >= 1
        ready = [item for item in items if item.poll()][:num_returns]
        if not ready:
            assert timeout is not None, "waits for ever"
            self.clock.sleep(timeout)
        return ready, [item for item in items if all(item is not other for other in ready)]

    def get(self, refs: Any, timeout: float | None = None) -> Any:
        return [ref.get() for ref in refs] if isinstance(refs, list) else refs.get()

    def kill(self, actor: Actor, no_restart: bool = True) -> None:
        actor.alive = False
