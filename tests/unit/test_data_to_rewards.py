"""The messages of a prompt on their way: dataset, prompts, samples, reward function, Parquet."""

import pyarrow as pa
import pyarrow.parquet
import pytest
from data_rows import assistant, plain_tokenizer, system, user, write_jsonl

from rlhf_ray import schema
from rlhf_ray.actors.sample_table import Sample, sample_table
from rlhf_ray.actors.scorer import FunctionScorer
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.rewards import FunctionRewardSection
from rlhf_ray.data.prompts import load_prompts

pytestmark = pytest.mark.unit

SOURCE = """
def turns(prompt, response, messages, level):
    assert prompt.startswith("<s>[INST] be brief"), prompt
    assert messages[0] == {"role": "system", "content": "be brief"}, messages
    return len(messages) + level / 10
"""


@pytest.fixture
def samples(tmp_path) -> pa.Table:
    """A response to the second prompt, and one to the first."""
    rows = [
        {"conversations": [user("a"), assistant("b"), user("c"), assistant("d")], "level": 1},
        {"conversations": [user("e")], "level": 2},
    ]
    section = PromptDataSection(
        path=write_jsonl(tmp_path / "rows.jsonl", rows),
        prompt_column="conversations",
        chat_template="mistral",
        system_prompt="be brief",
    )
    prompts = load_prompts(section, plain_tokenizer(), 99).table
    return sample_table(prompts, [Sample(row, 0, [5], [-0.5], "f", "stop") for row in (1, 0)], policy_version=1)


def test_a_reward_function_gets_the_messages_as_they_were_rendered(samples, tmp_path, monkeypatch):
    (tmp_path / "rewards_of_messages.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    section = FunctionRewardSection(function="rewards_of_messages:turns")
    answer, failures = FunctionScorer("turns", section, samples.schema.names).score(samples)
    assert not failures, failures[0].traceback
    assert answer[schema.REWARD_PREFIX + "turns"].to_pylist() == [2.2, 4.1]


def test_the_messages_are_in_the_parquet_of_a_run(samples, tmp_path):
    pyarrow.parquet.write_table(samples, tmp_path / "rollouts.parquet")
    read = pyarrow.parquet.read_table(tmp_path / "rollouts.parquet")
    assert read["messages"].type == schema.MESSAGES
    assert read["messages"].to_pylist()[0] == [system("be brief"), user("e")]
