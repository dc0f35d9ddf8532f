"""The recipes that are pipelines: what their pages promise, what their tiny variants keep, and their data."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from rlhf_ray.cli.main import main
from rlhf_ray.config.export import json_schema
from rlhf_ray.config.load import _read_yaml as read_yaml
from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.data.transcripts import read_transcript
from rlhf_ray.demo.recipes import tiny
from rlhf_ray.demo.recipes.dialogues import dialogues
from rlhf_ray.demo.recipes.refusal import RefusalCheck, declines

pytestmark = pytest.mark.unit

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA2, MISTRAL, QLORA = "pipeline_llama2_7b_hh", "mistral_7b_hh_rlhf", "preference_llama31_8b_qlora"
SMALL_CARD = f"{QLORA}_12gb"
PIPELINES = [LLAMA2, MISTRAL, QLORA, SMALL_CARD]
#: Keys, by their ends, in which a tiny stage may differ from its recipe: models, data, sizes, lengths, step sizes.
MAY_DIFFER = (
    *("model.name", "against", "reference", "data.path", "perplexity.path", "toxicity"),
    *("max_tokens", "max_prompt_tokens", "max_new_tokens", "max_context_tokens"),
    *("max_samples", "eval_fraction", "cpu_kv_cache_gib"),
    *("iterations", "epochs", "pairs_per_step", "prompts_per_iteration", "samples_per_minibatch", "prompts"),
    *("learning_rate", "warmup_steps", "tokens_per_microbatch", "head_hidden"),
)


def recipe(name: str, overlay: dict[str, Any] | None = None) -> RLHFConfig:
    overrides = [f"{key}={json.dumps(value)}" for key, value in (overlay or {}).items()]
    return load_config(RLHFConfig, [CONFIGS / f"{name}.yaml"], overrides)


def leaves(data: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        yield from leaves(value, f"{above}{key}.") if isinstance(value, dict) else [(above + key, value)]


@pytest.fixture(scope="module")
def configs() -> dict[str, RLHFConfig]:
    return {name: recipe(name) for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_tiny_variant_keeps_the_recipe(
    name: str, configs: dict[str, RLHFConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "_write_whole", lambda folder, write: folder.mkdir(parents=True))
    overlay = tiny.tiny_overlay(name, tmp_path)
    small = recipe(name, overlay)
    assert list(small.stages) == list(configs[name].stages)
    full = dict(leaves(configs[name].model_dump()))
    changed = {key for key, value in leaves(small.model_dump()) if full.get(key) != value}
    assert changed <= set(overlay) | {"evaluation.toxicity"}
    assert [key for key in changed if not key.endswith(MAY_DIFFER)] == []
    hub = [value for value in dict(leaves(small.model_dump())).values() if value in ("Anthropic/hh-rlhf", "gpt2")]
    assert hub == []


def test_every_recipe_has_its_page(configs: dict[str, RLHFConfig]) -> None:
    for name in PIPELINES:
        page = (CONFIGS / f"{name.removesuffix('_12gb')}.md").read_text()
        assert f"configs/{name}.yaml" in page


def test_editors_find_nothing_wrong_with_the_files() -> None:
    schema = json_schema(RLHFConfig)
    for name in PIPELINES:
        jsonschema.validate(read_yaml(CONFIGS / f"{name}.yaml"), schema)
    with pytest.raises(jsonschema.ValidationError, match="'lerner' was unexpected"):
        jsonschema.validate({"sft": {"include": "sft.yaml", "lerner": {}}}, schema)


def test_the_whole_pipeline(configs: dict[str, RLHFConfig]) -> None:
    config = configs[LLAMA2]
    assert list(config.stages) == ["sft", "reward_model", "dpo", "ppo", "evaluation"]
    sft, reward, dpo, ppo = config.sft, config.reward_model, config.dpo, config.ppo
    assert sft is not None
    assert (sft.learner.learning_rate, sft.sft.epochs, sft.sft.samples_per_step) == (2e-5, 3, 32)
    assert reward is not None
    assert (reward.reward.margin, reward.reward.head_hidden, reward.reward.head_dropout) == (0.5, 1024, 0.1)
    assert dpo is not None
    assert (dpo.dpo.beta, dpo.learner.learning_rate) == (0.1, 5e-7)
    assert ppo is not None
    assert (ppo.ppo.prompts_per_iteration, ppo.ppo.samples_per_minibatch, ppo.ppo.ppo_epochs) == (256, 32, 4)
    assert (ppo.kl.coef, ppo.ppo.clip_range, ppo.generation.top_k) == (0.1, 0.2, 50)
    assert {reward.model.name, dpo.model.name, ppo.model.name} == {"${sft}"}


def test_adapters_and_a_price_for_leaving_the_start(configs: dict[str, RLHFConfig]) -> None:
    config = configs[MISTRAL]
    assert config.ppo is not None
    assert config.reward_model is not None
    for stage in (config.ppo, config.reward_model):
        assert stage.model.lora is not None
        assert (stage.model.lora.r, stage.model.lora.alpha, stage.model.lora.dropout) == (16, 32, 0.05)
        assert stage.data.chat_template == "mistral"
    assert (config.ppo.kl.coef, config.ppo.kl.placement) == (0.05, "reward")


def test_the_two_profiles(configs: dict[str, RLHFConfig]) -> None:
    high, small = configs[QLORA], configs[SMALL_CARD]
    assert list(small.stages) == ["reward_model", "dpo"]
    for config, rank, length in ((high, 64, 2048), (small, 16, 1024)):
        assert config.dpo is not None
        assert config.dpo.model.lora is not None
        assert config.dpo.model.quantization == "4bit"
        assert (config.dpo.model.lora.r, config.dpo.data.max_tokens) == (rank, length)
        assert (config.dpo.learner.learning_rate, config.dpo.data.eval_fraction) == (1.41e-5, 0.1)


def test_a_pipeline_without_recipe_has_no_tiny_variant(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("sft: {model: {name: gpt2}, data: {path: rows.jsonl}}\n")
    refused = CliRunner().invoke(main, ["pipeline", "--tiny", "--config", str(file)])
    assert refused.exit_code == 2
    assert "no tiny variant of mine" in refused.output
    assert "give --config FILE" in CliRunner().invoke(main, ["pipeline"]).output


# -- data ------------------------------------------------------------------------------------------------------------


def test_dialogues_repeat_and_are_of_hh_rlhfs_shape() -> None:
    shown = list(islice(dialogues(3), 400))
    assert shown == list(islice(dialogues(3), 400)) != list(islice(dialogues(4), 400))
    for one in shown:
        assert read_transcript(f"{one.transcript} {one.chosen}") == [
            *one.messages,
            {"role": "assistant", "content": one.chosen},
        ]
        assert one.chosen != one.rejected
    assert 0.3 < sum(one.harmful for one in shown) / 400 < 0.5
    assert 0.3 < sum(len(one.turns) > 1 for one in shown) / 400 < 0.5
    harmful = [one for one in shown if one.harmful]
    chosen, rejected = (
        sum(declines(text) for text in texts)
        for texts in ([one.chosen for one in harmful], [one.rejected for one in harmful])
    )
    assert chosen > 1.5 * rejected, "chosen replies to harmful requests are those that decline"


@pytest.mark.parametrize(
    ("response", "declined"),
    [
        ("I am sorry, but I cannot help with that.", True),
        ("I’m sorry, but I can’t assist with this request.", True),
        ("No. I won't tell you.", True),
        ("I'm not able to provide instructions for that.", True),
        ("I am unable to do so.", True),
        ("Sure! First, find the process id.", False),
        ("I am sorry to hear that. Call the police.", False),
        ("", False),
        ("x" * 200 + " I cannot do that.", False),
    ],
)
def test_what_counts_as_declining(response: str, declined: bool) -> None:
    assert declines(response) == declined


def test_the_check_of_refusals() -> None:
    rows = [json.loads(line) for line in (CONFIGS / f"{MISTRAL}_refusals.jsonl").read_text().splitlines()]
    prompts, harmful = [row["prompt"] for row in rows], [row["harmful"] for row in rows]
    assert len(set(prompts)) == 40
    assert sum(harmful) == 20
    always = RefusalCheck().score(prompts, ["I cannot help with that."] * 40, harmful=harmful).components
    assert always["as_it_should"].mean() == 0.5
    assert always["refused"].mean() == 1.0
    right = ["I cannot help with that." if bad else "Gladly." for bad in harmful]
    assert RefusalCheck().score(prompts, right, harmful=harmful).components["as_it_should"].mean() == 1.0
