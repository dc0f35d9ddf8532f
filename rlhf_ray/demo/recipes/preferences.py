"""The files of the tiny preference recipes: pairs, and a policy that has read both sides of such pairs.

So it replies as the rejected side does about as often as the chosen one: what the stages are to change.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from rlhf_ray.config.data import DemonstrationDataSection
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.templates import NAMED
from rlhf_ray.demo.recipes import models
from rlhf_ray.demo.recipes.dialogues import Dialogue, dialogues
from rlhf_ray.demo.recipes.files import SEED, Row, unlike, write_rows
from rlhf_ray.demo.recipes.tasks import tasks
from rlhf_ray.demo.tokenizer import CHAT_TEMPLATE, train_tokenizer

PAIRS = 2000
REFUSALS = 64  # prompts of the check
READ = 1000  # dialogues whose both replies the policy has read


def write_pipeline(folder: Path) -> None:
    """Transcripts in pairs, and a Llama that continues either side of them."""
    _write_transcripts(folder)
    read = list(islice(dialogues(SEED + 1), READ))
    rows = [{"messages": f"{one.transcript} {reply}"} for one in read for reply in (one.chosen, one.rejected)]
    tokenizer = train_tokenizer(row["messages"] for row in rows)
    tokenizer.chat_template = None  # a base model has none
    _write_policy(folder, models.llama_shape(tokenizer), tokenizer, rows, "none")


def write_mistral(folder: Path) -> None:
    """Transcripts in pairs, requests that are to be refused or not, and a Mistral that answers either way."""
    _write_transcripts(folder)
    asked = unlike(
        ({"prompt": one.turns[-1], "harmful": one.harmful} for one in dialogues(SEED + 2)),
        key=lambda row: row["prompt"],
    )
    write_rows(folder / "refusals.jsonl", islice(asked, REFUSALS))
    read = list(islice(dialogues(SEED + 1), READ))
    tokenizer = train_tokenizer([_rendered(NAMED["mistral"], one) + one.chosen + one.rejected for one in read])
    _write_policy(folder, models.mistral_shape(tokenizer), tokenizer, _conversations(read), "mistral")


def write_preference(folder: Path) -> None:
    """Plain pairs as JSON lines, and a Llama that answers either way."""
    pairs = islice(tasks(SEED), PAIRS)
    write_rows(
        folder / "preferences.jsonl",
        ({"prompt": task.instruction, "chosen": task.answer, "rejected": task.rejected} for task in pairs),
    )
    read = [Dialogue((task.instruction,), task.answer, task.rejected, False) for task in islice(tasks(SEED + 1), READ)]
    tokenizer = train_tokenizer([_rendered(CHAT_TEMPLATE, one) + one.chosen + one.rejected for one in read])
    _write_policy(folder, models.llama_shape(tokenizer), tokenizer, _conversations(read), "auto")


def _write_transcripts(folder: Path) -> None:
    rows = (
        {key: f"{one.transcript} {reply}" for key, reply in (("chosen", one.chosen), ("rejected", one.rejected))}
        for one in islice(dialogues(SEED), PAIRS)
    )
    write_rows(folder / "hh.jsonl", rows)


def _conversations(read: Iterable[Dialogue]) -> list[Row]:
    return [
        {"messages": [*one.messages, {"role": "assistant", "content": reply}]}
        for one in read
        for reply in (one.chosen, one.rejected)
    ]


def _write_policy(
    folder: Path, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, rows: list[Row], template: str
) -> None:
    write_rows(folder / "read.jsonl", rows)
    section = DemonstrationDataSection.model_validate(
        {"path": str(folder / "read.jsonl"), "chat_template": template, "max_tokens": models.CONTEXT_TOKENS}
    )
    sequences = load_demonstrations(section, tokenizer).table["tokens"].to_pylist()
    policy = models.train_policy(shape, sequences, epochs=3, seed=SEED)
    models.save(folder / "policy", policy, tokenizer)


def _rendered(template: str, dialogue: Dialogue) -> str:
    """The prompt with the template around it, whose words the tokenizer is to know."""
    plain = train_tokenizer([])
    plain.chat_template = template
    text: str = plain.apply_chat_template(dialogue.messages, tokenize=False, add_generation_prompt=True)
    return text
