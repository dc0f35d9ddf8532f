"""The algebra of terms: what it builds is what YAML would say."""

import functools
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.config.load import load_config
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    ReducerSection,
    RemoteRewardSection,
)
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards import (
    FunctionReward,
    HuggingFaceRewardModel,
    LLMJudge,
    RemoteReward,
    RewardEnsemble,
    Term,
    as_term,
    llm_reward,
)
from rlhf_ray.rewards.inline import from_code, import_path, is_plain, to_code

pytestmark = pytest.mark.unit


def brevity(prompt: str, response: str, limit: int = 300) -> float:
    return max(0.0, 1.0 - len(response) / limit)


@llm_reward(name="polite", weight=2.0, timeout_s=5.0, on_failure="leave_out", clip=(0, 1))
def says_please(prompt: str, response: str) -> float:
    return float("please" in response)


def test_two_objectives_in_one_line() -> None:
    term = 0.7 * HuggingFaceRewardModel("org/quality-v2") + 0.3 * HuggingFaceRewardModel("org/safety.1")
    assert term.sections() == {
        "hf_org_quality_v2": NeuralRewardSection(model="org/quality-v2", weight=0.7),
        "hf_org_safety_1": NeuralRewardSection(model="org/safety.1", weight=0.3),
    }
    assert term.reducer_section() == ReducerSection()
    assert repr(term) == "<Term: 0.7 * hf_org_quality_v2 + 0.3 * hf_org_safety_1>"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("OpenAssistant/reward-model-deberta-v3-large-v2", "hf_OpenAssistant_reward_model_deberta_v3_large_v2"),
        ("lvwerra/distilbert-imdb", "hf_lvwerra_distilbert_imdb"),
        ("./runs/reward/model/", "hf_model"),
        (Path("/models/toxic.bert"), "hf_toxic_bert"),
    ],
)
def test_models_are_named_by_their_id_or_folder(model: str | Path, name: str) -> None:
    assert list(HuggingFaceRewardModel(model).sections()) == [name]


def test_operations_return_new_terms() -> None:
    plain = FunctionReward(brevity)
    changed = (
        -(plain * np.float32(0.5))
        .clipped(-1, 1)
        .normalized()
        .gated_by(FunctionReward("checks:correct"), above=0.5, otherwise=-1)
        .on_failure("skip_sample")
        .replicated(4)
        .named("short")
    )
    assert plain.sections()["brevity"] == FunctionRewardSection(function=f"{__name__}:brevity")
    section = changed.sections()["short"]
    assert (section.weight, section.clip, section.normalize) == (-0.5, [-1.0, 1.0], "running")
    assert (section.on_failure, section.replicas) == ("skip_sample", 4)
    assert section.gate is not None
    assert section.gate.model_dump() == {"component": "correct", "above": 0.5, "below": None, "otherwise": -1.0}


def test_sums_differences_and_functions() -> None:
    names_and_weights = lambda term: {name: section.weight for name, section in term.sections().items()}  # noqa: E731
    judge = FunctionReward("checks:grade")
    assert names_and_weights(brevity + judge) == {"brevity": 1.0, "grade": 1.0}
    assert names_and_weights(judge - brevity) == {"grade": 1.0, "brevity": -1.0}
    assert names_and_weights(2 * (judge + brevity)) == {"grade": 2.0, "brevity": 2.0}
    assert names_and_weights(sum([judge, FunctionReward(brevity)])) == {"grade": 1.0, "brevity": 1.0}
    with pytest.raises(TypeError):
        judge * "2"  # type: ignore[operator]


def test_every_kind_of_term() -> None:
    assert RewardEnsemble(["a/b", "c/d"], combine="uncertainty", penalty=2).sections() == {
        "ensemble": EnsembleRewardSection(models=["a/b", "c/d"], combine="uncertainty", penalty=2.0)
    }
    assert RemoteReward("http://localhost:1", columns=["truth"], batch_size=4).sections() == {
        "remote": RemoteRewardSection(url="http://localhost:1", columns=["truth"], batch_size=4)
    }
    assert LLMJudge("http://localhost:1/v1", "judge", "rubric.md", maximum=5.0).sections() == {
        "judge": JudgeRewardSection(base_url="http://localhost:1/v1", model="judge", rubric="rubric.md", maximum=5.0)
    }
    [(name, section)] = (
        HuggingFaceRewardModel(
            "/models/toxic-bert/", max_length=512, label_index=1, normalize=True, activation="sigmoid", replicas=2
        )
        .sections()
        .items()
    )
    assert name == "hf_toxic_bert"
    assert section == NeuralRewardSection(
        model="/models/toxic-bert/",
        max_tokens=512,
        label_index=1,
        normalize="running",
        activation="sigmoid",
        replicas=2,
    )


def test_a_marked_function_brings_its_options() -> None:
    assert says_please("", "yes please") == 1.0
    assert FunctionReward(says_please).sections() == {
        "polite": FunctionRewardSection(
            function=f"{__name__}:says_please", weight=2.0, timeout_s=5.0, on_failure="leave_out", clip=[0.0, 1.0]
        )
    }


def test_functions_without_an_import_path_travel_with_their_code() -> None:
    limit = 10
    closure = FunctionReward(lambda prompt, response: len(response) / limit)
    [(name, section)] = closure.sections().items()
    assert name == "lambda"
    assert isinstance(section, FunctionRewardSection)
    assert section.code is not None
    assert from_code(section.code)("", "12345") == 0.5

    partial = FunctionReward(functools.partial(brevity, limit=5)).sections()["brevity"]
    assert isinstance(partial, FunctionRewardSection)
    assert from_code(partial.code or b"")("", "1") == 0.8


def test_arguments_that_yaml_cannot_hold_make_the_function_travel() -> None:
    plain = FunctionReward(brevity, limit=100).sections()["brevity"]
    assert isinstance(plain, FunctionRewardSection)
    assert (plain.arguments, plain.code) == ({"limit": 100}, None)
    odd = FunctionReward(brevity, limit=np.int64(100)).sections()["brevity"]
    assert isinstance(odd, FunctionRewardSection)
    assert odd.code is not None


def test_what_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"<lambda>` cannot be sent to the processes that will call it: .*lock"):
        FunctionReward(lambda prompt, response: lock.locked())


def test_anything_that_may_stand_for_a_reward() -> None:
    section = FunctionRewardSection(function="checks:grade", weight=3.0)
    mixed = as_term([brevity, "checks:correct", {"grade": section, "own": says_please, "raw": section.model_dump()}])
    assert list(mixed.sections()) == ["brevity", "correct", "grade", "own", "raw"]
    assert mixed.sections()["grade"] == mixed.sections()["raw"] == section
    assert mixed.sections()["own"].weight == 2.0


def test_sections_are_what_yaml_would_give(tmp_path: object) -> None:
    term = 0.5 * HuggingFaceRewardModel("org/quality", normalize=True).gated_by("brevity", above=0.1) + brevity
    overrides = [
        "model.name=m",
        "data.path=p",
        "rewards.hf_org_quality={type: neural, model: org/quality, weight: 0.5, normalize: running, "
        "gate: {component: brevity, above: 0.1}}",
        f"rewards.brevity={{type: function, function: '{__name__}:brevity'}}",
    ]
    config = load_config(PPOConfig, [], overrides)
    assert term.sections() == config.rewards


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: as_term(brevity) + brevity, "two reward components are called `brevity`: rename one"),
        (lambda: (as_term(brevity) + says_please).clipped(0, 1), r"clipped needs one component, not 2 \(brevity, pol"),
        (lambda: as_term(brevity).named("a/b"), "'a/b' cannot name a reward component"),
        (lambda: as_term(brevity).clipped(1, 0), r"component `brevity`: clip: \[1.0, 0.0\] is no range"),
        (lambda: as_term(brevity).gated_by("x"), "gate: give `above`, `below` or both"),
        (lambda: as_term(brevity).on_failure("ignore"), "on_failure: 'ignore' should be 'fail', 'skip_sample' or 'lea"),
        (lambda: as_term(brevity) * math.inf, "weight: inf should be a finite number"),
        (
            lambda: HuggingFaceRewardModel("m", devise="cpu"),
            r"HuggingFaceRewardModel\('m'\): devise: unknown key \(did",
        ),
        (lambda: RemoteReward("localhost"), "RemoteReward: url: 'localhost' should be text that matches"),
        (lambda: RewardEnsemble(["one"]), "RewardEnsemble: models: "),
        (lambda: as_term(3), r"3 \(int\) is no reward: expected a RewardComposer"),
        (lambda: as_term(HuggingFaceRewardModel), "HuggingFaceRewardModel is a class: pass an instance"),
        (lambda: llm_reward(weigth=2)(brevity), "@llm_reward on `brevity`: weigth: unknown key .did you mean weight"),
        (lambda: Term({"a": FunctionRewardSection(function="m:f")}, ReducerSection(type="min")) + brevity, "by `min`"),
    ],
)
def test_mistakes_are_named_where_they_are_made(make: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()  # type: ignore[operator]


def test_decorator_defaults_are_those_of_the_configuration() -> None:
    marks = (llm_reward, llm_reward())
    bare, called = (FunctionReward(mark(lambda prompt, response: 0.0)).sections()["lambda"] for mark in marks)
    assert isinstance(bare, FunctionRewardSection)
    defaults = FunctionRewardSection(function=bare.function).model_dump()
    assert bare.model_dump() == called.model_dump() == defaults


def test_import_paths() -> None:
    assert import_path(brevity) == f"{__name__}:brevity"
    assert import_path(Term.score) == "rlhf_ray.rewards.terms:Term.score"
    assert import_path(lambda: 0) is None
    assert import_path(functools.partial(brevity)) is None
    assert from_code(to_code(brevity)) is brevity


def test_plain_values_are_those_that_yaml_gives_back() -> None:
    assert is_plain({"a": [1, 2.5, "x", None, True]})
    for value in ((1,), {1: 2}, math.nan, {"a": {3}}, np.float64(1.0), b"x"):
        assert not is_plain(value)
