"""The recipes: rewards that a reader can check, one run in YAML and in Python, and tiny variants that change no more
than they say."""

import importlib.util
import json
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from rlhf_ray.cli.main import main
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.demo.recipes import files, tiny
from rlhf_ray.demo.recipes.instruction import InstructionRewards, with_input
from rlhf_ray.demo.recipes.reviews import BAD, GOOD, reviews
from rlhf_ray.demo.recipes.sentiment import NEGATIVE, POSITIVE, SentimentRewards, opening
from rlhf_ray.demo.recipes.tasks import tasks
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["sentiment_gpt2", "instruction_following_llama2_7b"]
#: What a tiny run may differ in from its recipe.
MAY_DIFFER = {
    *("model.name", "data.path", "data.eval_path", f"rewards.{tiny.NEURAL}.model", "ppo.iterations"),
    *("ppo.prompts_per_iteration", "ppo.samples_per_minibatch", "learner.learning_rate"),
    *("generation.max_new_tokens", "generation.cpu_kv_cache_gib"),
}


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes' folders stay empty."""
    monkeypatch.setattr(tiny, "_write_whole", lambda folder, write: folder.mkdir(parents=True))


def script(recipe: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(recipe, CONFIGS / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_config(recipe: str, overlay: dict[str, Any] | None = None) -> PPOConfig:
    overrides = [f"{key}={json.dumps(value)}" for key, value in (overlay or {}).items()]
    return load_config(PPOConfig, [CONFIGS / f"{recipe}.yaml"], overrides)


def flat(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in data.items():
        leaves |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return leaves


# -- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_script_builds_what_the_yaml_says(recipe: str) -> None:
    lines = (CONFIGS / f"{recipe}.py").read_text().splitlines()
    assert len(lines) < 40
    assert script(recipe).build().config == recipe_config(recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tiny_variant_keeps_the_recipe(
    recipe: str, tmp_path: Path, no_models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overlay = tiny.tiny_overlay(recipe, "runs/tiny-recipes")
    assert set(overlay) <= MAY_DIFFER
    small = recipe_config(recipe, overlay)
    assert script(recipe).build(tiny=True).config == small
    full, changed = flat(recipe_config(recipe).model_dump()), flat(small.model_dump())
    assert {key for key in full if full[key] != changed[key]} <= set(overlay)
    assert Path(small.model.name).is_relative_to(tmp_path)
    assert small.model.lora == recipe_config(recipe).model.lora
    assert small.checkpoint.best


def test_the_recipes_are_what_their_names_promise() -> None:
    sentiment, instruction = map(recipe_config, RECIPES)
    assert sentiment.model.lora is not None
    assert sentiment.model.lora.target_modules == ["c_attn", "c_proj"]
    assert set(sentiment.rewards) == {"brevity_bonus", "positivity_reward", "coherence_penalty"}
    assert {name: section.weight for name, section in instruction.rewards.items()} == {
        tiny.NEURAL: 1.0,
        "format_compliance": 0.3,
        "instruction_acknowledgment": 0.2,
        "response_structure": 0.2,
    }
    assert (instruction.early_stop.kl, instruction.early_stop.kl_patience) == (0.15, 10)
    alone = load_config(PPOConfig, [CONFIGS / f"{RECIPES[1]}.yaml"], [f"rewards.{tiny.NEURAL}.enabled=false"])
    assert not alone.rewards[tiny.NEURAL].enabled


# -- the command -----------------------------------------------------------------------------------------------------


def test_tiny_needs_a_recipe() -> None:
    refused = CliRunner().invoke(main, ["ppo", "--tiny", "--config", str(CONFIGS / "ppo.yaml")])
    assert refused.exit_code == ConfigError.exit_code
    assert "no tiny variant of ppo, only of sentiment_gpt2" in refused.output
    assert "give the recipe's --config" in CliRunner().invoke(main, ["ppo", "--tiny"]).output


def test_files_are_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def write(folder: Path) -> None:
        made.append(folder)
        (folder / "half").touch()
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(tiny._WRITERS, "sentiment_gpt2", write)
    with pytest.raises(KeyboardInterrupt):
        tiny.tiny_overlay("sentiment_gpt2", tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing half-made stays"
    first, second = (tiny.tiny_overlay("sentiment_gpt2", tmp_path) for _ in range(2))
    assert first == second
    assert len(made) == 2, "the second overlay found the files"


# -- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "brevity", "positivity", "coherence"),
    [
        ("", 1.0, 0.0, -1.0),
        ("A great film.", 1 - 13 / 300, 1 / 3, 0.0),
        ("Great, great, great!", 1 - 20 / 300, 1 / 3, -1 / 3),
        ("Boring and bad, but a lovely end.", 1 - 33 / 300, -1 / 3, 0.0),
        ("dull " * 100, 0.0, -1 / 3, -98 / 100),
    ],
)
def test_sentiment_rewards(response: str, brevity: float, positivity: float, coherence: float) -> None:
    scores = SentimentRewards().score(["I saw a film"], [response]).components
    found = {name: float(values[0]) for name, values in scores.items()}
    expected = {"brevity_bonus": brevity, "positivity_reward": positivity, "coherence_penalty": coherence}
    assert found == pytest.approx(expected)


ASKED = "How do I photograph a horse?"


@pytest.mark.parametrize(
    ("response", "format_", "acknowledged", "structure"),
    [
        ("", 0.0, 0.0, 0.0),
        ("To photograph a horse, first find one. Then wait.", 1.0, 1.0, 1.0),
        ("horses are animals", 0.0, 0.75, 1 / 3),
        ("Wait. Wait. Wait. Wait. Wait.", 1.0, 0.0, 1 / 3),
        ("1. Find a horse\n2. Photograph it", 1.0, 1.0, 1.0),
    ],
)
def test_instruction_rewards(response: str, format_: float, acknowledged: float, structure: float) -> None:
    wrapped = f"Below is an instruction.\n\n### Instruction:\n{ASKED}\n\n### Response:\n"
    messages = [{"role": "user", "content": ASKED}]
    scores = InstructionRewards().score([wrapped], [response], messages=[messages]).components
    found = [float(values[0]) for values in scores.values()]
    assert found == pytest.approx([format_, acknowledged, structure])


def test_without_messages_the_prompt_is_what_was_asked() -> None:
    scores = InstructionRewards().score([ASKED] * 2, ["Photograph the horse.", "Paint a cow."]).components
    assert scores["instruction_acknowledgment"].tolist() == [1.0, 0.0]


def test_rows_become_prompts() -> None:
    review = {"text": "one two<br /><br />three four five six seven eight nine ten eleven twelve thirteen", "label": 1}
    assert opening(review) == {"text": "one two three four five six seven eight nine ten eleven twelve"}
    assert with_input({"instruction": "Add.", "input": "1 and 2", "output": "3"}) == {"instruction": "Add.\n\n1 and 2"}
    assert with_input({"instruction": "Sing.", "input": ""}) == {"instruction": "Sing."}


# -- tiny text -------------------------------------------------------------------------------------------------------


def test_texts_repeat_and_tell_good_from_bad() -> None:
    assert list(islice(reviews(3), 20)) == list(islice(reviews(3), 20)) != list(islice(reviews(4), 20))
    assert set(GOOD) <= POSITIVE
    assert set(BAD) <= NEGATIVE
    lessons = list(islice(tasks(3), 300))
    assert lessons == list(islice(tasks(3), 300))
    asked = [lesson.instruction for lesson in lessons]
    rewards = InstructionRewards()
    good, bad = (
        rewards.score(asked, [getattr(lesson, kind) for lesson in lessons]).total for kind in ("answer", "rejected")
    )
    assert good.mean() > bad.mean() + 0.3


def test_no_prompt_is_both_held_out_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TEXTS", 32)
    files.write_sentiment(tmp_path)
    held_out, prompts = (
        {opening(json.loads(line))["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()}
        for name in ("held_out", "prompts")
    )
    assert (len(held_out), len(prompts)) == (files.HELD_OUT, files.PROMPTS)
    assert held_out.isdisjoint(prompts)
