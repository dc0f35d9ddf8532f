"""Runs one reward function in a child process, so that no call can harm the run: every failure stays with its sample.

A call that raises or returns no finite number costs nothing more. A call that does not return in time, or that ends its
process, costs that process: it is killed, a new one is started, and the calls after it go on there. Calls run one after
another; they are sent in batches and answered singly, so that quick functions do not pay a round trip each.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.process import WorkerProcess
from rlhf_ray.rewards.wire import Kind, Result, pack_call

FailureKind = Literal["raised", "not_finite", "wrong_type", "timeout", "died"]

_ROWS_PER_BATCH = 64  # at most two batches are with the child
_FAILURE_KINDS: dict[Kind, FailureKind] = {
    Kind.RAISED: "raised",
    Kind.NOT_FINITE: "not_finite",
    Kind.WRONG_TYPE: "wrong_type",
}


@dataclass(frozen=True, slots=True)
class CallFailure:
    """Why a call gave no reward. `message` reads on after the function's name; `traceback` may be empty."""

    kind: FailureKind
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call: a finite value, or a failure, or neither (the function returned None: does not apply)."""

    value: float | None = None
    failure: CallFailure | None = None
    seconds: float = 0.0


class Sandbox:
    """A reward function behind a process boundary. One thread at a time."""

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        columns: Sequence[str],
        timeout_s: float,
        start_timeout_s: float = 120.0,
    ) -> None:
        """`function` is an import path, `columns` are what the function may ask for, seconds are wall-clock."""
        self._function = function
        self._spec = {"function": function, "arguments": dict(arguments), "columns": list(columns)}
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._worker: WorkerProcess | None = None
        self._columns: tuple[str, ...] = ()
        self.starts = 0

    def start(self) -> tuple[str, ...]:
        """Start the child if none runs; the columns that the function takes beside prompt and response.

        Raises ConfigError when the function cannot be imported or called.
        """
        self._running()
        return self._columns

    def run(self, table: Mapping[str, Sequence[Any]]) -> Generator[Outcome, None, None]:
        """Call the function on every row of `table` (column name -> values) and yield the outcomes in row order.

        A consumer that stops early costs the child, which may be deep in a call.
        """
        if self._worker is not None and self._worker.has_exited():
            self.close()  # it died between two tables: no sample is to blame
        rows = len(table["prompt"])
        done = sent = 0
        started = monotonic()  # when the call of row `done` did, or a little later
        try:
            while done < rows:
                worker = self._running()
                while sent < rows and sent - done <= _ROWS_PER_BATCH:
                    if sent == done:
                        started = monotonic()
                    batch = slice(sent, sent + _ROWS_PER_BATCH)
                    worker.send(pack_call([table[name][batch] for name in ("prompt", "response", *self._columns)]))
                    sent = min(rows, batch.stop)
                results = worker.receive(max(0.0, started + self._timeout_s - monotonic()))
                if results:
                    started = monotonic()
                    for result in results:
                        done += 1
                        yield self._outcome(result)
                else:
                    seconds = monotonic() - started
                    failure = self._end(worker)
                    done += 1
                    sent = done  # what was with the child behind the lost call is sent again
                    yield Outcome(failure=failure, seconds=seconds)
        finally:
            if sent > done:
                self.close()

    def close(self) -> None:
        """Kill the child. The next `run` would start another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _running(self) -> WorkerProcess:
        if self._worker is None:
            worker = WorkerProcess()
            try:
                self._columns = self._await_ready(worker)
            except BaseException:
                worker.kill()
                raise
            self._worker = worker
            self.starts += 1
        return self._worker

    def _await_ready(self, worker: WorkerProcess) -> tuple[str, ...]:
        worker.send(pack_call(self._spec))
        results = worker.receive(self._start_timeout_s)
        where = f"reward function `{self._function}`"
        if not results and worker.ended:
            how, stack = worker.autopsy()
            raise ConfigError(
                f"{where}: the process that was importing it {how}; its output is in the log.\n{stack}".rstrip()
            )
        if not results:
            stack = worker.interrupt()
            raise ConfigError(f"{where}: importing it took longer than {self._start_timeout_s:g} s.\n{stack}".rstrip())
        if results[0].kind is Kind.REFUSED:
            raise ConfigError(results[0].details["message"])
        return tuple(results[0].details["columns"])

    def _outcome(self, result: Result) -> Outcome:
        if result.seconds > self._timeout_s:
            message = f"returned after {result.seconds:.3g} s, past its timeout_s of {self._timeout_s:g}"
            return Outcome(failure=CallFailure("timeout", message), seconds=result.seconds)
        if result.kind is Kind.VALUE:
            return Outcome(value=result.value, seconds=result.seconds)
        if result.kind is Kind.DOES_NOT_APPLY:
            return Outcome(seconds=result.seconds)
        details = result.details
        failure = CallFailure(_FAILURE_KINDS[result.kind], details["message"], details["traceback"])
        return Outcome(failure=failure, seconds=result.seconds)

    def _end(self, worker: WorkerProcess) -> CallFailure:
        """The child hangs or is dead: say which and where, and clear it away."""
        self._worker = None
        if worker.ended:
            how, stack = worker.autopsy()
            return CallFailure("died", f"ended its own process, which {how}", stack)
        stack = worker.interrupt()
        message = f"did not return within {self._timeout_s:g} s and was killed; if it is only slow, raise its timeout_s"
        return CallFailure("timeout", message, stack)
