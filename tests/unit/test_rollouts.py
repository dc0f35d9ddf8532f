"""An iteration's scores: parts that not every batch has, and totals that do not depend on the order of arrival."""

import numpy as np
import pytest

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import ModelSection
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.rewards.normalise import RewardNormalizer
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.rollouts import Batch, Rollouts

pytestmark = pytest.mark.unit

SCORES = np.random.default_rng(3).normal(size=(12, 2)) * [1.0, 1e3]  # [samples, components]
FUNCTION = {"type": "function", "function": "m:f"}
FAILED = 4  # the prompt whose first sample `style` could not score


def config(**rewards: dict[str, object]) -> PPOConfig:
    """Components without a `type` are functions."""
    sections = {name: section if "type" in section else FUNCTION | section for name, section in rewards.items()}
    return PPOConfig(model=ModelSection(name="policy"), data=PromptDataSection(path="prompts.jsonl"), rewards=sections)


def rollouts(order: list[int], sizes: list[int]) -> Rollouts:
    """Samples 0..11 (two per prompt) in the given order of arrival, in batches of the given sizes."""
    batches, start = [], 0
    for size in sizes:
        rows = np.array(order[start : start + size])
        meta = {"prompt_id": rows // 2, "sample_index": rows % 2}
        values = {"style": np.where(rows == 2 * FAILED, np.nan, SCORES[rows, 0]), "facts": SCORES[rows, 1]}
        if start == 0:
            values["facts/dates"] = rows.astype(float)
        batches.append(Batch(samples=None, meta=meta, scores=values))
        start += size
    return Rollouts(batches, [RewardFailure("style", FAILED, 0, "raised", "raised")], {})


def by_sample(order: list[int], values: np.ndarray) -> np.ndarray:
    """Values in order of arrival, sorted by sample."""
    return values[np.argsort(order)]


def test_a_part_that_a_batch_does_not_have_is_nan_there() -> None:
    scores = rollouts(list(range(12)), [5, 7]).scores()
    assert set(scores) == {"style", "facts", "facts/dates"}
    assert scores["facts/dates"][:5].tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(scores["facts/dates"][5:]).all()


def test_totals_statistics_and_moments_do_not_depend_on_the_order_of_arrival() -> None:
    chosen = config(
        style={"on_failure": "skip_sample", "normalize": "running"},
        facts={"weight": 0.3, "normalize": "running", "gate": {"component": "style", "above": 0.0}},
    )
    results = []
    for order, sizes in (
        (list(range(12)), [12]),
        (list(range(11, -1, -1)), [3, 3, 6]),
        ([*range(1, 12, 2), *range(0, 12, 2)], [5, 7]),
    ):
        normalizer = RewardNormalizer(chosen.rewards)
        composed = rollouts(order, sizes).compose(chosen, normalizer, update=True)
        keep = by_sample(order, composed.keep)
        assert np.flatnonzero(~keep).tolist() == [2 * FAILED]
        stats = {name: composed.components[name] for name in ("style", "facts")}
        results.append((by_sample(order, composed.total), stats, normalizer.state_dict()))
    for total, stats, moments in results[1:]:
        np.testing.assert_array_equal(total, results[0][0])  # bit for bit
        assert stats == results[0][1]
        assert moments == results[0][2]


def test_the_configured_reducer_joins_the_components() -> None:
    chosen = PPOConfig.model_validate(
        config(style={"on_failure": "leave_out"}, facts={}).model_dump() | {"reducer": {"type": "min"}}
    )
    order = list(range(11, -1, -1))
    total = by_sample(order, rollouts(order, [12]).compose(chosen).total)
    expected = SCORES.min(axis=1)
    expected[2 * FAILED] = SCORES[2 * FAILED, 1]
    assert total == pytest.approx(expected)


def test_models_that_may_use_a_gpu_ask_for_one_and_nothing_else_does() -> None:
    sections = {
        "rule": {"replicas": 2},
        "neural": {"type": "neural", "model": "m", "replicas": 2},
        "small": {"type": "neural", "model": "m", "device": "cpu"},
        "several": {"type": "ensemble", "models": ["a", "b"], "device": "cuda"},
        "remote": {"type": "remote", "url": "http://localhost/score"},
        "judge": {"type": "judge", "base_url": "http://localhost/v1", "model": "m", "rubric": "rubric.txt"},
    }
    chosen = config(**sections)
    needs = RolloutActors(None, chosen, [], chosen.rewards)._rollout_needs()
    assert [(need.kind, need.index, need.gpus) for need in needs] == [
        ("generator", 0, 1),
        ("reward/rule", 0, 0),
        ("reward/rule", 1, 0),
        ("reward/neural", 0, 1),
        ("reward/neural", 1, 1),
        ("reward/small", 0, 0),
        ("reward/several", 0, 1),
        ("reward/remote", 0, 0),
        ("reward/judge", 0, 0),
    ]


def test_a_call_may_last_as_long_as_its_samples_timeouts() -> None:
    chosen = config(
        rule={"timeout_s": 60}, judge={"type": "judge", "base_url": "http://h", "model": "m", "rubric": "r"}
    )
    chosen = chosen.model_copy(update={"generation": GenerationSection(stream_samples=50)})
    actors = RolloutActors(None, chosen, [], chosen.rewards)
    assert actors._longest_score_s(chosen.rewards["rule"]) == 50 * 60  # the function hangs on every one
    assert actors._longest_score_s(chosen.rewards["judge"]) == 3 * 300
