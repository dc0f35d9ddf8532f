"""Which row is called when: what waits, what is with the child, and what has to be called alone.

When a child is lost, the calls that it may have been running are the first `calls_at_once` unanswered ones, since it
starts them in order. If that is one row, the row is to blame; if it is several, each is called again with nothing
beside it, and the next loss then has one suspect.
"""

from collections import deque
from collections.abc import Sequence

_ROWS_PER_MESSAGE = 64


class Schedule:
    """The state of one table's calls. Rows are numbered 0 to `rows` - 1."""

    def __init__(self, rows: int, batch_size: int, calls_at_once: int) -> None:
        self._batch_size = batch_size
        self._calls_at_once = calls_at_once
        self._message_rows = batch_size * max(1, _ROWS_PER_MESSAGE // batch_size)
        self._waiting = deque(range(rows))
        self._alone: deque[int] = deque()
        self._one_is_alone = False  # the row that is with the child
        self._calls: list[list[int]] = []  # with the child, in the order sent; answered rows removed

    @property
    def in_flight(self) -> int:
        """Rows that are with the child."""
        return sum(map(len, self._calls))

    def next_message(self) -> tuple[list[int], bool] | None:
        """Rows to send now, and whether they must be alone; None while the child has enough, or nothing is left."""
        if self._calls and (self._alone or self._one_is_alone):
            return None
        if self._alone:
            return self._send([self._alone.popleft()], alone=True)
        if not self._waiting or self.in_flight >= self._calls_at_once * self._batch_size + self._message_rows:
            return None
        count = min(len(self._waiting), self._message_rows)
        return self._send([self._waiting.popleft() for _ in range(count)], alone=False)

    def answered(self, rows: Sequence[int]) -> None:
        """The child is done with `rows`."""
        done = set(rows)
        left = ([row for row in call if row not in done] for call in self._calls)
        self._calls = [call for call in left if call]

    def repeat_alone(self, row: int) -> None:
        self._alone.append(row)

    def lose_child(self) -> int | None:
        """All that was with the child waits again. The row that is to blame, which does not; None if not yet known."""
        suspects = [row for call in self._calls[: self._calls_at_once] for row in call]
        innocent = [row for call in self._calls[self._calls_at_once :] for row in call]
        self._waiting.extendleft(reversed(innocent))
        self._calls = []
        if len(suspects) == 1:
            return suspects[0]
        self._alone.extend(suspects)
        return None

    def _send(self, rows: list[int], alone: bool) -> tuple[list[int], bool]:
        size = self._batch_size
        self._one_is_alone = alone
        self._calls += [rows[start : start + size] for start in range(0, len(rows), size)]
        return rows, alone
