"""Configuration files and overrides: merging, strictness, and errors that name key, value, expectation and place."""

from pathlib import Path

import pytest

from rlhf_ray.config import PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit

BASE = """
model: {name: gpt2}
data: {path: prompts.jsonl}
rewards:
  brief: {type: function, function: "rules:brief", arguments: {limit: 1e-3, word: no}}
ppo: {iterations: 10}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def problem(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message for a PPO configuration that consists of BASE and `text`."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(PPOConfig, [tmp_path / "base.yaml", tmp_path / "x.yaml"], list(overrides))
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_files_merge_left_to_right_and_overrides_win(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("model: {name: other}\nppo: {clip_range: 0.1}\ngeneration: {stop: [a]}\n")
    config = load_config(PPOConfig, [base, second], ["ppo.clip_range=0.3", "generation.stop=[b, c]"])
    assert (config.model.name, config.ppo.iterations, config.ppo.clip_range) == ("other", 10, 0.3)
    assert config.generation.stop == ["b", "c"]
    assert config.data.path == "prompts.jsonl"


def test_include_is_relative_to_its_file_and_merged_before_it(base: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    top = tmp_path / "sub" / "top.yaml"
    top.write_text("include: [../base.yaml]\nppo: {iterations: 3}\n")
    config = load_config(PPOConfig, [top])
    assert (config.model.name, config.ppo.iterations) == ("gpt2", 3)


def test_include_of_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\n")
    with pytest.raises(ConfigError, match=r"includes itself \(a.yaml -> b.yaml -> a.yaml\)"):
        load_config(SFTConfig, [tmp_path / "a.yaml"])


def test_values_are_read_as_their_field_needs(base: Path) -> None:
    config = load_config(
        PPOConfig,
        [base],
        [
            "learner.learning_rate=1e-5",
            "run.name=2026",
            "data.path=[odd",
            "model.lora.r=4",
            "ppo.value_clip_range=null",
        ],
    )
    assert config.learner.learning_rate == 1e-5
    assert (config.run.name, config.data.path) == ("2026", "[odd")
    assert config.model.lora is not None
    assert config.model.lora.r == 4
    assert config.ppo.value_clip_range is None
    brief = config.rewards["brief"]
    assert brief.type == "function"
    assert brief.arguments == {"limit": 0.001, "word": "no"}


def test_override_in_the_right_variant_of_a_union(base: Path) -> None:
    config = load_config(PPOConfig, [base], ["rewards.brief.function=7:f", "rewards.brief.arguments={limit: 3}"])
    brief = config.rewards["brief"]
    assert brief.type == "function"
    assert (brief.function, brief.arguments) == ("7:f", {"limit": 3})


def test_null_clears_a_section(base: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text("model: {lora: {r: 4}}")
    assert load_config(PPOConfig, [base, tmp_path / "lora.yaml"], ["model.lora=null"]).model.lora is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {clip_rang: 0.2}", "ppo.clip_rang: unknown key (did you mean clip_range?) in x.yaml"),
        ("learnr: {}", "learnr: unknown key (did you mean learner?) in x.yaml"),
        ("gamma: 1", "gamma: unknown key (did you mean ppo.gamma?) in x.yaml"),
        (
            "kl: {zzz: 1}",
            "kl.zzz: unknown key (known here: coef, warmup_iterations, estimator, placement, controller, target, "
            "horizon) in x.yaml",
        ),
        ("ppo: {iterations: ten}", "ppo.iterations: 'ten' in x.yaml should be a whole number"),
        ("ppo: {iterations: '10'}", "ppo.iterations: '10' in x.yaml should be a whole number"),
        ("ppo: {ppo_epochs: true}", "ppo.ppo_epochs: true in x.yaml should be a whole number"),
        ("ppo: {gamma: 1.5}", "ppo.gamma: 1.5 in x.yaml should be at most 1"),
        ("learner: {learning_rate: -1e-5}", "learner.learning_rate: -1e-05 in x.yaml should be more than 0"),
        ("kl: {estimator: k9}", "kl.estimator: 'k9' in x.yaml should be 'k1', 'k2' or 'k3'"),
        ("model: {name: null}", "model.name: null in x.yaml should be text"),
        ("learner: 3", "learner: 3 in x.yaml should be a section with keys"),
        ("generation: {stop: abc}", "generation.stop: 'abc' in x.yaml should be a list"),
        (
            "model: {lora: {target_modules: 5}}",
            "model.lora.target_modules: 5 in x.yaml should be a list or 'all-linear'",
        ),
        ("rewards: {brief: {weigth: 1}}", "rewards.brief.weigth: unknown key (did you mean weight?) in x.yaml"),
        ("rewards: {brief: {weight: a}}", "rewards.brief.weight: 'a' in x.yaml should be a number"),
        (
            "rewards: {brief: {tokens_per_batch: 5}}",
            "rewards.brief.tokens_per_batch: unknown key (did you mean reference.tokens_per_batch?) in x.yaml",
        ),
        (
            "rewards: {rm: {type: zzz}}",
            "rewards.rm.type: 'zzz' in x.yaml should be function or neural or ensemble or remote or judge",
        ),
        (
            "rewards: {rm: {weight: 1}}",
            "rewards.rm.type: missing (function or neural or ensemble or remote or judge) in x.yaml",
        ),
        (
            "rewards: {rm: {type: neural}}",
            "rewards.rm.model: missing (Hub name or folder of a sequence-classification model) in x.yaml",
        ),
    ],
)
def test_each_error_names_key_value_expectation_and_file(tmp_path: Path, text: str, message: str) -> None:
    assert problem(tmp_path, text) == message


def test_errors_on_the_command_line_say_so(tmp_path: Path) -> None:
    assert problem(tmp_path, "", "ppo.clip_rang=1") == (
        "ppo.clip_rang: unknown key (did you mean clip_range?) on the command line"
    )
    assert problem(tmp_path, "kl: {coef: 0}", "kl.coef=x") == "kl.coef: 'x' on the command line should be a number"
    assert "overrides are written section.key=value" in problem(tmp_path, "", "ppo.gamma")
    assert "cannot read '{a' on the command line as YAML" in problem(tmp_path, "", "ppo.gamma={a")
    assert "model.name: is the value 'gpt2' in base.yaml, so it has no keys below it" in problem(
        tmp_path, "", "model.name.x=1"
    )


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    message = problem(tmp_path, "ppo: {gamma: 2, clip_rang: 1}\nkl: {coef: -1}")
    assert message.splitlines()[0] == "3 problems in the configuration:"
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "ppo.gamma",
        "ppo.clip_rang",
        "kl.coef",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2\n", "x.yaml, line 2: not valid YAML"),
        ("ppo: {gamma: 1}\nppo: {gamma: 0.5}\n", "x.yaml, line 2: not valid YAML: key 'ppo' is given twice"),
        ("- a\n", "x.yaml: expected sections with keys at the top level, found list"),
        ("1: a\n", "x.yaml, line 1: not valid YAML: key 1 is not text"),
        ("include: [1]\n", "include: got 1 in x.yaml, expected a list of file names"),
        ("include: nowhere.yaml\n", "nowhere.yaml: no such file"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    assert message in problem(tmp_path, content)


def test_missing_required_key_is_explained_with_its_meaning(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RewardModelConfig, [], ["data.path=x"])
    assert str(caught.value).startswith("model: missing")


@pytest.mark.parametrize("overrides", [[], ["model.lora.r=4", "generation.stop=['é: #', \"no\"]", "run.name=1e-5"]])
def test_to_yaml_round_trips(base: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(PPOConfig, [base], overrides)
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(PPOConfig, [again]) == config
