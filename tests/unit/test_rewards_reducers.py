"""Reducers by example and by property, from configuration and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.rewards import ReducerSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.rewards.reducers import (
    FunctionReducer,
    MaxReducer,
    MeanReducer,
    MinReducer,
    ProductReducer,
    Reducer,
    WeightedSumReducer,
    make_reducer,
    reducer_section,
)

pytestmark = pytest.mark.unit

NAN = np.nan
VALUES = {"a": np.array([1.0, -2.0, NAN, NAN]), "b": np.array([3.0, NAN, 0.5, NAN])}
WEIGHTS = {"a": 2.0, "b": -1.0}


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        (WeightedSumReducer(), [-1.0, -4.0, -0.5, 0.0]),
        (MeanReducer(), [-1 / 3, -2.0, -0.5, NAN]),
        (MinReducer(), [-3.0, -4.0, -0.5, NAN]),
        (MaxReducer(), [2.0, -4.0, -0.5, NAN]),
        (ProductReducer(), [-6.0, -4.0, -0.5, NAN]),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_does_not_apply_is_ignored(reducer: Reducer, expected: list[float]) -> None:
    np.testing.assert_allclose(reducer.reduce(VALUES, WEIGHTS), expected)


@pytest.mark.parametrize("reducer", [WeightedSumReducer(), MeanReducer(), MinReducer(), MaxReducer(), ProductReducer()])
def test_weight_zero_counts_for_nothing(reducer: Reducer) -> None:
    with_gate = reducer.reduce({**VALUES, "gate": np.zeros(4)}, {**WEIGHTS, "gate": 0.0})
    np.testing.assert_array_equal(with_gate, reducer.reduce(VALUES, WEIGHTS))


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.floats(-5, 5))
def test_mean_min_and_max_agree_where_all_values_do(weights: list[float], value: float) -> None:
    names = [f"c{i}" for i in range(len(weights))]
    values = {name: np.array([value]) for name in names}
    equal = dict.fromkeys(names, 1.0)
    for reducer in (MeanReducer(), MinReducer(), MaxReducer()):
        np.testing.assert_allclose(reducer.reduce(values, equal), value, atol=1e-12)
    total = WeightedSumReducer().reduce(values, dict(zip(names, weights, strict=True)))
    np.testing.assert_allclose(total, sum(weights) * value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["weighted_sum", "mean", "min", "max", "product"])
def test_sections_give_the_reducer_back(kind: str) -> None:
    section = ReducerSection(type=kind)
    assert make_reducer(section).section() == section
    assert reducer_section(kind) == section
    assert reducer_section(type(make_reducer(section))) == section


def geometric(values: dict[str, np.ndarray], weights: dict[str, float], floor: float = 0.0) -> np.ndarray:
    present = [np.maximum(np.nan_to_num(column, nan=1.0), floor) ** weights[name] for name, column in values.items()]
    return np.prod(present, axis=0)


def test_a_function_by_import_path_and_by_code() -> None:
    values, weights = {"a": np.array([4.0, 0.0]), "b": np.array([9.0, 1.0])}, {"a": 0.5, "b": 0.5}
    section = FunctionReducer(geometric, floor=0.25).section()
    assert section.function == f"{__name__}:geometric"
    assert section.code is None
    np.testing.assert_allclose(make_reducer(section).reduce(values, weights), [6.0, 0.5])

    exponent = 2
    inline = reducer_section(lambda values, weights: values["a"] ** exponent)
    assert inline.code is not None
    np.testing.assert_allclose(make_reducer(inline).reduce(values, weights), [16.0, 0.0])


def test_a_subclass_needs_reduce_alone() -> None:
    class Median(Reducer):
        def reduce(self, values: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
            return np.nanmedian(list(values.values()), axis=0)

    total = make_reducer(reducer_section(Median())).reduce(
        {"a": np.array([1.0]), "b": np.array([5.0])}, {"a": 1.0, "b": 1.0}
    )
    assert total.tolist() == [3.0]


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda values, weights: values["a"] + values["b"], "returned nan for 2 samples, for example for {'a': -2.0"),
        (lambda values, weights: 1.0, r"returned shape \[\] for 4 samples"),
        (lambda values, weights: np.zeros(3), r"returned shape \[3\] for 4 samples"),
        (lambda values, weights: np.full(4, np.inf), "returned inf for 3 samples"),
        (lambda values, weights: values["c"], "raised KeyError: 'c'"),
    ],
)
def test_a_function_that_gives_no_reward_is_refused(function: object, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        FunctionReducer(function).reduce(VALUES, WEIGHTS)


def test_a_function_has_no_say_where_nothing_applies() -> None:
    total = FunctionReducer(lambda values, weights: np.full(4, 7.0)).reduce(VALUES, WEIGHTS)
    np.testing.assert_array_equal(total, [7.0, 7.0, 7.0, NAN])


def test_what_is_no_reducer_is_named() -> None:
    with pytest.raises(ConfigError, match="reducer: got 3, expected"):
        reducer_section(3)
    with pytest.raises(ConfigError, match="type: 'median' should be 'weighted_sum'"):
        reducer_section("median")
    with pytest.raises(ConfigError, match="has no `nothing`"):
        make_reducer(ReducerSection(type="function", function="math:nothing"))
