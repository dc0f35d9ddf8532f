"""What an evaluation needs before an actor starts: models found, data read, everything checked."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from transformers import AutoConfig

from rlhf_ray.config import PPOConfig
from rlhf_ray.config.common import ModelSection
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.evaluation import EvalConfig, QuestionsSection
from rlhf_ray.config.ppo import PPOSection
from rlhf_ray.config.rewards import RewardComponent
from rlhf_ray.data.demonstrations import load_demonstrations
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.errors import ConfigError
from rlhf_ray.evaluation.harness import check_tasks
from rlhf_ray.hub import check_model, load_tokenizer
from rlhf_ray.rewards.check import check_reward_columns, check_rewards
from rlhf_ray.schema import sample_schema
from rlhf_ray.trainers.answers import TOXICITY
from rlhf_ray.trainers.ppo_actors import prompt_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICY = "policy"  # the folder of a run that holds what it trained
NO_PROMPTS = PromptDataSection(path="")  # where nothing but texts or benchmarks is asked for, and nobody reads it


def saved_model(name: str) -> str:
    """`name`, or the policy in it where it is the folder of a run."""
    folder = Path(name).expanduser()
    inside = (folder / "config.yaml").is_file() and (folder / POLICY / "config.json").is_file()
    return str(folder / POLICY) if inside else name


class EvaluationInputs:
    """The evaluation's configuration with runs replaced by their policies, and what follows from it for each model."""

    def __init__(self, config: EvalConfig) -> None:
        changes: dict[str, object] = {"model": self._section(config, config.model.name)}
        changes |= {key: saved_model(name) for key in ("against", "reference") if (name := getattr(config, key))}
        self.config = config.model_copy(update=changes)
        sections: dict[str, RewardComponent] = {name: s for name, s in config.rewards.items() if s.enabled}
        if config.toxicity is not None:
            sections[TOXICITY] = config.toxicity
        self.scorers = sections

    @staticmethod
    def _section(config: EvalConfig, name: str) -> ModelSection:
        return config.model.model_copy(update={"name": saved_model(name), "lora": None})

    def model(self, name: str) -> ModelSection:
        """The options of `model`; another model has a tokenizer and revisions of its own."""
        section = self.config.model
        other = {"name": name, "revision": None, "tokenizer": None}
        return section if name == section.name else section.model_copy(update=other)

    def check(self) -> None:
        """Everything that can be found wrong by now. Raises ConfigError or DataError."""
        config = self.config
        for name in [*config.models, *([config.reference] if config.reference else [])]:
            check_model(name, self.model(name).revision)
        if config.rewards:
            check_rewards(config.rewards, config.reducer)
        if config.toxicity is not None:
            check_model(config.toxicity.model, config.toxicity.revision)
        if config.data is not None:
            check_reward_columns(self.scorers, self.prompts(config.model)[1])
        if config.perplexity is not None:
            self.texts(config.model)
        if config.reference is not None:
            self._check_reference(config.reference)
        if config.benchmarks is not None:
            check_tasks(config.benchmarks)

    def _check_reference(self, reference: str) -> None:
        """It reads the models' tokens."""
        vocabulary = self._tokenizer(self.model(reference)).get_vocab()
        for name in self.config.models:
            if self._tokenizer(self.model(name)).get_vocab() != vocabulary:
                raise ConfigError(
                    f"reference: {reference} and {name} have different tokenizers, so that there is no KL between "
                    "them. The reference is the model that the policy was trained from."
                )

    # -- data --------------------------------------------------------------------------------------------------------

    def prompts(self, model: ModelSection) -> tuple[pa.Table, list[str]]:
        """`schema.PROMPTS` for the model's tokenizer, and the columns that scorers will find beside the responses."""
        assert self.config.data is not None
        table = load_prompts(self.config.data, self._tokenizer(model), prompt_limit(self.sampling_config(model))).table
        return table, sample_schema(table.schema).names

    def texts(self, model: ModelSection) -> pa.Table:
        """The texts for perplexity, as prompts and responses; of a text alone only the first token is the prompt."""
        assert self.config.perplexity is not None
        table = load_demonstrations(self.config.perplexity, self._tokenizer(model)).table
        tokens = [row.values.to_numpy() for row in table["tokens"]]
        self._check_context(model, max(map(len, tokens), default=0))
        starts = np.maximum(table["prompt_length"].to_numpy(), 1).tolist()
        columns = {
            "prompt_id": pa.array(range(len(tokens)), pa.int64()),
            "sample_index": pa.array([0] * len(tokens), pa.int32()),
            "prompt_tokens": pa.array([row[:start] for row, start in zip(tokens, starts, strict=True)]),
            "response_tokens": pa.array([row[start:] for row, start in zip(tokens, starts, strict=True)]),
        }
        return pa.table(columns)

    @staticmethod
    def _check_context(model: ModelSection, longest: int) -> None:
        """A model answers beyond its context, too, but not sensibly."""
        config = AutoConfig.from_pretrained(
            model.name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        context = getattr(config, "max_position_embeddings", None)
        if context is not None and longest > context:
            raise ConfigError(
                f"perplexity.max_tokens: a text of {longest} tokens, but {model.name} reads {context}; set "
                f"perplexity.max_tokens={context} and perplexity.too_long to drop or truncate"
            )

    @staticmethod
    def _tokenizer(model: ModelSection) -> "PreTrainedTokenizerBase":
        return load_tokenizer(model.tokenizer or model.name, model.revision, model.trust_remote_code)

    # -- what the actors read ----------------------------------------------------------------------------------------

    def sampling_config(self, model: ModelSection, data: PromptDataSection | None = None) -> PPOConfig:
        """The configuration of actors that sample from `model`: that of a run which would train it."""
        config = self.config
        return PPOConfig(
            run=config.run,
            model=model,
            data=data or config.data or NO_PROMPTS,
            rewards=config.rewards,
            reducer=config.reducer,
            generation=config.generation,
            ppo=PPOSection(iterations=1),
            resources=config.resources,
            tracking=config.tracking,
        )

    def questions_config(self, model: ModelSection, questions: QuestionsSection) -> PPOConfig:
        """The same for questions, whose conversations are rendered in their own way."""
        template, system = questions.chat_template, questions.system_prompt
        return self.sampling_config(
            model, PromptDataSection(path=questions.path, chat_template=template, system_prompt=system)
        )
