"""What becomes of composed rewards before they reach the learner, and which prompts are sampled anew."""

from typing import Any

import numpy as np
import pytest

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.ppo import OverlongSection
from rlhf_ray.rewards.compose import Composed
from rlhf_ray.trainers.dynamic_sampling import refill
from rlhf_ray.trainers.rollouts import Batch, Rollouts
from rlhf_ray.trainers.shaping import overlong_penalty, shape

pytestmark = pytest.mark.unit

NAN = float("nan")


def config(**ppo: Any) -> PPOConfig:
    values = {"model": {"name": "m"}, "data": {"path": "d"}, "rewards": {}, "generation": {"max_new_tokens": 10}}
    return PPOConfig.model_validate(values | {"ppo": ppo})


def rollouts(prompts: list[int], lengths: list[int] | None = None) -> Rollouts:
    """One batch of samples of these prompts; those of 10 tokens are cut."""
    size = np.array(lengths or [5] * len(prompts))
    meta = {"prompt_id": np.array(prompts, dtype=np.int64), "response_length": size, "truncated": size >= 10}
    return Rollouts([Batch(samples=None, meta=meta)], [], {"generate": 1.0})  # type: ignore[arg-type]


def composed(rewards: list[float]) -> Composed:
    total = np.array(rewards)
    return Composed(total, ~np.isnan(total), {})


def test_the_overlong_penalty_by_hand() -> None:
    lengths = np.array([0, 6, 7, 8, 9, 10])
    section = OverlongSection(buffer_tokens=4, penalty=2.0)
    assert overlong_penalty(lengths, 10, section).tolist() == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert not overlong_penalty(lengths, 10, OverlongSection()).any()


def test_rewards_are_clipped_and_then_penalised() -> None:
    chosen = config(reward_clip=1.0, missing_eos_penalty=0.25, overlong={"buffer_tokens": 4, "penalty": 2.0})
    shaped = shape(rollouts([1, 1, 2, 2], [5, 8, 10, 10]), composed([7.0, 0.5, -7.0, NAN]), chosen)
    assert shaped.rewards[:3].tolist() == [1.0, 0.5 - 1.0, -1.0 - 0.25 - 2.0]
    assert shaped.keep.tolist() == [True, True, True, False]


@pytest.mark.parametrize("enabled", [False, True])
def test_prompts_without_a_signal_are_counted_and_under_dynamic_sampling_left_out(enabled: bool) -> None:
    # Prompt 3 differs; 4 does not; 5 has lost a response, and with it its signal; 6 is lost altogether.
    prompts, rewards = [3, 4, 5, 6, 6, 5, 4, 3], [0.0, 0.1, 1.0, NAN, NAN, NAN, 0.1, 1.0]
    shaped = shape(rollouts(prompts), composed(rewards), config(dynamic_sampling={"enabled": enabled}))
    kept = [0, 7] if enabled else [0, 1, 2, 6, 7]
    assert np.flatnonzero(shaped.keep).tolist() == kept
    assert shaped.metrics() == {
        "samples/total": 8,
        "samples/trained": len(kept),
        "samples/prompts": 3,
        "samples/prompts_with_signal": 1,
    }


def test_a_penalty_is_a_signal_too() -> None:
    chosen = config(dynamic_sampling={"enabled": True}, overlong={"buffer_tokens": 4, "penalty": 1.0})
    shaped = shape(rollouts([1, 1, 2, 2], [5, 9, 5, 5]), composed([1.0] * 4), chosen)
    assert shaped.keep.tolist() == [True, True, False, False]


def test_without_any_signal_all_that_have_a_reward_stay() -> None:
    shaped = shape(rollouts([1, 1, 2, 2]), composed([1.0, 1.0, 2.0, NAN]), config(dynamic_sampling={"enabled": True}))
    assert shaped.keep.tolist() == [True, True, True, False]
    assert shaped.prompts_with_signal == 0


class Prompts:
    """Prompts of which those divisible by `divisor` give a signal; remembers the rows of each round."""

    def __init__(self, divisor: int) -> None:
        self.divisor, self.rounds = divisor, [np.arange(8)]

    def collect(self, rows: np.ndarray) -> Rollouts:
        self.rounds.append(rows)
        return rollouts(rows.tolist())

    def with_signal(self, found: Rollouts) -> int:
        return int((found.column("prompt_id") % self.divisor == 0).sum())

    def refill(self, total: int, max_rounds: int, iteration: int = 0) -> Rollouts:
        return refill(
            rollouts(self.rounds[0].tolist()),
            self.rounds[0],
            total,
            max_rounds=max_rounds,
            seed=(0, iteration),
            collect=self.collect,
            with_signal=self.with_signal,
        )


def test_missing_prompts_are_drawn_until_there_are_enough() -> None:
    prompts = Prompts(2)
    found = prompts.refill(1000, max_rounds=50)
    assert prompts.with_signal(found) == 8  # as many as the iteration has, and no more
    assert len(prompts.rounds[1]) == 4  # 0, 2, 4 and 6 of the first eight did
    assert found.rounds == len(prompts.rounds)
    assert found.seconds["generate"] == len(prompts.rounds)
    everything = found.column("prompt_id").tolist()
    assert len(set(everything)) == len(everything) == sum(map(len, prompts.rounds))  # nothing twice, nothing lost


def test_rounds_and_prompts_come_to_an_end() -> None:
    few = Prompts(1000)
    assert few.refill(1000, max_rounds=3).rounds == 3
    assert [len(rows) for rows in few.rounds] == [8, 7, 7]
    scarce = Prompts(1000)
    assert scarce.refill(10, max_rounds=9).column("prompt_id").tolist()[8:] in ([8, 9], [9, 8])
    assert Prompts(1).refill(1000, max_rounds=9).rounds == 1


def test_the_draw_is_a_function_of_seed_iteration_and_round() -> None:
    one, same, other = (Prompts(3) for _ in range(3))
    one.refill(100, 4)
    same.refill(100, 4)
    other.refill(100, 4, iteration=1)
    assert [rows.tolist() for rows in one.rounds] == [rows.tolist() for rows in same.rounds]
    assert one.rounds[1].tolist() != other.rounds[1].tolist()
