"""What an evaluation finds wrong before it loads a model, and how texts become responses."""

import json
from pathlib import Path
from typing import Any

import pytest
from reward_models import WORDS, save_tokenizer
from transformers import LlamaConfig

from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.load import merge_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.evaluation_inputs import EvaluationInputs

pytestmark = pytest.mark.unit


def save_model(folder: Path, **special: str) -> str:
    """All of a model but its weights."""
    LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, eos_token_id=2).save_pretrained(folder)
    tokenizer = save_tokenizer(folder, "$A", eos_token="</s>", pad_token="<pad>")
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
        tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def inputs(**keys: Any) -> EvaluationInputs:
    generation = {"max_new_tokens": 8}
    return EvaluationInputs(merge_config(EvalConfig, [("the test", {"generation": generation, **keys})]))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write(tmp_path / "prompts.jsonl", [{"prompt": "w1 w2", "topic": "w1"}, {"prompt": "w3", "topic": "w9"}])


def test_prompts_bring_the_columns_that_rewards_read(tmp_path: Path, prompts: str) -> None:
    model = {"name": save_model(tmp_path / "m")}
    reward = {"type": "function", "function": "graded_rewards:no_such_function"}
    evaluation = inputs(model=model, data={"path": prompts}, rewards={"r": reward, "off": {**reward, "enabled": False}})
    table, columns = evaluation.prompts(evaluation.config.model)
    assert table["prompt_tokens"].to_pylist() == [[6, 7], [8]]
    assert {"prompt", "response", "topic"} <= set(columns)
    assert list(evaluation.scorers) == ["r"]
    with pytest.raises(ConfigError, match="no_such_function"):
        evaluation.check()


def test_a_reference_that_reads_other_tokens_is_refused(tmp_path: Path, prompts: str) -> None:
    model, same = save_model(tmp_path / "m"), save_model(tmp_path / "same")
    other = save_model(tmp_path / "other", extra="<extra>")
    inputs(model={"name": model}, data={"path": prompts}, reference=same).check()
    with pytest.raises(ConfigError, match="have different tokenizers, so that there is no KL"):
        inputs(model={"name": model}, data={"path": prompts}, reference=other).check()


def test_too_long_a_response_for_the_context_is_refused(tmp_path: Path, prompts: str) -> None:
    model = {"name": save_model(tmp_path / "m")}
    with pytest.raises(ConfigError, match=r"generation\.max_new_tokens: 32 leaves no room"):
        inputs(model=model, data={"path": prompts}, generation={"max_new_tokens": 32}).check()


def test_of_a_text_alone_only_the_first_token_is_not_predicted(tmp_path: Path) -> None:
    model = {"name": save_model(tmp_path / "m")}
    texts = inputs(model=model, perplexity={"path": write(tmp_path / "texts.jsonl", [{"text": "w1 w2 w3"}])})
    table = texts.texts(texts.config.model)
    assert table["prompt_tokens"].to_pylist() == [[6]]
    assert table["response_tokens"].to_pylist() == [[7, 8, 2]]
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "w1 w2", "completion": "w3"}])
    table = inputs(model=model, perplexity={"path": pairs}).texts(texts.config.model)
    assert table["prompt_tokens"].to_pylist() == [[6, 7]]
    assert table["response_tokens"].to_pylist() == [[8, 2]]


def test_a_text_beyond_the_models_context_is_refused(tmp_path: Path) -> None:
    model = {"name": save_model(tmp_path / "m")}
    long = write(tmp_path / "texts.jsonl", [{"text": " ".join(["w1"] * 40)}])
    with pytest.raises(ConfigError, match=r"a text of 41 tokens, but .* reads 32; set perplexity\.max_tokens=32"):
        inputs(model=model, perplexity={"path": long}).check()


def test_a_classifier_that_is_not_there_is_found_at_once(tmp_path: Path, prompts: str) -> None:
    (tmp_path / "classifier").mkdir()
    toxicity = {"model": str(tmp_path / "classifier")}
    evaluation = inputs(model={"name": save_model(tmp_path / "m")}, data={"path": prompts}, toxicity=toxicity)
    with pytest.raises(ConfigError, match=r"classifier.* is no saved model"):
        evaluation.check()
