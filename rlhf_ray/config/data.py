"""Where data comes from and how it is turned into tokens."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section


class DataSection(Section):
    """Shared by prompts, demonstrations and preferences."""

    path: str = Field(description="JSONL, CSV, Parquet or Arrow file, a folder of them, or a dataset's hub name.")
    split: str = Field("train", description="Split, for a hub dataset.")
    subset: str | None = Field(None, description="Subset (configuration name), for a hub dataset.")
    max_samples: int | None = Field(None, ge=1, description="Use only the first so many rows (after shuffling).")
    shuffle: bool = Field(True, description="Visit rows in an order drawn from (run.seed, epoch).")
    system_prompt: str | None = Field(None, description="System message put before every conversation.")
    chat_template: Literal["auto", "none", "llama2", "mistral", "chatml", "alpaca"] = Field(
        "auto",
        description="auto: the tokenizer's chat template where it has one; none: text as it is; or one by name.",
    )
    preprocess: str | None = Field(
        None, description="Import path of a function: row (dict) -> row, or None to drop it; applied before all else."
    )
    streaming: bool = Field(
        False, description="Take the first max_samples rows and read little more; for datasets too large to load."
    )
    too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="What to do with rows that exceed the token limit; drop and truncate report counts."
    )

    @model_validator(mode="after")
    def _a_stream_ends(self) -> Self:
        if self.streaming and self.max_samples is None:
            raise ValueError("streaming reads as many rows as max_samples says: set max_samples, too")
        return self


class PromptDataSection(DataSection):
    prompt_column: str = Field(
        "prompt", description="Column with the prompt: text, chat messages or a whole conversation; see rlhf_ray.data."
    )
    max_prompt_tokens: int | None = Field(None, ge=1, description="Limit; default: context minus max_new_tokens.")
    eval_path: str | None = Field(None, description="Held-out prompts for evaluation; same shape as path.")
    eval_split: str | None = Field(None, description="Split of eval_path, for a hub dataset; default: `split`.")


class DemonstrationDataSection(DataSection):
    prompt_column: str = Field("prompt", description="Column with the prompt.")
    response_column: str = Field("completion", description="Column with the response.")
    messages_column: str = Field("messages", description="Column with whole conversations, used where it exists.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens.")
    eval_path: str | None = Field(None, description="Held-out demonstrations for the evaluation loss.")


class PreferenceDataSection(DataSection):
    prompt_column: str = Field("prompt", description="Column with the prompt.")
    chosen_column: str = Field("chosen", description="Column with the preferred response.")
    rejected_column: str = Field("rejected", description="Column with the other response.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens.")
    eval_path: str | None = Field(None, description="Held-out pairs for the evaluation accuracy.")
