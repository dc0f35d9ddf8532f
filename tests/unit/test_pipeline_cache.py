"""What a stage is made from, and what follows for a stage that has run before."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config import PPOConfig, SFTConfig
from rlhf_ray.config.load import merge_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.trainers.run_folder import CONFIG_FILE
from rlhf_ray.trainers.stage_cache import Ingredients, StageCache, content_digest

pytestmark = pytest.mark.unit


REWARDS = "rewards_of_a_cached_stage"  # a module that each test writes for itself


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / f"{REWARDS}.py"
    path.write_text("def short(prompt, response):\n    return 0.0\n")
    yield path
    sys.modules.pop(REWARDS, None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(b"1")
    return folder


def sft(rows: Path, **keys: Any) -> SFTConfig:
    base = {"model": {"name": "gpt2"}, "data": {"path": str(rows)}}
    return merge_config(SFTConfig, [("test", base), ("change", keys)])


def ppo(**keys: Any) -> PPOConfig:
    base = {
        "model": {"name": "${sft}"},
        "data": {"path": "imdb"},
        "rewards": {"short": {"type": "function", "function": f"{REWARDS}:short"}},
        "ppo": {"iterations": 4},
    }
    return merge_config(PPOConfig, [("test", base), ("change", keys)])


# -- ingredients -----------------------------------------------------------------------------------------------------


def test_what_a_run_is_called_and_runs_on_is_no_ingredient(rows: Path) -> None:
    elsewhere = sft(
        rows,
        run={"name": "other", "root": "/elsewhere"},
        resources={"threads": 7},
        tracking={"tensorboard": False},
        checkpoint={"every": 3},
    )
    assert Ingredients.of(elsewhere, {}) == Ingredients.of(sft(rows), {})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"learner": {"learning_rate": 1e-3}}, "learner.learning_rate was 1e-05, is 0.001"),
        ({"run": {"seed": 3}}, "run.seed was 0, is 3"),
    ],
)
def test_a_changed_key_is_named(rows: Path, keys: dict[str, Any], said: str) -> None:
    changes = Ingredients.of(sft(rows, **keys), {}).changes(Ingredients.of(sft(rows), {}))
    assert list(changes.values()) == [said]


def test_a_section_that_was_not_there_is_a_change(rows: Path) -> None:
    with_lora = Ingredients.of(sft(rows, model={"lora": {"r": 4}}), {})
    assert with_lora.changes(Ingredients.of(sft(rows), {}))["model.lora.r"] == "model.lora.r was None, is 4"


def test_content_counts_not_the_date(rows: Path) -> None:
    before = Ingredients.of(sft(rows), {})
    text = rows.read_text()
    rows.write_text(text + text)
    assert Ingredients.of(sft(rows), {}).changes(before) == {str(rows): f"the content of {rows} changed"}
    rows.write_text(text)
    assert Ingredients.of(sft(rows), {}) == before


def test_models_of_earlier_stages_count_by_content_wherever_they_are(model: Path, tmp_path: Path, source: Path) -> None:
    before = Ingredients.of(ppo(), {"sft": model})
    assert before.settings["model.name"] == "${sft}"
    moved = model.rename(tmp_path / "moved")
    assert Ingredients.of(ppo(), {"sft": moved}) == before
    (moved / "weights").write_bytes(b"2")
    assert list(Ingredients.of(ppo(), {"sft": moved}).changes(before)) == ["${sft}"]


def test_the_source_of_a_reward_counts(model: Path, source: Path) -> None:
    before = Ingredients.of(ppo(), {"sft": model})
    source.write_text("def short(prompt, response):\n    return 1.0\n")
    assert list(Ingredients.of(ppo(), {"sft": model}).changes(before)) == [f"{REWARDS}:short"]
    nowhere = ppo(rewards={"short": {"function": "graded_nowhere:short"}})
    with pytest.raises(ConfigError, match=r"rewards.short.function `graded_nowhere:short`: there is no module"):
        Ingredients.of(nowhere, {"sft": model})


def test_a_folders_digest_is_of_names_and_bytes(model: Path) -> None:
    digest = content_digest(model)
    (model / ".hidden").write_text("x")
    assert content_digest(model) == digest
    (model / "weights").rename(model / "weights2")
    assert content_digest(model) != digest


# -- plans -----------------------------------------------------------------------------------------------------------


def left_by_a_run(cache: StageCache, stage: str) -> Path:
    """What a trainer leaves in a stage's folder."""
    folder = cache.root / stage
    (folder / "policy").mkdir(parents=True)
    (folder / CONFIG_FILE).touch()
    (folder / "policy" / "config.json").touch()
    return folder


LEAVES = ["policy/config.json"]


def test_the_life_of_a_stage(rows: Path, tmp_path: Path) -> None:
    cache, ingredients = StageCache(tmp_path / "all"), Ingredients.of(sft(rows), {})
    assert cache.plan("sft", ingredients).action == "run"
    assert cache.begin("sft", ingredients, "run") is None
    folder = left_by_a_run(cache, "sft")
    assert cache.plan("sft", ingredients).action == "resume", "it was killed"
    cache.finish("sft", LEAVES)
    assert cache.plan("sft", ingredients).action == "skip"
    assert cache.plan("reward_model", ingredients).action == "run"

    (folder / "policy" / "config.json").unlink()
    gone = cache.plan("sft", ingredients)
    assert (gone.action, gone.why) == ("run", "its policy/config.json is gone")

    changed = Ingredients.of(sft(rows, sft={"samples_per_step": 8}), {})
    plan = cache.plan("sft", changed)
    assert (plan.action, plan.why) == ("run", "sft.samples_per_step was 32, is 8")
    assert cache.begin("sft", changed, plan.action) == tmp_path / "all" / "earlier" / "sft-1"
    assert not folder.exists()
    left_by_a_run(cache, "sft")
    assert cache.begin("sft", ingredients, "run") == tmp_path / "all" / "earlier" / "sft-2"


def test_a_run_that_nothing_is_known_of_is_not_taken_over(rows: Path, tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "all")
    left_by_a_run(cache, "sft")
    plan = cache.plan("sft", Ingredients.of(sft(rows), {}))
    assert plan.action == "run"
    assert "pipeline.json does not say" in plan.why


def test_a_stage_that_was_killed_before_it_began_leaves_no_trace(rows: Path, tmp_path: Path) -> None:
    cache, ingredients = StageCache(tmp_path / "all"), Ingredients.of(sft(rows), {})
    cache.begin("sft", ingredients, "run")
    (tmp_path / "all" / "sft" / "logs").mkdir(parents=True)
    assert cache.plan("sft", ingredients).action == "run"
    assert cache.begin("sft", ingredients, "run") is None
    assert not (tmp_path / "all" / "sft").exists()


@pytest.mark.parametrize(
    ("first", "second", "action"),
    [
        ({}, {"sft": {"epochs": 2}}, "resume"),
        ({"sft": {"epochs": 3}}, {"sft": {"epochs": 2}}, "run"),
        ({}, {"sft": {"epochs": 2}, "run": {"seed": 1}}, "run"),
        ({"learner": {"schedule": "cosine"}}, {"learner": {"schedule": "cosine"}, "sft": {"epochs": 2}}, "run"),
        ({"learner": {"warmup_ratio": 0.1}}, {"learner": {"warmup_ratio": 0.1}, "sft": {"epochs": 2}}, "run"),
    ],
)
def test_a_stage_that_became_longer_goes_on_where_its_first_steps_would_be_the_same(
    rows: Path, tmp_path: Path, first: dict[str, Any], second: dict[str, Any], action: str
) -> None:
    cache, before = StageCache(tmp_path / "all"), Ingredients.of(sft(rows, **first), {})
    cache.begin("sft", before, "run")
    left_by_a_run(cache, "sft")
    cache.finish("sft", LEAVES)
    assert cache.plan("sft", Ingredients.of(sft(rows, **second), {})).action == action
