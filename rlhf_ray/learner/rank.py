"""One learner rank: builds the networks of its stage, owns their training, saving, loading and publishing.

A rank is the same object for every stage; `sft`, `pairwise`, `dpo` and `ppo` are the objectives that a stage attaches.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config import DPOConfig, PPOConfig, RewardModelConfig, SFTConfig
from rlhf_ray.config.algorithm import critic_kind
from rlhf_ray.config.common import ModelSection
from rlhf_ray.config.ppo import CriticSection
from rlhf_ray.data.templates import NAMED
from rlhf_ray.errors import ConfigError
from rlhf_ray.files import FileDigest
from rlhf_ray.hub import load_tokenizer
from rlhf_ray.learner.dpo import DPOObjective, load_reference
from rlhf_ray.learner.export import save_model
from rlhf_ray.learner.group import LearnerGroup
from rlhf_ray.learner.guards import Measure, UpdateGuard
from rlhf_ray.learner.pairwise import PairwiseObjective
from rlhf_ray.learner.ppo import PPOObjective
from rlhf_ray.learner.sft import SFTObjective
from rlhf_ray.learner.shards import Shard, load_rank
from rlhf_ray.learner.snapshot import HostCopy
from rlhf_ray.learner.trainable import Trainable
from rlhf_ray.models.heads import drop_inputs, last_layer, small_start
from rlhf_ray.models.load import is_scalar, load_causal_lm, load_scalar_lm, resolve_dtype
from rlhf_ray.models.lora import adapter_tensors, add_lora, merged_tensors
from rlhf_ray.models.networks import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.reward_stats import RewardStats
from rlhf_ray.weights.audit import check_gap

Config = SFTConfig | RewardModelConfig | DPOConfig | PPOConfig


class LearnerRank:
    """Rank `group.rank` of the learner. `total_steps` counts the optimiser steps of the whole run, for the schedule.

    `quarantine` is the folder for batches of bad updates; None: they are not kept.
    """

    def __init__(self, config: Config, group: LearnerGroup, total_steps: int, quarantine: Path | None = None) -> None:
        torch.manual_seed(config.run.seed)  # new heads and adapters start equal on every rank
        self.config, self.group, self.total_steps, self.quarantine = config, group, total_steps, quarantine
        self.dtype = torch.float32 if config.run.exact else resolve_dtype(config.learner.dtype, group.device)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            config.model.tokenizer or config.model.name, config.model.revision, config.model.trust_remote_code
        )
        if config.data.chat_template in NAMED:  # an export is asked in the form that it was trained on
            self.tokenizer.chat_template = NAMED[config.data.chat_template]
        self.trainables: dict[str, Trainable] = {}
        self.model = self._build()
        self._host_copy = HostCopy()

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self) -> PreTrainedModel:
        """The stage's main model, made trainable; a PPO run gets its critic too."""
        config = self.config
        if isinstance(config, RewardModelConfig):
            model = load_scalar_lm(
                config.model.name,
                quantization=config.model.quantization,
                head_hidden=config.reward.head_hidden,
                **_load_options(config.model),
            )
            if not _is_scalar(config.model.name, config.model):
                small_start(model.score)
            self._prepare(model, config.model)
            if config.reward.head_dropout:
                drop_inputs(model.score, config.reward.head_dropout)
            self.trainables["reward"] = self._trainable("reward", ScalarNetwork(model), config.learner.learning_rate)
            return model
        model = load_causal_lm(config.model)
        self._prepare(model, config.model)
        critic = critic_kind(config) if isinstance(config, PPOConfig) else "none"
        network = PolicyNetwork(model, value_head=critic == "value_head")
        self.trainables["policy"] = self._trainable("policy", network, config.learner.learning_rate)
        if isinstance(config, PPOConfig) and critic == "separate":
            self.trainables["critic"] = self._critic(config, model.config)
        return model

    def _prepare(self, model: PreTrainedModel, section: ModelSection) -> None:
        """Dropout off (log-probs must repeat), adapters in, activations recomputed where asked."""
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            # Some families keep the probability in a plain attribute: attention_dropout, dropout, activation_dropout.
            for name in [n for n, value in vars(module).items() if "dropout" in n and isinstance(value, float)]:
                setattr(module, name, 0.0)
        if section.lora is not None:
            no_dropout = {"dropout": 0.0} if isinstance(self.config, PPOConfig) else {}
            add_lora(model, section.lora.model_copy(update=no_dropout))
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()

    def _trainable(self, name: str, network: nn.Module, learning_rate: float) -> Trainable:
        config = self.config
        measure: Measure = "grad_norm" if isinstance(config, PPOConfig) and name == "policy" else "loss"
        return Trainable(
            network,
            config.learner,
            self.group,
            self.dtype,
            learning_rate,
            self.total_steps,
            UpdateGuard(config.guards, name, self.group, measure, self.quarantine),
            config.model.torch_compile,
        )

    def _critic(self, config: PPOConfig, policy: PretrainedConfig) -> Trainable:
        source = critic_source(config)
        options = _load_options(config.model)
        if source != config.model.name:
            options["revision"] = None  # the policy's revision says nothing about another model
        model = load_scalar_lm(source, **options)
        if model.config.vocab_size != policy.vocab_size:
            raise ConfigError(
                f"critic.init_from: {source} has a vocabulary of {model.config.vocab_size}, the policy "
                f"{policy.vocab_size}; they must share a tokenizer. Set critic.init_from="
                f"{config.model.name} to start from the policy."
            )
        if _is_scalar(source, config.model):
            _match_reward_scale(model, source)
        else:
            nn.init.zeros_(last_layer(model.score).weight)
        self._prepare(model, config.model.model_copy(update={"lora": None}))
        rate = config.critic.learning_rate or config.learner.learning_rate
        return self._trainable("critic", ScalarNetwork(model), rate)

    # -- objectives ----------------------------------------------------------------------------------------------------

    def sft(self, table: pa.Table, eval_table: pa.Table | None) -> SFTObjective:
        assert isinstance(self.config, SFTConfig)
        return SFTObjective(self.trainables["policy"], self.config, table, eval_table, self.group)

    def pairwise(self, table: pa.Table, eval_table: pa.Table | None) -> PairwiseObjective:
        assert isinstance(self.config, RewardModelConfig)
        return PairwiseObjective(self.trainables["reward"], self.config, table, eval_table, self.group)

    def dpo(self, table: pa.Table, eval_table: pa.Table | None) -> DPOObjective:
        assert isinstance(self.config, DPOConfig)
        reference = load_reference(self.config, self.model.config.vocab_size, self.group, self.dtype)
        return DPOObjective(self.trainables["policy"], reference, self.config, table, eval_table, self.group)

    def ppo(self, engine_dtype: str) -> PPOObjective:
        """The PPO objective, auditing against an engine that computes in `engine_dtype`."""
        assert isinstance(self.config, PPOConfig)
        check = check_gap(self.config.sync, engine_dtype, str(self.dtype).removeprefix("torch."))
        return PPOObjective(self.trainables["policy"], self.trainables.get("critic"), self.config, self.group, check)

    # -- weights -------------------------------------------------------------------------------------------------------

    def published_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, full tensor) of the policy, or its adapter, as generators load it; every rank iterates in
        step."""
        self.trainables["policy"].reshard()
        if isinstance(self.config, PPOConfig) and self.config.sync.lora == "adapter":
            return iter(adapter_tensors(self.model).items())
        return merged_tensors(self.model)

    def snapshot(self) -> None:
        """Copy this rank's state, for `save_snapshot`."""
        self._snapshot = self._host_copy.take(Shard.of(self.trainables, self.group))

    def save_snapshot(self, folder: Path) -> dict[str, FileDigest]:
        """The last snapshot as this rank's part of a checkpoint; on any thread, while training goes on."""
        return self._snapshot.save(folder)

    def save(self, folder: Path) -> dict[str, FileDigest]:
        """This rank's part of a checkpoint, of the state as it is now."""
        return Shard.of(self.trainables, self.group).save(folder)

    def load(self, folder: Path) -> None:
        load_rank(folder, self.trainables, self.group)

    def export(self, folder: Path, stats: RewardStats | None = None) -> None:
        """The stage's model as a Hugging Face folder; every rank calls, rank 0 writes."""
        main = next(iter(self.trainables.values()))
        save_model(folder, main, self.model, self.tokenizer, self.config.model.lora, stats)


def critic_source(config: PPOConfig) -> str:
    """What a separate critic starts from: as configured, else the first neural reward trained here, else the policy."""
    section: CriticSection = config.critic
    if section.init_from:
        return section.init_from
    rewards = [
        r.model for r in config.rewards.values() if r.type == "neural" and r.enabled and RewardStats.load(r.model)
    ]
    return rewards[0] if rewards else config.model.name


def _load_options(section: ModelSection) -> dict[str, Any]:
    return {
        "revision": section.revision,
        "trust_remote_code": section.trust_remote_code,
        "attn_implementation": section.attn_implementation,
    }


def _is_scalar(name: str, section: ModelSection) -> bool:
    """Whether `name` was saved with a trained score head."""
    return is_scalar(AutoConfig.from_pretrained(name, trust_remote_code=section.trust_remote_code))


@torch.no_grad()
def _match_reward_scale(model: PreTrainedModel, source: str) -> None:
    """Rewards reach the learner normalised, so the critic's first guess is scaled alike."""
    stats = RewardStats.load(source)
    if stats is not None and stats.std > 0:
        last_layer(model.score).weight.div_(stats.std)
