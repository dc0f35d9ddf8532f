"""`score` in a notebook against what a run's scorers give: neural models, endpoints, and functions in a sandbox."""

from pathlib import Path

import numpy as np
import pytest
from graded_rewards import Graded
from loopback import Reply, Request, serve
from reward_models import samples, save_bert, save_llama, save_tokenizer, section, values

from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.errors import DataError
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.rewards import HuggingFaceRewardModel, RemoteReward, RewardEnsemble
from rlhf_ray.rewards.neural import NeuralReward
from rlhf_ray.rewards.sandbox import Sandbox

pytestmark = pytest.mark.unit

TABLE = samples(7)
PROMPTS, RESPONSES = TABLE["prompt"].to_pylist(), TABLE["response"].to_pylist()


def test_a_classifier(tmp_path: Path) -> None:
    save_bert(tmp_path)
    options = {"label_index": 1, "activation": "softmax", "template": "pair"}
    model = HuggingFaceRewardModel(tmp_path, dtype="float32", **options).named("toxic")
    expected = values(NeuralReward(section(tmp_path, **options)), TABLE)
    assert model.score(PROMPTS, RESPONSES).components["toxic"].tolist() == pytest.approx(expected, abs=1e-6)


def test_our_own_model_reads_the_tokens_of_a_rollout(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    RewardStats(mean=0.25, std=2.0).save(tmp_path)
    model = HuggingFaceRewardModel(tmp_path, dtype="float32").named("own")
    expected = values(NeuralReward(section(tmp_path)), TABLE)
    assert model.score(PROMPTS, RESPONSES).total.tolist() == pytest.approx(expected, abs=1e-6)


def test_members_of_an_ensemble_are_shown(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        save_llama(tmp_path / name, seed)
        save_tokenizer(tmp_path / name, "<s> $A", eos_token="</s>", bos_token="<s>")
    ensemble = RewardEnsemble([tmp_path / "one", tmp_path / "two"], combine="min", dtype="float32")
    scores = ensemble.score(PROMPTS, RESPONSES)
    members = [scores.components["ensemble/one"], scores.components["ensemble/two"]]
    assert scores.total.tolist() == [min(pair) for pair in zip(*members, strict=True)]


def test_an_endpoint() -> None:
    def lengths(request: Request) -> Reply:
        return Reply({"rewards": [len(sample["response"]) - sample["truth"] for sample in request.body["samples"]]})

    with serve(lengths) as server:
        remote = RemoteReward(server.url, columns=["truth"], batch_size=2)
        assert remote.score(["a"] * 3, ["x", "yy", "zzz"], truth=[1, 1, 1]).total.tolist() == [0.0, 1.0, 2.0]
        with pytest.raises(DataError, match="column `truth` holds what a run's table could not"):
            remote.score(["a"] * 2, ["x", "yy"], truth=[1, object()])


@pytest.mark.parametrize("base", [0.5, np.float64(0.5)], ids=["by constructor", "pickled with its instance"])
def test_functions_score_as_in_a_sandbox(base: float) -> None:
    composer = Graded(base)
    table = {"prompt": ["a", "b", "c"], "response": ["x", "yy", "zzz"], "truth": ["x", "x", "x"]}
    scores = composer.score(table["prompt"], table["response"], truth=table["truth"])
    for name, component in composer.sections().items():
        assert isinstance(component, FunctionRewardSection)
        assert (component.code is None) == (type(base) is float)
        with Sandbox(component, list(table)) as sandbox:
            outcomes = list(sandbox.run(table))
        assert [outcome.value for outcome in outcomes] == scores.components[name].tolist()
        for part in outcomes[0].parts:
            column = np.array([outcome.parts[part] for outcome in outcomes], dtype=np.float64)
            np.testing.assert_array_equal(column, scores.components[f"{name}/{part}"])
    assert list(scores.components) == ["method", "method/length", "method/prompt", "awaited", "batch"]
    assert scores.components["batch"].tolist() == [2.5, 2.5, 1.5]
