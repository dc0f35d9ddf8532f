"""`rlhf-ray config import`: flat JSON of other systems becomes a configuration of ours, and what does not is said."""

import json

import pytest
import yaml
from click.testing import CliRunner

from rlhf_ray.cli.main import main
from rlhf_ray.config import DPOConfig, SFTConfig
from rlhf_ray.config.import_json import import_json
from rlhf_ray.config.load import load_config
from rlhf_ray.config.rlhf import RLHFConfig
from rlhf_ray.errors import ConfigError

pytestmark = pytest.mark.unit

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
MID_RANGE = {
    "strategy": "rlhf",
    "model_name": MODEL,
    "use_4bit": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "lora_r": 16,
    "max_seq_length": 1024,
}
HIGH_END = {**MID_RANGE, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "lora_r": 64}
HIGH_END["max_seq_length"] = 2048
COMPLETE = {
    **HIGH_END,
    "task": "text-generation",
    "dataset": "/data/preferences.jsonl",
    "provider": "unsloth",
    "num_train_epochs": 1,
    "learning_rate": 1.41e-5,
    "lora_alpha": 16,
    "bf16": True,
    "warmup_ratio": 0.1,
    "eval_split": 0.1,
}

GOLDEN_MID_RANGE = """\
# rlhf-ray pipeline --config THIS_FILE
# batch: 1 x 8 accumulated = 8 per step over all devices; set learner.ranks for more than one
# max_seq_length: half of the 1024 tokens for prompts in PPO, half for responses
# strategy: PPO wants a reward model; one is trained from the preference pairs before, at the same learning rate
# dataset: not in the file; give reward_model.data.path and ppo.data.path on the command line
reward_model:
  model:
    name: meta-llama/Llama-3.1-8B-Instruct
    lora:
      r: 16
    quantization: 4bit
  reward:
    epochs: 1
    pairs_per_step: 8
  data:
    max_tokens: 1024
    too_long: truncate
  learner:
    tokens_per_microbatch: 2048
ppo:
  model:
    name: meta-llama/Llama-3.1-8B-Instruct
    lora:
      r: 16
    quantization: 4bit
  ppo:
    epochs: 1.0
    prompts_per_iteration: 8
  rewards:
    preference:
      type: neural
      model: ${reward_model}
  data:
    max_prompt_tokens: 512
    too_long: truncate
  generation:
    max_new_tokens: 512
  learner:
    tokens_per_microbatch: 1024
"""


def written(folder, values):
    path = folder / "service.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_the_mid_range_profile_as_a_file(tmp_path):
    assert import_json(written(tmp_path, MID_RANGE)).to_yaml() == GOLDEN_MID_RANGE


def test_the_high_end_profile_differs_where_it_should(tmp_path):
    golden = yaml.safe_load(GOLDEN_MID_RANGE)
    for stage, tokens in (("reward_model", 8192), ("ppo", 4096)):
        golden[stage]["model"]["lora"]["r"] = 64
        golden[stage]["learner"]["tokens_per_microbatch"] = tokens
    golden["reward_model"]["data"]["max_tokens"] = 2048
    golden["ppo"]["data"]["max_prompt_tokens"] = golden["ppo"]["generation"]["max_new_tokens"] = 1024
    assert import_json(written(tmp_path, HIGH_END)).content == golden


def test_a_complete_file_runs_as_it_is(tmp_path):
    imported = import_json(written(tmp_path, COMPLETE))
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.to_yaml())
    config = load_config(RLHFConfig, [ours])
    for stage in (config.reward_model, config.ppo):
        assert stage.data.path == "/data/preferences.jsonl"
        assert stage.data.eval_fraction == 0.1
        assert stage.model.quantization == "4bit"
        assert (stage.model.lora.r, stage.model.lora.alpha) == (64, 16)
        assert (stage.learner.learning_rate, stage.learner.warmup_ratio) == (1.41e-5, 0.1)
        assert stage.learner.dtype == "bfloat16"
    assert config.reward_model.reward.pairs_per_step == config.ppo.ppo.prompts_per_iteration == 8
    assert set(imported.dropped) == {"provider", "task"}


def test_dpo_and_sft(tmp_path):
    shared = {k: v for k, v in COMPLETE.items() if k not in ("strategy", "use_4bit")}
    dpo = import_json(written(tmp_path, {**shared, "strategy": "dpo", "beta": 0.2, "load_in_8bit": True}))
    (tmp_path / "dpo.yaml").write_text(dpo.to_yaml())
    config = load_config(DPOConfig, [tmp_path / "dpo.yaml"])
    assert dpo.command == "rlhf-ray dpo"
    assert (config.dpo.beta, config.dpo.pairs_per_step, config.model.quantization) == (0.2, 8, "8bit")
    assert config.learner.tokens_per_microbatch == 2 * 2 * 2048  # two sequences a pair

    sft = import_json(written(tmp_path, {**shared, "strategy": "qlora", "num_train_epochs": 2.5}))
    (tmp_path / "sft.yaml").write_text(sft.to_yaml())
    config = load_config(SFTConfig, [tmp_path / "sft.yaml"])
    assert sft.command == "rlhf-ray sft"
    assert (config.sft.epochs, config.sft.samples_per_step, config.model.quantization) == (3, 8, "4bit")
    assert "num_train_epochs: 2.5 rounded up to whole passes" in sft.notes


def test_names_of_schedules_and_optimisers(tmp_path):
    options = {"lr_scheduler_type": "warmup_stable_decay", "optim": "paged_adamw_8bit", "adam_epsilon": 1e-6}
    learner = import_json(written(tmp_path, {**COMPLETE, "strategy": "dpo", **options})).content["learner"]
    assert (learner["schedule"], learner["optimizer"], learner["adam_eps"]) == ("wsd", "adamw_8bit", 1e-6)


def test_what_has_no_counterpart_is_dropped_with_the_reason(tmp_path):
    dropped = import_json(written(tmp_path, {**COMPLETE, "optim": "lion_32bit", "logging_steps": 5, "flux": 3})).dropped
    assert dropped["optim"] == "'lion_32bit' has no counterpart; there are adamw, adamw_8bit, sgd"
    assert dropped["logging_steps"] == "every step is logged"
    assert dropped["flux"] == "not known here"


def test_adapters_where_only_quantisation_is_set(tmp_path):
    values = {"strategy": "sft", "model_name": "m", "dataset": "d", "use_4bit": True}
    assert import_json(written(tmp_path, values)).content["model"] == {"name": "m", "quantization": "4bit", "lora": {}}


def test_comments_are_allowed(tmp_path):
    text = '{"strategy": "sft", // what is trained\n "model_name": "m", "dataset": "s3://bucket/d.jsonl"}  // end'
    assert import_json(written(tmp_path, text)).content["data"]["path"] == "s3://bucket/d.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "orpo"}, "strategy: 'orpo' in .*service.json should be rlhf, dpo, sft, qlora"),
        ({"model_name": None}, "model.name: null in .*service.json should be text"),
        ({"learning_rate": "fast"}, "learner.learning_rate: 'fast' in .*service.json should be a number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: 0 in .*, at least 1"),
        ({"num_train_epochs": -1}, "num_train_epochs: -1 in .*, more than 0"),
        ({"use_8bit": True}, "use_4bit, use_8bit: both are set"),
        ({"fp16": True}, "bf16, fp16: both are true"),
        ({"eval_split": 1.5}, "data.eval_fraction: 1.5 in .* should be less than 1"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        import_json(written(tmp_path, COMPLETE | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a JSON file"),
        ("[1]", "expected one JSON object"),
        ('{"strategy": "dpo"}', "model_name: missing"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        import_json(written(tmp_path, text))


def test_the_command_writes_a_file_and_says_what_it_dropped(tmp_path):
    target = tmp_path / "mine.yaml"
    done = CliRunner().invoke(main, ["config", "import", str(written(tmp_path, COMPLETE)), "-o", str(target)])
    assert done.exit_code == 0
    assert "dropped: provider (there is one learner" in done.stderr
    assert f"rlhf-ray pipeline --config {target}" in done.stdout
    assert yaml.safe_load(target.read_text())["ppo"]["model"]["name"] == MODEL
