"""Learning-rate schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algorithms.schedules import learning_rate_factor, warmup_steps
from rlhf_ray.config.common import LearnerSection

pytestmark = pytest.mark.unit

SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt", "wsd")


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
    [
        ("constant", 1.0, 1.0, 1.0),
        ("linear", 0.75, 0.5, 0.0),
        ("cosine", 0.853553, 0.5, 0.0),
        ("wsd", 1.0, 1.0, 0.0),
    ],
)
def test_decay_by_hand(schedule, quarter, half, end):
    factors = [learning_rate_factor(step, 100, 20, schedule) for step in (40, 60, 100, 1000)]
    assert factors == pytest.approx([quarter, half, end, end], abs=1e-6)


def test_wsd_falls_over_the_last_fifth():
    # Warm-up 20 of 120 steps: the fall begins at step 100. A quarter of it, at 105, is 1 - sqrt(1 / 4).
    factors = [learning_rate_factor(step, 120, 20, "wsd") for step in (100, 105, 120)]
    assert factors == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_inverse_square_root_of_the_steps_in_warm_ups():
    assert [learning_rate_factor(step, 1000, 10, "inverse_sqrt") for step in (10, 40, 90)] == pytest.approx(
        [1.0, 1 / 2, 1 / 3]
    )
    assert learning_rate_factor(30_000, 40_000, 0, "inverse_sqrt") == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_end_is_a_share_of_the_peak(schedule):
    assert learning_rate_factor(5, 100, 10, schedule, 0.1) == 0.5  # the warm-up knows nothing of it
    assert learning_rate_factor(100, 100, 10, schedule, 0.1) == pytest.approx(0.1)
    assert learning_rate_factor(10, 100, 10, schedule, 0.1) == 1.0


@given(
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(0, 50),
    st.sampled_from(SCHEDULES),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_within_bounds_rising_then_falling(step, total, warmup, schedule, least):
    now, after = (learning_rate_factor(at, total, warmup, schedule, least) for at in (step, step + 1))
    assert 0.0 <= now <= 1.0
    if step < warmup:
        assert after > now
    else:
        assert least <= after <= now


def test_the_warm_up_in_steps_or_as_a_share_of_the_run():
    assert warmup_steps(LearnerSection(warmup_steps=7), 100) == 7
    assert warmup_steps(LearnerSection(warmup_ratio=0.1), 95) == 10
    assert warmup_steps(LearnerSection(), 100) == 0
