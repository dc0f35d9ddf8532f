"""The order of calls: what is sent, who is suspected when a child is lost, who is called again alone."""

import random

import pytest

from rlhf_ray.rewards.schedule import Schedule

pytestmark = pytest.mark.unit


def drain(schedule: Schedule) -> list[tuple[list[int], bool]]:
    messages = []
    while (message := schedule.next_message()) is not None:
        messages.append(message)
    return messages


def test_single_calls_leave_one_suspect_and_the_rest_waits_in_order() -> None:
    schedule = Schedule(rows=100, batch_size=1, calls_at_once=1)
    assert [rows for rows, _ in drain(schedule)] == [list(range(64)), list(range(64, 100))]
    schedule.answered(range(10))
    assert schedule.lose_child() == 10
    assert schedule.in_flight == 0
    assert drain(schedule)[0] == (list(range(11, 75)), False)


def test_batches_are_suspected_whole_and_their_rows_then_called_alone() -> None:
    schedule = Schedule(rows=10, batch_size=4, calls_at_once=1)
    assert drain(schedule) == [(list(range(10)), False)]
    schedule.answered(range(4))
    assert schedule.lose_child() is None
    alone = []
    while (message := schedule.next_message()) is not None and message[1]:
        alone.append(message[0])
        assert schedule.next_message() is None, "nothing beside a row that is alone"
        schedule.answered(message[0])
    assert alone == [[4], [5], [6], [7]]
    assert message == ([8, 9], False)


def test_calls_that_run_together_are_the_first_unanswered_ones() -> None:
    schedule = Schedule(rows=6, batch_size=1, calls_at_once=3)
    drain(schedule)
    schedule.answered([1])
    assert schedule.lose_child() is None  # 0, 2 and 3 were running
    assert schedule.next_message() == ([0], True)
    schedule.answered([0])
    assert schedule.next_message() == ([2], True)
    assert schedule.lose_child() == 2
    assert schedule.next_message() == ([3], True)
    schedule.answered([3])
    assert drain(schedule) == [([4, 5], False)]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_ends_once_and_only_bad_rows_are_blamed(seed: int) -> None:
    """A child that dies at some rows, fails whole batches at others and answers out of order, simulated."""
    rng = random.Random(seed)
    rows, batch_size, at_once = rng.randint(1, 300), rng.choice([1, 1, 3, 100]), rng.choice([1, 1, 4, 50])
    deadly, raising = ({rng.randrange(rows) for _ in range(rng.randint(0, 8))} for _ in range(2))
    schedule = Schedule(rows, batch_size, at_once)
    sent: list[list[int]] = []
    ended: list[int] = []
    blamed = set()
    while len(ended) < rows:
        for message, alone in drain(schedule):
            size = 1 if alone else batch_size
            sent += [message[i : i + size] for i in range(0, len(message), size)]
        running = sent[:at_once]
        if any(deadly & set(call) for call in running) and rng.random() < 0.5:
            sent = []
            if (culprit := schedule.lose_child()) is not None:
                blamed.add(culprit)
                ended.append(culprit)
            continue
        call = rng.choice([c for c in running if not deadly & set(c)] or [None])
        if call is None:
            continue
        sent.remove(call)
        schedule.answered(call)
        if raising & set(call) and len(call) > 1:
            for row in call:
                schedule.repeat_alone(row)
        else:
            ended += call
    assert sorted(ended) == list(range(rows))
    assert blamed == deadly
