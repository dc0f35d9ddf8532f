"""The demo's data: real, deterministic, apart where it must be, and damaged where it should be."""

import json
import random

import pytest

from rlhf_ray.demo import damage
from rlhf_ray.demo.docstrings import MAX_SIGNATURE_CHARS, MAX_SUMMARY_CHARS, read_docstrings, split_examples
from rlhf_ray.demo.prepare import prepare

pytestmark = pytest.mark.integration

PARTS = ("demonstrations", "prompts", "held_out")


@pytest.fixture(scope="module")
def examples():
    return read_docstrings()


@pytest.fixture(scope="module")
def split(examples):
    return split_examples(examples, seed=0)


def test_the_standard_library_is_read_as_a_reader_would(examples):
    found = {example.signature: example for example in examples}
    chown = found["def chown(path, user=None, group=None)"]
    assert (chown.summary, chown.name, chown.module) == (
        "Change owner user and group of the given path.",
        "chown",
        "shutil",
    )
    assert "def Thread.start(self)" in found
    assert len(examples) > 4000
    assert len(found) == len(examples)


def test_every_example_fits_the_tiny_model(examples):
    assert all(len(example.signature) <= MAX_SIGNATURE_CHARS for example in examples)
    assert all(len(example.summary) <= MAX_SUMMARY_CHARS and "\n" not in example.summary for example in examples)


def test_reading_twice_gives_the_same(examples):
    assert read_docstrings() == examples


def test_no_function_name_is_in_two_parts(split, examples):
    names = [{example.name for example in getattr(split, part)} for part in PARTS]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert sum(len(getattr(split, part)) for part in PARTS) == len(examples)
    assert len(split.held_out) == 256
    assert len(split.prompts) == 1024


def test_the_reward_model_sees_no_prompt_of_ppo_or_evaluation(split):
    aside = {example.signature for example in (*split.prompts, *split.held_out)}
    assert not aside & {example.signature for example in split.preferences}


def test_the_split_is_a_function_of_the_seed(examples, split):
    assert split_examples(examples, seed=0) == split
    assert split_examples(examples, seed=1).held_out != split.held_out


TEXT = "Change owner user and group of the given path."


@pytest.mark.parametrize("kind", list(damage.DAMAGES))
def test_damage_is_seeded(kind):
    assert kind(TEXT, random.Random(3)) == kind(TEXT, random.Random(3))


@pytest.mark.parametrize("seed", range(20))
def test_damage_does_what_it_says(seed):
    rng = random.Random(seed)
    words = TEXT.split()
    cut = damage.cut_short(TEXT, rng)
    assert TEXT.startswith(cut.rstrip("."))
    assert len(cut.split()) < len(words)
    repeated = damage.repeat_words(TEXT, rng).split()
    assert len(repeated) > len(words)
    assert set(repeated) == set(words)
    shuffled = damage.shuffle_words(TEXT, rng).split()
    assert sorted(shuffled) == sorted(words)
    assert shuffled != words
    garbled = damage.garble_letters(TEXT, rng).split()
    assert [sorted(word) for word in garbled] == [sorted(word) for word in words]
    assert damage.drop_period(TEXT, rng) == TEXT[:-1]
    assert damage.lower_first(TEXT, rng) == "c" + TEXT[1:]


def test_pairs_prefer_the_real_docstring_and_cover_every_damage(split):
    pairs = damage.preference_pairs(split.preferences, seed=0)
    assert all(damage.is_well_formed(example.summary) for example, _, _ in pairs)
    assert all(rejected != example.summary for example, rejected, _ in pairs)
    counts = {kind: sum(pair[2] == kind for pair in pairs) / len(pairs) for kind in {pair[2] for pair in pairs}}
    assert set(counts) == {"other_function", *(kind.__name__ for kind in damage.DAMAGES)}
    assert counts["other_function"] == pytest.approx(damage.OTHER_FUNCTION_SHARE, abs=0.03)
    real = {example.summary for example in split.preferences}
    assert all(rejected in real for _, rejected, kind in pairs if kind == "other_function")
    assert damage.preference_pairs(split.preferences, seed=0) == pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("demo"), seed=0)


def test_prepared_rows_have_the_shape_of_real_chat_data(files):
    for stem, columns in {
        "demonstrations": {"prompt", "completion"},
        "preferences_eval": {"prompt", "chosen", "rejected", "damage"},
        "prompts": {"prompt", "module", "docstring"},
    }.items():
        rows = [json.loads(line) for line in getattr(files, stem).read_text().splitlines()]
        assert len(rows) == files.rows[stem]
        assert set(rows[0]) == columns
        assert [message["role"] for message in rows[0]["prompt"]] == ["user"]


def test_evaluation_prompts_are_in_no_training_file(files):
    def prompts(stem):
        return {json.loads(line)["prompt"][0]["content"] for line in getattr(files, stem).read_text().splitlines()}

    held_out = prompts("prompts_eval")
    assert held_out == prompts("demonstrations_eval")
    assert prompts("preferences_eval") <= held_out
    assert not held_out & (prompts("demonstrations") | prompts("preferences") | prompts("prompts"))


def test_the_models_load_and_share_a_tokenizer(files):
    from transformers import AutoModelForCausalLM

    from rlhf_ray.hub import check_model, load_tokenizer

    tokenizer = load_tokenizer(check_model(str(files.base)))
    assert len(tokenizer) == 2048
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    policy = AutoModelForCausalLM.from_pretrained(files.base)
    assert 2e6 < policy.num_parameters() < 4e6
    assert policy.config.eos_token_id == tokenizer.eos_token_id
    assert policy.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_chat_template_writes_one_turn_per_message(files):
    from rlhf_ray.hub import load_tokenizer

    tokenizer = load_tokenizer(str(files.base))
    messages = [{"role": "user", "content": "def f(x)"}, {"role": "assistant", "content": "Return x."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|user|>\ndef f(x)<|end|>\n<|assistant|>\nReturn x.<|end|>\n"
    )
    text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert tokens.count(tokenizer.eos_token_id) == 1


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    again = prepare(tmp_path, seed=0)
    for name in ("demonstrations.jsonl", "preferences.jsonl", "prompts_eval.jsonl"):
        assert (again.base.parent / name).read_bytes() == (files.base.parent / name).read_bytes()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "base" / name).read_bytes() == (files.base / name).read_bytes()
