"""Named chat templates, character by character, and a BOS that is never doubled."""

import pytest
from data_rows import assistant, plain_tokenizer, system, user, write_jsonl

from rlhf_ray.config.data import DemonstrationDataSection, PromptDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.templates import NAMED
from rlhf_ray.demo.tokenizer import train_tokenizer
from rlhf_ray.errors import DataError

pytestmark = pytest.mark.unit

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
SHORT = [user(" Hi ")]
LONG = [system("Be brief."), user("Hi"), assistant("Hello"), user("Bye")]
EXPECTED = {
    "llama2": (
        "<s>[INST] Hi [/INST]",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    ),
    "mistral": (
        "<s>[INST]  Hi  [/INST]",
        "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ),
    "alpaca": (
        f"<s>{ALPACA}\n\n### Instruction:\n Hi \n\n### Response:\n",
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n### Response:\n",
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return plain_tokenizer()


@pytest.fixture
def load(tmp_path, tokenizer):
    def load_rows(*prompts, template, **options):
        path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in prompts])
        section = PromptDataSection(path=path, chat_template=template, **options)
        return load_prompts(section, tokenizer, 999).table.to_pylist()

    return load_rows


def test_every_name_of_the_configuration_has_a_template():
    choices = PromptDataSection.model_json_schema()["properties"]["chat_template"]["enum"]
    assert set(choices) - {"auto", "none"} == set(NAMED) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_write_what_their_models_were_trained_on(load, name):
    short, long = load(SHORT, LONG, template=name)
    assert (short["prompt"], long["prompt"]) == EXPECTED[name]


@pytest.mark.parametrize("name", NAMED)
def test_a_string_and_a_system_prompt_make_the_same_conversation(load, name):
    (row,) = load("Hi", template=name, system_prompt="Be brief.")
    (same,) = load([system("Be brief."), user("Hi")], template=name)
    assert row == same
    assert row["messages"] == [system("Be brief."), user("Hi")]


@pytest.mark.parametrize("name", ["llama2", "mistral", "alpaca"])
def test_turns_must_alternate_where_the_template_cannot_say_otherwise(load, name):
    with pytest.raises(
        DataError, match=r"row 1 .*refuses these messages: .*take turns; message 2 of them is from user"
    ):
        load(LONG, [user("a"), user("b")], template=name)


@pytest.mark.parametrize("name", [*NAMED, "none"])
@pytest.mark.parametrize("text", ["abc", "<s>abc", "<s><s>abc"])
def test_no_template_and_no_text_leads_to_two_bos(load, tokenizer, name, text):
    (row,) = load(text, template=name)
    bos = tokenizer.bos_token_id
    assert [bos, bos] != row["prompt_tokens"][:2]
    assert (row["prompt_tokens"][0] == bos) is (name != "chatml")  # ChatML has none


def test_a_bos_before_every_turn_stays(load, tokenizer):
    (row,) = load(LONG, template="llama2")
    assert row["prompt_tokens"].count(tokenizer.bos_token_id) == 2


def test_a_tokenizer_without_bos_gets_none(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi"}])
    section = PromptDataSection(path=path, chat_template="llama2")
    (row,) = load_prompts(section, train_tokenizer(["Hi"]), 99).table.to_pylist()
    assert row["prompt"] == "[INST] Hi [/INST]"


def test_a_named_template_replaces_the_tokenizers_own(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi"}])
    tokenizer = train_tokenizer(["Hi"])
    own, named = (
        load_prompts(PromptDataSection(path=path, chat_template=name), tokenizer, 99).table["prompt"][0].as_py()
        for name in ("auto", "chatml")
    )
    assert own.startswith("<|user|>\n")
    assert named.startswith("<|im_start|>user\n")


def test_demonstrations_follow_the_same_template(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [user("abc"), assistant("def")]}])
    section = DemonstrationDataSection(path=path, chat_template="mistral")
    (row,) = load_demonstrations(section, tokenizer).table.to_pylist()
    prompt, response = row["tokens"][: row["prompt_length"]], row["tokens"][row["prompt_length"] :]
    prompts = PromptDataSection(path=path, chat_template="mistral", prompt_column="messages")
    assert prompt == load_prompts(prompts, tokenizer, 99).table["prompt_tokens"][0].as_py()
    assert tokenizer.decode(response) == "def</s>"


def test_text_without_a_template_has_no_messages(load):
    (row,) = load("abc", template="none")
    assert "messages" not in row
