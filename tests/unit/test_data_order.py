"""Data order is a pure function of (seed, epoch) and of (seed, step)."""

import numpy as np
import pytest

from rlhf_ray.data.order import cursor, draw, epoch_order, moved

pytestmark = pytest.mark.unit


def test_an_epoch_visits_every_row_once_and_repeats_exactly():
    order = epoch_order(100, seed=3, epoch=5)
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, epoch_order(100, seed=3, epoch=5))


def test_seeds_and_epochs_differ_and_do_not_alias():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_without_shuffling_the_source_order_stays():
    assert epoch_order(4, seed=1, epoch=2, shuffle=False).tolist() == [0, 1, 2, 3]
    assert draw(4, per_step=2, step=1, seed=0, shuffle=False).tolist() == [2, 3]
    assert draw(4, per_step=2, step=2, seed=0, shuffle=False).tolist() == [0, 1]


@pytest.mark.parametrize(("rows", "per_step"), [(10, 4), (10, 5), (7, 7), (1, 1)])
def test_an_epoch_is_whole_steps_of_its_order_without_a_row_twice(rows, per_step):
    steps = rows // per_step
    for epoch in range(3):
        drawn = np.concatenate([draw(rows, per_step, epoch * steps + step, seed=1) for step in range(steps)])
        assert np.array_equal(drawn, epoch_order(rows, 1, epoch)[: steps * per_step])
        assert len(set(drawn.tolist())) == len(drawn)


def test_the_cursor_says_where_the_next_draw_is_and_when_that_is_elsewhere():
    here = cursor(10, per_step=4, step=5)
    assert here == {"rows": 10, "per_step": 4, "epoch": 2, "step_of_epoch": 1}
    assert np.array_equal(draw(10, 4, 5, seed=3), epoch_order(10, seed=3, epoch=2)[4:8])
    assert moved(here, cursor(10, per_step=4, step=5)) is None
    assert moved(here, cursor(12, per_step=4, step=5)) == (
        "the data is visited in another order than before: rows was 10, is 12, epoch was 2, is 1, "
        "step_of_epoch was 1, is 2"
    )
