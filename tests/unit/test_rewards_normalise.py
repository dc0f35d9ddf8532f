"""Running moments: equal to those of all values at once, however they came in; carried through a checkpoint exactly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.rewards.normalise import RewardNormalizer, RunningMoments

pytestmark = pytest.mark.unit

SECTIONS = {
    "a": FunctionRewardSection(function="m:f", normalize="running"),
    "b": FunctionRewardSection(function="m:f"),
    "c": FunctionRewardSection(function="m:f", normalize="running", enabled=False),
}


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=6))
def test_batches_give_the_moments_of_the_whole(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments.update(np.array(batch))
    values = np.concatenate([np.array(batch) for batch in batches])
    assert moments.count == values.size
    if values.size:
        np.testing.assert_allclose([moments.mean, moments.std], [values.mean(), values.std()], rtol=1e-9, atol=1e-6)


def test_a_large_offset_does_not_cancel() -> None:
    moments = RunningMoments()
    for value in (1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16):
        moments.update(np.array([value]))
    assert moments.std == pytest.approx(np.sqrt(22.5))


def test_only_normalised_components_change() -> None:
    normalizer = RewardNormalizer(SECTIONS)
    values = {"a": np.array([1.0, 3.0, np.nan]), "b": np.array([5.0, 6.0, 7.0])}
    normalizer.update(values)
    applied = normalizer.apply(values)
    np.testing.assert_array_equal(applied["a"], [-1.0, 1.0, np.nan])
    assert applied["b"].tolist() == [5.0, 6.0, 7.0]
    assert list(normalizer.state_dict()) == ["a"]


def test_a_constant_component_is_centred_only() -> None:
    normalizer = RewardNormalizer(SECTIONS)
    normalizer.update({"a": np.array([0.1, 0.1, 0.1])})
    np.testing.assert_allclose(normalizer.apply({"a": np.array([0.1, 0.6])})["a"], [0.0, 0.5], atol=1e-15)


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=17), rng.normal(size=5)
    whole, resumed = RewardNormalizer(SECTIONS), RewardNormalizer(SECTIONS)
    whole.update({"a": first})
    resumed.load_state_dict(json.loads(json.dumps({**whole.state_dict(), "gone": {"count": 1, "mean": 0, "m2": 0}})))
    whole.update({"a": second})
    resumed.update({"a": second})
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.moments["a"].count == 22
