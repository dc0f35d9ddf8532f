"""The audit's comparisons, with numbers worked out by hand."""

import numpy as np
import pytest

from rlhf_ray.weights.audit import LogprobGap, Tolerance, compare_receipts, diagnose, tolerances

pytestmark = pytest.mark.unit


def test_receipts_that_agree_have_no_findings() -> None:
    assert compare_receipts({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == []


def test_receipts_name_what_is_missing_extra_and_different() -> None:
    findings = compare_receipts({"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "x", "d": "4"})
    assert findings == ["1 not loaded: a", "1 loaded but not sent: d", "1 loaded with other bytes: c"]


def test_a_long_list_is_cut() -> None:
    (finding,) = compare_receipts({f"t{i}": "" for i in range(20)}, {})
    assert finding.startswith("20 not loaded: t0, ")
    assert finding.endswith("t7 and 12 more")


def test_gap_by_hand_with_mask() -> None:
    gap = LogprobGap.of(np.array([[-1.0, -2.0, 5.0]]), np.array([[-1.5, -1.75, 0.0]]), np.array([[1, 1, 0]]))
    assert (gap.mean, gap.max, gap.bias, gap.tokens) == (0.375, 0.5, 0.125, 2)


def test_gap_of_nothing_is_zero_and_of_nan_infinite() -> None:
    assert LogprobGap.of(np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 2))).tokens == 0
    assert LogprobGap.of(np.array([np.nan]), np.array([0.0])).max == np.inf


def test_the_coarser_dtype_decides_and_the_configuration_comes_first() -> None:
    assert tolerances("float32", "bfloat16") == tolerances("bfloat16", "float32") == tolerances("bfloat16", "bfloat16")
    assert tolerances("float32", "float32").mean < tolerances("float16", "float32").mean
    assert tolerances("float32", "float32", mean=0.5) == Tolerance(0.5, tolerances("float32", "float32").max)


def gap(mean: float, bias: float = 0.0, largest: float = 1.0) -> LogprobGap:
    return LogprobGap(mean, largest, bias, 100)


@pytest.mark.parametrize(
    ("measured", "evidence", "cause"),
    [
        (gap(0.3), {"generator_versions": {4, 5}}, "Stale version: samples of version 4"),
        (gap(0.3), {"digests_match": False}, "Failed sync"),
        (gap(0.3), {"raw_logprobs": False}, "Truncated sampling"),
        (gap(0.3), {"previous": LogprobGap(1e-6, 1e-5, 0.0, 100)}, "weights of the version before"),
        (gap(0.3, largest=np.inf), {}, "Not finite"),
        (gap(5e-4, bias=1e-6), {}, "Numeric noise"),
        (gap(0.3, bias=0.2), {}, "computes something else"),
        (gap(0.3, bias=0.2), {"previous": gap(0.4)}, "computes something else"),
    ],
)
def test_causes_are_told_apart(measured: LogprobGap, evidence: dict, cause: str) -> None:
    defaults = {"learner_version": 5, "generator_versions": {5}, "digests_match": True}
    text = diagnose(measured, tolerances("float32", "float32"), **{**defaults, **evidence})
    assert cause in text
    assert "over 100 tokens" in text
