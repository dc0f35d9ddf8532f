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
    memory_mib: int = Field(
        1024, ge=1, description="Tokenised rows beyond this go to a file that the learner maps instead of holding them."
    )
    spill_folder: str | None = Field(
        None, description="Folder for that file, on several nodes one they share; default: the temporary folder."
    )
    eval_path: str | None = Field(None, description="Held-out rows for evaluation; same shape as path.")
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="Hold out so much of path instead, by run.seed; rows of a prompt stay together."
    )

    @model_validator(mode="after")
    def _a_stream_ends(self) -> Self:
        if self.streaming and self.max_samples is None:
            raise ValueError("streaming reads as many rows as max_samples says: set max_samples, too")
        return self

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        if self.eval_path and self.eval_fraction:
            raise ValueError("eval_path and eval_fraction both name held-out rows: set one of them")
        return self


class PromptDataSection(DataSection):
    prompt_column: str = Field(
        "prompt", description="Column with the prompt: text, chat messages or a whole conversation; see rlhf_ray.data."
    )
    max_prompt_tokens: int | None = Field(None, ge=1, description="Limit; default: context minus max_new_tokens.")
    eval_split: str | None = Field(None, description="Split of eval_path, for a hub dataset; default: `split`.")


class DemonstrationDataSection(DataSection):
    prompt_column: str = Field("prompt", description="Column with the prompt.")
    response_column: str = Field("completion", description="Column with the response.")
    messages_column: str = Field("messages", description="Column with whole conversations, used where it exists.")
    text_column: str = Field(
        "text", description="Column with text to learn as a whole, used where there are neither of the others."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens.")


class PreferenceDataSection(DataSection):
    """Pairs, ratings (two responses and which is better) or rankings (several responses); see rlhf_ray.data.pairs."""

    prompt_column: str = Field("prompt", description="Column with the prompt.")
    chosen_column: str = Field("chosen", description="Pairs: column with the preferred response.")
    rejected_column: str = Field("rejected", description="Pairs: column with the other response.")
    first_column: str = Field("response_a", description="Ratings: column with the one response.")
    second_column: str = Field("response_b", description="Ratings: column with the other response.")
    preference_column: str = Field("preference", description="Ratings: column that says a, b or tie.")
    responses_column: str = Field("responses", description="Rankings: column with a list of responses.")
    ranking_column: str = Field("ranking", description="Rankings: column with a list of ranks; the best one is lowest.")
    scores_column: str = Field("scores", description="Rankings without ranks: list of scores; the best one is highest.")
    ties: Literal["drop", "keep"] = Field(
        "drop", description="Equally good responses: left out, or kept as a pair in each order."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens.")
