"""Composition: gates, scales, clips, reducers and the three answers to a failure, by example and by property."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.rewards import FunctionRewardSection, GateSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.rewards.compose import compose
from rlhf_ray.rewards.failure import RewardFailure, failures_by_row
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.rewards.quarantine import append_failures
from rlhf_ray.rewards.reducers import (
    FunctionReducer,
    MaxReducer,
    MeanReducer,
    MinReducer,
    ProductReducer,
    Reducer,
    WeightedSumReducer,
)

pytestmark = pytest.mark.unit


def section(
    weight: float = 1.0, on_failure: str = "fail", enabled: bool = True, **options: Any
) -> FunctionRewardSection:
    return FunctionRewardSection(function="m:f", weight=weight, on_failure=on_failure, enabled=enabled, **options)


def failure(component: str, row: int = 0) -> RewardFailure:
    return RewardFailure(
        component, 100 + row, row, "raised", "raised ValueError: boom", "Traceback: here", "Why?", "Because"
    )


def test_weighted_sum_where_none_contributes_nothing() -> None:
    columns = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([10.0, np.nan, np.nan])}
    composed = compose(columns, {}, {"a": section(0.5), "b": section(-2.0)})
    assert composed.total.tolist() == [-19.5, 1.0, 0.0]
    assert composed.keep.all()
    assert composed.components["b"].metrics() == {
        "mean": 10.0, "std": 0.0, "min": 10.0, "max": 10.0, "contribution": pytest.approx(-20 / 3),
        "applied": 1.0, "did_not_apply": 2.0, "failed": 0.0,
    }  # fmt: skip


def test_fail_stops_with_everything_needed_to_see_why() -> None:
    columns = {"a": np.array([np.nan, 1.0])}
    with pytest.raises(DataError) as error:
        compose(columns, {(0, "a"): failure("a")}, {"a": section()})
    for words in (
        "`a`",
        "prompt 100, sample 0",
        "ValueError: boom",
        "Traceback: here",
        "'Why?'",
        "rewards.a.on_failure",
    ):
        assert words in str(error.value)


def test_skip_sample_drops_the_sample_and_leaves_no_number() -> None:
    columns = {"a": np.array([np.nan, 1.0]), "b": np.array([1.0, 1.0])}
    composed = compose(columns, {(0, "a"): failure("a")}, {"a": section(on_failure="skip_sample"), "b": section()})
    assert composed.keep.tolist() == [False, True]
    assert np.isnan(composed.total[0])
    assert composed.total[1] == 2.0
    assert composed.components["a"].failed == 1


def test_leave_out_keeps_the_sum_of_weight_magnitudes() -> None:
    columns = {"a": np.array([np.nan, 1.0]), "b": np.array([0.5, 0.5]), "c": np.array([0.2, 0.2])}
    sections = {"a": section(2.0, "leave_out"), "b": section(1.0), "c": section(-1.0)}
    composed = compose(columns, {(0, "a"): failure("a")}, sections)
    assert composed.total == pytest.approx([(0.5 - 0.2) * 4 / 2, 2.0 + 0.5 - 0.2])


def test_a_sample_with_nothing_left_is_dropped() -> None:
    columns = {"a": np.array([np.nan, 1.0])}
    composed = compose(columns, {(0, "a"): failure("a")}, {"a": section(on_failure="leave_out")})
    assert composed.keep.tolist() == [False, True]
    assert np.isnan(composed.total[0])


def test_a_value_beside_a_failure_is_not_used() -> None:
    columns = {"a": np.array([7.0]), "b": np.array([1.0])}
    composed = compose(columns, {(0, "a"): failure("a")}, {"a": section(on_failure="leave_out"), "b": section()})
    assert composed.total.tolist() == [2.0]
    assert composed.components["a"].applied == 0
    assert "mean" not in composed.components["a"].metrics()


def test_disabled_components_count_for_nothing() -> None:
    sections = {"a": section(), "b": section(5.0, enabled=False)}
    assert compose({"a": np.array([1.0])}, {}, sections).total.tolist() == [1.0]
    with pytest.raises(ConfigError, match="No reward component is enabled"):
        compose({}, {}, {"b": section(enabled=False)})


def test_infinity_and_absent_columns_are_refused() -> None:
    with pytest.raises(DataError, match="1 infinite"):
        compose({"a": np.array([np.inf])}, {}, {"a": section()})
    with pytest.raises(DataError, match="No scores came for reward component `b`"):
        compose({"a": np.array([1.0])}, {}, {"a": section(), "b": section()})


def test_a_gate_opens_by_the_other_components_raw_value() -> None:
    columns = {"a": np.array([5.0, 6.0, 7.0, np.nan]), "b": np.array([0.2, 0.8, np.nan, 0.9])}
    sections = {
        "a": section(gate={"component": "b", "above": 0.5, "otherwise": -1.0}),
        "b": section(0.0, clip=[0.0, 0.1]),
    }
    composed = compose(columns, {}, sections)
    assert composed.total.tolist() == [-1.0, 6.0, -1.0, 0.0]  # shut, open, b did not apply, a itself did not
    assert composed.components["a"].shut == 2
    assert composed.components["a"].mean == 6.0  # of the raw values
    assert composed.components["a"].contribution == pytest.approx((-1 + 6 - 1) / 4)
    assert "shut" not in composed.components["b"].metrics()


def test_a_gate_may_have_two_bounds_and_components_may_gate_each_other() -> None:
    columns = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([1.0, 2.0, 3.0])}
    sections = {
        "a": section(gate={"component": "b", "above": 1.0, "below": 3.0}),
        "b": section(10.0, gate={"component": "a", "below": 2.0}),
    }
    assert compose(columns, {}, sections).total.tolist() == [10.0, 21.0, 0.0]


@pytest.mark.parametrize(("reducer", "total"), [(WeightedSumReducer(), 3.0), (MeanReducer(), 3.0), (MinReducer(), 3.0)])
def test_a_gate_that_failed_and_was_left_out_makes_the_gated_one_not_apply(reducer: Reducer, total: float) -> None:
    columns = {"a": np.array([5.0]), "b": np.array([np.nan]), "c": np.array([3.0])}
    sections = {
        "a": section(gate={"component": "b", "above": 0.0, "otherwise": 9.0}),
        "b": section(0.0, "leave_out"),
        "c": section(),
    }
    composed = compose(columns, {(0, "b"): failure("b")}, sections, reducer)
    assert composed.total.tolist() == [total]
    assert composed.components["a"].shut == 0


def test_a_failure_stays_one_behind_a_shut_gate() -> None:
    columns = {"a": np.array([np.nan]), "b": np.array([0.0])}
    sections = {"a": section(1.0, "skip_sample", gate={"component": "b", "above": 0.5}), "b": section()}
    assert not compose(columns, {(0, "a"): failure("a")}, sections).keep.any()


@pytest.mark.parametrize(
    ("component", "others", "complaint"),
    [
        ("corect", {"correct": section()}, "rewards.a.gate.component: 'corect' is no component; did you mean correct"),
        ("a", {}, "rewards.a.gate.component: 'a' is the component itself"),
        ("b", {"b": section(enabled=False)}, "rewards.a.gate.component: 'b' is not enabled: enable it with weight 0"),
    ],
)
def test_a_gate_must_name_another_enabled_component(component: str, others: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        compose({}, {}, {"a": section(gate={"component": component, "above": 0.0}), **others})


def test_gate_then_normalisation_then_clip_then_weight() -> None:
    columns = {"a": np.array([10.0, 20.0, 30.0, 99.0]), "b": np.array([1.0, 1.0, 1.0, 0.0])}
    sections = {
        "a": section(2.0, normalize="running", clip=[-1.0, 1.0], gate={"component": "b", "above": 0.5}),
        "b": section(0.0),
    }
    gated = np.array([10.0, 20.0, 30.0, 0.0])
    expected = 2 * np.clip((gated - gated.mean()) / gated.std(), -1, 1)
    np.testing.assert_allclose(compose(columns, {}, sections).total, expected)


def test_moments_come_from_kept_training_samples_alone() -> None:
    columns = {"a": np.array([1.0, 3.0, 100.0, np.nan]), "b": np.array([0.0, 0.0, np.nan, 0.0])}
    sections = {"a": section(normalize="running"), "b": section(on_failure="skip_sample")}
    failed = {(2, "b"): failure("b", 2)}
    normalizer = RewardNormalizer(sections)
    trained = compose(columns, failed, sections, normalizer=normalizer, update=True)
    assert (normalizer.moments["a"].count, normalizer.moments["a"].mean) == (2, 2.0)
    np.testing.assert_array_equal(trained.total, [-1.0, 1.0, np.nan, 0.0])

    evaluated = compose({"a": np.array([7.0]), "b": np.array([0.0])}, {}, sections, normalizer=normalizer)
    assert evaluated.total.tolist() == [5.0]
    assert normalizer.moments["a"].count == 2


def test_under_other_reducers_a_sample_with_nothing_left_is_dropped() -> None:
    columns = {"a": np.array([np.nan, np.nan, 4.0]), "b": np.array([np.nan, 2.0, np.nan])}
    sections = {"a": section(2.0, "leave_out"), "b": section()}
    composed = compose(columns, {(1, "a"): failure("a", 1)}, sections, MinReducer())
    np.testing.assert_array_equal(composed.total, [np.nan, 2.0, 8.0])  # not scaled up for the one left out
    assert composed.keep.tolist() == [False, True, True]


def test_a_reducer_function_sees_kept_samples_alone() -> None:
    columns = {"a": np.array([1.0, np.nan, 3.0])}
    sections = {"a": section(on_failure="skip_sample")}
    doubled = FunctionReducer(lambda values, weights: values["a"] * 2)
    composed = compose(columns, {(1, "a"): failure("a", 1)}, sections, doubled)
    np.testing.assert_array_equal(composed.total, [2.0, np.nan, 6.0])
    nothing_left = compose({"a": np.array([np.nan])}, {(0, "a"): failure("a")}, sections, doubled)
    assert not nothing_left.keep.any()


def test_keys_of_a_dict_are_counted_and_not_added() -> None:
    columns = {"a": np.array([3.0, np.nan]), "a/x": np.array([1.0, np.nan]), "a/y": np.array([np.nan, np.nan])}
    composed = compose(columns, {(1, "a"): failure("a", 1)}, {"a": section(on_failure="skip_sample")})
    assert composed.total[0] == 3.0
    x, y = composed.components["a/x"], composed.components["a/y"]
    assert (x.applied, x.failed, x.mean) == (1, 1, 1.0)
    assert (y.applied, y.did_not_apply, y.failed) == (0, 1, 1)
    assert "contribution" not in x.metrics()


def test_a_total_that_overflows_is_refused() -> None:
    columns = {"a": np.array([1e300, 1e300, 1.0]), "b": np.array([0.0, 1e300, 0.0])}
    sections = {"a": section(1e300), "b": section(-1e300)}
    with pytest.raises(DataError, match="The total reward of 2 samples is too large"):
        compose(columns, {}, sections)


NUMBERS = st.floats(-100, 100, allow_nan=False)
WEIGHTS = st.floats(0.01, 10)
REDUCERS = st.sampled_from([WeightedSumReducer(), MeanReducer(), MinReducer(), MaxReducer(), ProductReducer()])


@st.composite
def batches(draw: st.DrawFn) -> tuple[dict, dict, dict]:
    """Columns, failures and sections of 1 to 4 components; each cell has a value, does not apply, or failed."""
    names = [f"c{i}" for i in range(draw(st.integers(1, 4)))]
    samples = draw(st.integers(1, 6))
    columns = {
        n: np.array(draw(st.lists(NUMBERS | st.just(np.nan), min_size=samples, max_size=samples))) for n in names
    }
    cells = st.sets(st.tuples(st.integers(0, samples - 1), st.sampled_from(names)))
    failed = {cell: failure(cell[1], cell[0]) for cell in draw(cells)}
    policies = st.sampled_from(["skip_sample", "leave_out"])
    sections = {n: section(draw(WEIGHTS) * draw(st.sampled_from([1, -1])), draw(policies)) for n in names}
    return columns, failed, sections


@settings(deadline=None)
@given(batches())
def test_kept_totals_are_finite_and_dropped_ones_are_not_numbers(batch: tuple[dict, dict, dict]) -> None:
    composed = compose(*batch)
    assert np.isfinite(composed.total[composed.keep]).all()
    assert np.isnan(composed.total[~composed.keep]).all()


@settings(deadline=None)
@given(batches(), REDUCERS, st.data())
def test_samples_do_not_influence_each_other(
    batch: tuple[dict, dict, dict], reducer: Reducer, data: st.DataObject
) -> None:
    columns, failed, sections = batch
    for name in data.draw(st.sets(st.sampled_from(sorted(sections)))) if len(sections) > 1 else ():
        other = data.draw(st.sampled_from(sorted(sections.keys() - {name})))
        sections[name] = sections[name].model_copy(update={"gate": GateSection(component=other, above=0.0)})
    composed = compose(columns, failed, sections, reducer)
    for row in range(len(composed.total)):
        alone = compose(
            {name: column[row : row + 1] for name, column in columns.items()},
            {(0, name): f for (r, name), f in failed.items() if r == row},
            sections,
            reducer,
        )
        assert alone.keep[0] == composed.keep[row]
        np.testing.assert_array_equal(alone.total[0], composed.total[row])  # to the last bit


@settings(deadline=None)
@given(batches())
def test_a_sample_is_dropped_exactly_when_it_must_be(batch: tuple[dict, dict, dict]) -> None:
    columns, failed, sections = batch
    composed = compose(columns, failed, sections)
    for row, kept in enumerate(composed.keep):
        lost = {name for r, name in failed if r == row}
        must_drop = lost == set(sections) or any(sections[name].on_failure == "skip_sample" for name in lost)
        assert kept == (not must_drop)


@settings(deadline=None)
@given(st.lists(WEIGHTS, min_size=2, max_size=5), NUMBERS, st.data())
def test_leaving_components_out_keeps_the_scale(weights: list[float], value: float, data: st.DataObject) -> None:
    """When all components agree on a value, the total does not depend on which of them failed."""
    names = [f"c{i}" for i in range(len(weights))]
    lost = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    sections = {name: section(weight, "leave_out") for name, weight in zip(names, weights, strict=True)}
    columns = {name: np.array([np.nan if name in lost else value]) for name in names}
    composed = compose(columns, {(0, name): failure(name) for name in lost}, sections)
    np.testing.assert_allclose(composed.total, sum(weights) * value, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(batches())
def test_every_sample_is_counted_once_per_component(batch: tuple[dict, dict, dict]) -> None:
    for stats in compose(*batch).components.values():
        assert stats.applied + stats.did_not_apply + stats.failed == len(next(iter(batch[0].values())))


def test_failures_find_their_rows_and_the_quarantine(tmp_path: Path) -> None:
    failures = [failure("a", 2), failure("b", 0)]
    placed = failures_by_row(failures, np.array([100, 101, 102]), np.array([0, 1, 2]))
    assert placed == {(2, "a"): failures[0], (0, "b"): failures[1]}
    drawn_twice = failures_by_row(failures[1:], np.array([100, 101, 100]), np.array([0, 1, 0]))
    assert drawn_twice == {(0, "b"): failures[1], (2, "b"): failures[1]}

    folder = tmp_path / "quarantine"
    path = append_failures(folder, failures, iteration=7)
    append_failures(folder, [failure("c", 1)], iteration=8)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["iteration"], line["component"], line["prompt_id"]) for line in lines] == [
        (7, "a", 102),
        (7, "b", 100),
        (8, "c", 101),
    ]
    assert lines[0]["traceback"] == "Traceback: here"
    assert (lines[0]["prompt"], lines[0]["response"]) == ("Why?", "Because")


def test_no_failures_make_no_file(tmp_path: Path) -> None:
    append_failures(tmp_path / "quarantine", [], iteration=0)
    assert not (tmp_path / "quarantine").exists()
