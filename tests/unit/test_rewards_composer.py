"""`RewardComposer`: methods found, weights and names checked, sections that a scoring process can use, `score`."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.rewards import FunctionRewardSection, ReducerSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.rewards import (
    FunctionReward,
    HuggingFaceRewardModel,
    MinReducer,
    RewardComposer,
    WeightedSumReducer,
    llm_reward,
)
from rlhf_ray.rewards.inline import from_code

pytestmark = pytest.mark.unit


class Sentiment(RewardComposer):
    """As in the documentation: no constructor of its own."""

    @llm_reward
    def brevity_bonus(self, prompt: str, response: str) -> float:
        return max(0.0, 1.0 - len(response) / 10)

    @llm_reward(weight=2.0)
    def positivity(self, prompt: str, response: str) -> float:
        return float("good" in response)

    def helper(self) -> float:
        return 1.0


class Matching(RewardComposer):
    """A constructor of its own, which sets what it needs before it calls ours, and every kind of method."""

    def __init__(self, words: Sequence[str], floor: float = 0.0, **options: Any) -> None:
        self.words, self.floor = words, floor
        super().__init__(**options)

    @llm_reward
    def known(self, prompt: str, response: str) -> float:
        return float(response in self.words) + self.floor

    @llm_reward
    @staticmethod
    def correct(prompt: str, response: str, ground_truth: str | None) -> float | None:
        return None if ground_truth is None else float(response == ground_truth)

    @llm_reward(concurrency=2, weight=0.0)
    async def length(self, prompt: str, response: str) -> dict[str, float]:
        await asyncio.sleep(0)
        return {"prompt": len(prompt), "response": len(response)}

    @llm_reward(batch_size=2, on_failure="leave_out")
    def batched(self, prompts: list[str], responses: list[str]) -> list[float]:
        if "boom" in responses:
            raise ValueError("no booms")
        return [float(len(prompts))] * len(prompts)


def test_methods_are_found_in_order_with_their_options() -> None:
    assert Sentiment().sections() == {
        "brevity_bonus": FunctionRewardSection(function=f"{__name__}:Sentiment.brevity_bonus"),
        "positivity": FunctionRewardSection(function=f"{__name__}:Sentiment.positivity", weight=2.0),
    }
    assert Sentiment().helper() == 1.0
    assert Sentiment().brevity_bonus("", "12345") == 0.5


def test_inheritance_overrides_and_removal() -> None:
    class Stricter(Sentiment):
        def positivity(self, prompt: str, response: str) -> float:
            return 0.5

        @llm_reward
        def own(self, prompt: str, response: str) -> float:
            return 0.0

    class Shorter(Stricter):
        brevity_bonus = None  # type: ignore[assignment]

    assert list(Stricter().sections()) == ["brevity_bonus", "positivity", "own"]
    assert Stricter().sections()["positivity"].weight == 2.0
    assert list(Shorter().sections()) == ["positivity", "own"]


def test_further_rewards_weights_reducer_and_switches() -> None:
    composer = Sentiment(
        0.3 * HuggingFaceRewardModel("org/quality"),
        FunctionReward("checks:grade"),
        reward_weights={"brevity_bonus": 0.5, "hf_org_quality": 1.0},
        reducer=MinReducer(),
        disabled=["positivity"],
    )
    sections = composer.sections()
    assert {name: (s.weight, s.enabled) for name, s in sections.items()} == {
        "brevity_bonus": (0.5, True),
        "positivity": (2.0, False),
        "hf_org_quality": (1.0, True),
        "grade": (1.0, True),
    }
    assert composer.reducer_section() == ReducerSection(type="min")
    assert Sentiment(reducer=WeightedSumReducer()).reducer_section() == Sentiment().reducer_section()


def test_a_composer_is_a_term() -> None:
    term = 0.5 * Sentiment() + HuggingFaceRewardModel("org/quality").gated_by("positivity", above=0.5)
    assert {name: s.weight for name, s in term.sections().items()} == {
        "brevity_bonus": 0.5,
        "positivity": 1.0,
        "hf_org_quality": 1.0,
    }
    assert list(RewardComposer(Sentiment(), Matching([])).sections())[:3] == ["brevity_bonus", "positivity", "known"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: Sentiment(reward_weights={"brevty_bonus": 1.0}),
            r"Sentiment: reward_weights names `brevty_bonus`, which is no component. Did you mean `brevity_bonus`\? "
            "The components are `brevity_bonus`, `positivity`.",
        ),
        (lambda: Sentiment(disabled="quality"), "Sentiment: disabled names `quality`"),
        (lambda: Sentiment(Sentiment()), "Sentiment: two components are called `brevity_bonus`"),
        (lambda: Sentiment(reward_weights={"positivity": float("nan")}).sections(), "`positivity`: weight: nan should"),
        (lambda: Sentiment(reducer="median"), "type: 'median'"),
        (lambda: Sentiment(7), "7 .int. is no reward"),
        (
            lambda: type("Bad", (RewardComposer,), {"score": llm_reward(lambda self, prompt, response: 0.0)}),
            'Bad.score: every RewardComposer has a `score` of its own.*@llm_reward.name="score"',
        ),
    ],
)
def test_mistakes_are_named(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_a_plain_constructor_is_remembered() -> None:
    section = Matching(["yes"], floor=0.5, reward_weights={"known": 3.0}).sections()["known"]
    assert section == FunctionRewardSection(
        function=f"{__name__}:Matching.known", weight=3.0, constructor={"words": ["yes"], "floor": 0.5}
    )
    assert isinstance(section, FunctionRewardSection)
    assert section.code is None


def test_any_other_instance_travels_with_its_code() -> None:
    class Local(Matching):
        pass

    for composer in (Local(["yes"], 0.5), Matching(("yes",), 0.5)):
        section = composer.sections()["known"]
        assert isinstance(section, FunctionRewardSection)
        assert from_code(section.code or b"")("", "yes") == 1.5
        assert section.constructor == {}
    assert Local(["yes"]).sections()["known"].function.endswith("Local.known")


def test_yaml_gives_a_plain_composer_back_and_refuses_another_by_name(tmp_path: Path) -> None:
    reward = Matching(["yes"]) + 0.5 * HuggingFaceRewardModel("org/quality", normalize=True).clipped(-5, 5)
    start = {"model": {"name": "m"}, "data": {"path": "p"}}
    config = PPOConfig(**start, rewards=reward.sections(), reducer=reward.reducer_section())
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(PPOConfig, [tmp_path / "config.yaml"]) == config

    notebook = PPOConfig(**start, rewards=FunctionReward(lambda prompt, response: 0.0).named("inline").sections())
    with pytest.raises(ConfigError, match=r"`?rewards`?.*inline"):
        notebook.to_yaml()


def test_a_constructor_that_does_not_call_ours() -> None:
    class Free(RewardComposer):
        def __init__(self, bonus: float) -> None:
            self.bonus = bonus

        @llm_reward
        def give(self, prompt: str, response: str) -> float:
            return self.bonus

    assert Free(0.25).score(["?"], ["!"]).total.tolist() == [0.25]


def test_score_is_what_a_run_would_give() -> None:
    composer = Matching(["yes"], reward_weights={"correct": 2.0, "batched": 0.5})
    scores = composer.score(["a", "bb", "c"], ["yes", "boom", "no"], ground_truth=["yes", None, "yes"])

    assert {
        name: values.tolist() for name, values in scores.components.items() if name not in ("correct", "batched")
    } == {
        "known": [1.0, 0.0, 0.0],
        "length": [4.0, 6.0, 3.0],
        "length/prompt": [1.0, 2.0, 1.0],
        "length/response": [3.0, 4.0, 2.0],
    }
    np.testing.assert_array_equal(scores.components["correct"], [1.0, np.nan, 0.0])
    # the batch of the first two fails as a whole, and is called again one by one
    np.testing.assert_array_equal(scores.components["batched"], [1.0, np.nan, 1.0])
    np.testing.assert_allclose(scores.total, [1 + 2 + 0.5, 0.0, 0.5])
    [failure] = scores.failures
    assert (failure.component, failure.prompt_id, failure.response) == ("batched", 1, "boom")
    assert failure.message == "raised ValueError: no booms"

    table = scores.to_pandas()
    assert list(table.columns[:3]) == ["prompt", "response", "known"]
    assert table["total"].tolist() == scores.total.tolist()


async def _score_inside_a_loop() -> list[float]:
    return Matching([]).score(["a"], ["yes"], ground_truth=[None]).components["length"].tolist()


def test_score_works_inside_a_running_event_loop_as_in_a_notebook() -> None:
    assert asyncio.run(_score_inside_a_loop()) == [4.0]


def test_score_stops_where_a_run_would() -> None:
    class Fragile(RewardComposer):
        @llm_reward
        def divide(self, prompt: str, response: str) -> float:
            return 1 / len(response)

    with pytest.raises(DataError, match="ZeroDivisionError"):
        Fragile().score(["a", "b"], ["x", ""])
    with pytest.raises(DataError, match="columns of one length, but got prompt 1, response 2"):
        Fragile().score(["a"], ["x", "y"])
    with pytest.raises(ConfigError, match="needs `ground_truth`"):
        Matching([]).score(["a"], ["x"])


def test_importing_rewards_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'vllm', 'transformers', 'datasets', 'pyarrow', 'pandas'}"
    script = (
        "import sys; from rlhf_ray.rewards import *; from rlhf_ray.rewards import __all__ as names, llm_reward; "
        f"assert all(name in globals() for name in names); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr
