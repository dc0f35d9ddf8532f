"""Runs one reward function in a child process, so that no call can harm the run: every failure stays with its sample.

A call that raises or returns no finite number costs nothing more. A call that does not return in time, or that ends its
process, costs that process: it is killed, a new one is started, and the calls after it go on there. Calls are sent in
messages and answered singly, so that quick functions do not pay a round trip each. Where several samples share a call
(batches) or a process (async functions) and the whole fails, each of them is called again alone: a hang then costs its
timeout twice.
"""

from collections.abc import Generator, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.outcome import CallFailure, Outcome
from rlhf_ray.rewards.process import WorkerProcess
from rlhf_ray.rewards.resolve import FunctionSpec
from rlhf_ray.rewards.schedule import Schedule
from rlhf_ray.rewards.wire import Calls, Kind, pack_payload

_CANCEL_S = 1.0  # for an async call to be cancelled by the child itself, before the child counts as stuck


class Sandbox:
    """A reward function behind a process boundary. One thread at a time."""

    def __init__(self, section: FunctionRewardSection, columns: Sequence[str], start_timeout_s: float = 120.0) -> None:
        """`columns` are what the function may ask for; `start_timeout_s` covers imports and a constructor."""
        self._spec = FunctionSpec.of(section)
        self._available = list(columns)
        self._start_timeout_s = start_timeout_s
        self._worker: WorkerProcess | None = None
        self._columns: tuple[str, ...] = ()
        self._calls_at_once = 1
        self._patience_s = self._spec.timeout_s
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
        outcomes: dict[int, Outcome] = {}  # of rows whose turn has not come
        next_row = 0
        self._running()
        schedule = Schedule(rows, self._spec.batch_size or 1, self._calls_at_once)
        try:
            started = monotonic()  # when the oldest call with the child did, or a little later
            while next_row < rows:
                worker = self._running()
                if not schedule.in_flight or worker.has_unsent:
                    started = monotonic()  # the child waits for us, not we for it
                self._send(worker, schedule, table)
                results = worker.receive(max(0.0, started + self._patience_s - monotonic()))
                if results:
                    started = monotonic()
                    schedule.answered([result.row for result in results])
                    for result in results:
                        if result.kind is Kind.REPEAT:
                            schedule.repeat_alone(result.row)
                        else:
                            outcomes[result.row] = result.outcome
                else:
                    seconds = monotonic() - started
                    failure = self._end(worker)
                    culprit = schedule.lose_child()
                    if culprit is not None:
                        outcomes[culprit] = Outcome(failure=failure, seconds=seconds)
                while next_row in outcomes:
                    next_row += 1
                    yield outcomes.pop(next_row - 1)
        finally:
            if schedule.in_flight:
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
                self._await_ready(worker)
            except BaseException:
                worker.kill()
                raise
            self._worker = worker
            self.starts += 1
        return self._worker

    def _await_ready(self, worker: WorkerProcess) -> None:
        worker.send(pack_payload((self._spec, self._available)))
        results = worker.receive(self._start_timeout_s)
        where = self._spec.where
        if not results and worker.ended:
            how, stack = worker.autopsy()
            raise ConfigError(
                f"{where}: the process that was starting it {how}; its output is in the log.\n{stack}".rstrip()
            )
        if not results:
            stack = worker.interrupt()
            raise ConfigError(f"{where}: starting it took longer than {self._start_timeout_s:g} s.\n{stack}".rstrip())
        details = results[0].details
        if results[0].kind is Kind.REFUSED:
            raise ConfigError(details["message"])
        self._columns = tuple(details["columns"])
        self._calls_at_once = details["calls_at_once"]
        self._patience_s = self._spec.timeout_s + (_CANCEL_S if details["is_async"] else 0.0)

    def _send(self, worker: WorkerProcess, schedule: Schedule, table: Mapping[str, Sequence[Any]]) -> None:
        """Give the child as much as it should have in hand."""
        while (message := schedule.next_message()) is not None:
            rows, alone = message
            names = ("prompt", "response", *self._columns)
            worker.send(pack_payload(Calls(rows, [[table[name][row] for row in rows] for name in names], alone)))

    def _end(self, worker: WorkerProcess) -> CallFailure:
        """The child hangs or is dead: say which and where, and clear it away."""
        self._worker = None
        if worker.ended:
            how, stack = worker.autopsy()
            return CallFailure("died", f"ended its own process, which {how}", stack)
        stack = worker.interrupt()
        seconds = self._spec.timeout_s
        message = f"did not return within {seconds:g} s and was killed; if it is only slow, raise its timeout_s"
        return CallFailure("timeout", message, stack)
