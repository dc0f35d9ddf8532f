"""Learning-rate schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algorithms.schedules import learning_rate_factor

pytestmark = pytest.mark.unit

SCHEDULES = ("constant", "linear", "cosine")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_from_zero(schedule):
    factors = [learning_rate_factor(step, 100, 4, schedule) for step in range(5)]
    assert factors == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_is_at_the_peak(schedule):
    assert learning_rate_factor(0, 100, 0, schedule) == 1.0


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "end"),
    # Warm-up 20 of 100 steps: a quarter of the decay is at step 40, half at 60. (1 + cos(pi / 4)) / 2 = 0.853553.
    [("constant", 1.0, 1.0, 1.0), ("linear", 0.75, 0.5, 0.0), ("cosine", 0.853553, 0.5, 0.0)],
)
def test_decay_by_hand(schedule, quarter, half, end):
    factors = [learning_rate_factor(step, 100, 20, schedule) for step in (40, 60, 100, 1000)]
    assert factors == pytest.approx([quarter, half, end, end], abs=1e-6)


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 50), st.sampled_from(SCHEDULES))
def test_within_bounds_rising_then_falling(step, total, warmup, schedule):
    now, after = (learning_rate_factor(at, total, warmup, schedule) for at in (step, step + 1))
    assert 0.0 <= now <= 1.0
    assert after > now if step < warmup else after <= now
