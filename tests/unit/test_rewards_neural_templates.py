"""How reward models read samples: pairs, chat templates, texts of one's own, and what is cut when it is too long."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from reward_models import WORDS, samples, save_bert, save_llama, save_tokenizer, section, values

from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.neural import NeuralReward

pytestmark = pytest.mark.unit

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"
)


def words(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def with_messages(table: pa.Table, conversations: list[object]) -> pa.Table:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return table.append_column("messages", pa.array(conversations, pa.list_(message)))


def test_a_pair_has_separators_and_token_types(tmp_path: Path) -> None:
    model, _ = save_bert(tmp_path)
    table = samples(9)
    expected, without_types = [], []
    for row in table.to_pylist():
        prompt, response = words(row["prompt"]), words(row["response"])
        ids = torch.tensor([[3, *prompt, 4, *response, 4]])
        types = torch.tensor([[0] * (len(prompt) + 2) + [1] * (len(response) + 1)])
        with torch.no_grad():
            expected.append(float(model(ids, token_type_ids=types).logits[0, 1]))
            without_types.append(float(model(ids).logits[0, 1]))
    scored = values(NeuralReward(section(tmp_path, template="pair", label_index=1)), table)
    assert scored == pytest.approx(expected, abs=1e-5)
    assert scored != pytest.approx(without_types, abs=1e-3)


def test_a_pair_reads_the_messages_where_a_template_made_the_prompt(tmp_path: Path) -> None:
    save_bert(tmp_path)
    reward = NeuralReward(section(tmp_path, template="pair"))
    rows = [{**row, "prompt": f"w50 {row['prompt']} w51"} for row in samples(2).to_pylist()]
    said: list[object] = [[{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}], None]
    wrapped = with_messages(pa.Table.from_pylist(rows), said)
    prompts = [words("w1 w2 w3"), words(rows[1]["prompt"])]
    read = [entry.ids.tolist() for entry in reward._reader.read(wrapped)]
    expected = [[3, *p, 4, *words(row["response"]), 4] for p, row in zip(prompts, rows, strict=True)]
    assert read == expected
    own = NeuralReward(section(tmp_path, template="w9 {prompt} w9 {response}"))
    read = [entry.ids.tolist() for entry in own._reader.read(wrapped)]
    nine = words("w9")
    assert read == [[3, *nine, *p, *nine, *words(row["response"]), 4] for p, row in zip(prompts, rows, strict=True)]


@pytest.mark.parametrize(("prompt_words", "response_words"), [(30, 5), (30, 29), (2, 60)])
def test_a_long_pair_loses_the_start_of_its_prompt_first(
    tmp_path: Path, prompt_words: int, response_words: int
) -> None:
    save_bert(tmp_path)
    reward = NeuralReward(section(tmp_path, template="pair", max_tokens=20))
    prompt = " ".join(f"w{i}" for i in range(prompt_words))
    response = " ".join(f"w{i % 59}" for i in range(response_words))
    row = {**samples(1).to_pylist()[0], "prompt": prompt, "response": response}
    (read,) = reward._reader.read(pa.Table.from_pylist([row]))
    assert len(read.ids) <= 20
    (first, separator, last) = (read.ids.tolist().index(token) for token in (3, 4, 4))
    assert (first, read.ids[-1]) == (0, 4)
    kept_prompt = read.ids[1:separator].tolist()
    kept_response = read.ids[separator + 1 : -1].tolist()
    assert kept_response == words(response)[-len(kept_response) :]
    assert kept_prompt == words(prompt)[-len(kept_prompt) :]
    if response_words < 17:
        assert len(kept_response) == response_words
        assert len(read.ids) == 20
    assert last == separator


def test_chat_reads_the_messages_and_the_answer(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", chat=CHAT, eos_token="</s>", bos_token="<s>")
    conversation = [{"role": "system", "content": "w7"}, {"role": "user", "content": "w8 w9"}]
    table = with_messages(samples(2), [conversation, None])
    first, second = table.to_pylist()
    expected = []
    for parts in (["w7", "w8 w9", first["response"]], [second["prompt"], second["response"]]):
        ids = [
            token for part in parts for token in [3, *words(part), 4]
        ]  # the template writes no <s>, and none is added
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits))
    assert values(NeuralReward(section(tmp_path, template="chat")), table) == pytest.approx(expected, abs=1e-5)


def test_messages_that_the_chat_template_refuses_are_their_samples_failure(tmp_path: Path) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", chat=CHAT, eos_token="</s>")
    table = with_messages(samples(3), [None, [{"role": "tool", "content": "w1"}], None])
    first, refused, last = NeuralReward(section(tmp_path, template="chat")).score(table)
    assert refused.value is None
    assert refused.failure.kind == "raised"
    assert "no tools here" in refused.failure.message
    alone = NeuralReward(section(tmp_path, template="chat")).score(table.take([0, 2]))
    assert [first.value, last.value] == pytest.approx([outcome.value for outcome in alone], abs=1e-5)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    save_tokenizer(tmp_path, "<s> $A", eos_token="</s>", bos_token="<s>")
    table = samples(4)
    expected = []
    for row in table.to_pylist():
        ids = [1, 5, *words(row["prompt"]), 6, *words(row["response"]), 7]
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits))
    reward = NeuralReward(section(tmp_path, template="w0 {prompt} w1 {response} w2"))
    assert values(reward, table) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "has no chat template"),
        ("Q: {prompt}", "never shows the {response}"),
        ("{prompt} {answer}", "has the field {answer}"),
        ("{prompt} {response", "no format string"),
    ],
)
def test_templates_that_cannot_be_followed_are_config_errors(tmp_path: Path, template: str, message: str) -> None:
    save_llama(tmp_path)
    save_tokenizer(tmp_path, "$A", eos_token="</s>")
    with pytest.raises(ConfigError, match=message):
        NeuralReward(section(tmp_path, template=template))
