"""Calls a bound reward function on rows of columns, and reports what each row came to.

A row that fails together with others (in one batch, or while the event loop they share was blocked) is reported as
None: call it again, alone, so that a failure stays with the sample that causes it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from rlhf_ray.rewards.answer import described, outcome_of, outcome_of_exception
from rlhf_ray.rewards.function import BoundFunction
from rlhf_ray.rewards.outcome import CallFailure, Outcome
from rlhf_ray.rewards.wire import Calls

Emit = Callable[[int, Outcome | None], None]

_TICK_S = 0.02
_BLOCKED_SHARE = 0.1  # of the timeout: so long a block makes a neighbour's lateness doubtful


def call_in_turn(bound: BoundFunction, calls: Calls, emit: Emit) -> None:
    """Call a plain function on every row of `calls`, one call after another."""
    for call in _split(bound, calls):
        started = perf_counter()
        try:
            answer = bound.function(*call.positional, **call.by_name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a reward function is a failed call, not the end of us
            outcomes: list[Outcome | None] = call.failed(outcome_of_exception(error, perf_counter() - started))
        else:
            outcomes = call.answered(answer, perf_counter() - started)
        call.report(outcomes, emit)


async def call_together(bound: BoundFunction, next_calls: Callable[[], Awaitable[Calls | None]], emit: Emit) -> None:
    """Await an async function, `concurrency` calls at a time and in the order of their rows, until no calls come.

    A call that is not done in time is cancelled and not waited for.
    """
    block = _LoopBlock()
    ticker = asyncio.create_task(block.watch())
    slots = asyncio.Semaphore(bound.calls_at_once)
    running: set[asyncio.Task[None]] = set()

    async def run(call: "_Call", alone: bool) -> None:
        try:
            call.report(await _awaited(bound, call, alone, block), emit)
        finally:
            slots.release()

    while (calls := await next_calls()) is not None:
        for call in _split(bound, calls):
            await slots.acquire()
            task = asyncio.create_task(run(call, calls.alone))
            running.add(task)
            task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    ticker.cancel()


@dataclass(frozen=True)
class _Call:
    """One call of the function: on one row, or on a batch as lists."""

    bound: BoundFunction
    rows: Sequence[int]
    positional: Sequence[Any]  # prompt and response, or lists of them
    by_name: Mapping[str, Any]

    def answered(self, answer: object, seconds: float) -> list[Outcome | None]:
        spec = self.bound.spec
        if seconds > spec.timeout_s:
            message = f"returned after {seconds:.3g} s, past its timeout_s of {spec.timeout_s:g}"
            return self.failed(Outcome(failure=CallFailure("timeout", message), seconds=seconds))
        if spec.batch_size is None:
            return [outcome_of(answer, spec.keys, seconds)]
        answers = _as_list(answer)
        if answers is None or len(answers) != len(self.rows):
            count = "" if answers is None else f" of {len(answers)}"
            message = f"returned {described(answer)}{count}, not a list with one answer per sample ({len(self.rows)})"
            return self.failed(Outcome(failure=CallFailure("wrong_type", message), seconds=seconds))
        return [outcome_of(item, spec.keys, seconds / len(answers)) for item in answers]

    def failed(self, outcome: Outcome) -> list[Outcome | None]:
        """The call failed as a whole: that is its row's outcome, if it has but one."""
        return [outcome] if len(self.rows) == 1 else [None] * len(self.rows)

    def report(self, outcomes: Sequence[Outcome | None], emit: Emit) -> None:
        for row, outcome in zip(self.rows, outcomes, strict=True):
            emit(row, outcome)


class _LoopBlock:
    """Seconds for which something kept the event loop from turning."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._due = perf_counter()  # when the next tick should come

    @property
    def seconds(self) -> float:
        return self._seconds + max(0.0, perf_counter() - self._due)

    async def watch(self) -> None:
        while True:
            self._due = perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._seconds = self.seconds


async def _awaited(bound: BoundFunction, call: _Call, alone: bool, block: _LoopBlock) -> list[Outcome | None]:
    timeout_s = bound.spec.timeout_s
    started, blocked = perf_counter(), block.seconds
    task = asyncio.create_task(_answer(bound, call))
    await asyncio.wait({task}, timeout=timeout_s)
    answer, error, ended = task.result() if task.done() else (None, None, perf_counter())
    seconds = ended - started
    late = seconds > timeout_s or not task.done()
    if late and not alone and block.seconds - blocked > _BLOCKED_SHARE * timeout_s:
        task.cancel()
        return [None] * len(call.rows)  # a neighbour may have kept it from running
    if not task.done():
        task.cancel()
        message = f"did not return within {timeout_s:g} s and was cancelled"
        return call.failed(Outcome(failure=CallFailure("timeout", message), seconds=seconds))
    if error is not None:
        return call.failed(outcome_of_exception(error, seconds))
    return call.answered(answer, seconds)


async def _answer(bound: BoundFunction, call: _Call) -> tuple[Any, BaseException | None, float]:
    """What the function returned or raised, and when: an event loop would end at a task that raises SystemExit."""
    try:
        return await bound.function(*call.positional, **call.by_name), None, perf_counter()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error, perf_counter()


def _split(bound: BoundFunction, calls: Calls) -> Iterator[_Call]:
    """The single calls; `calls.rows` are already cut such that batches do not straddle two messages."""
    names, arguments = bound.columns, bound.spec.arguments
    size = bound.spec.batch_size
    if size is None:
        for row, prompt, response, *extras in zip(calls.rows, *calls.columns, strict=True):
            yield _Call(bound, (row,), (prompt, response), {**dict(zip(names, extras, strict=True)), **arguments})
        return
    for start in range(0, len(calls.rows), size):
        prompts, responses, *extras = (list(column[start : start + size]) for column in calls.columns)
        by_name = {**dict(zip(names, extras, strict=True)), **arguments}
        yield _Call(bound, calls.rows[start : start + size], (prompts, responses), by_name)


def _as_list(answer: object) -> list[Any] | None:
    """The items of a list, tuple, array or the like; None for anything else."""
    if isinstance(answer, (str, bytes, Mapping)) or not hasattr(answer, "__len__"):
        return None
    try:
        return list(answer)  # type: ignore[call-overload]
    except Exception:
        return None
