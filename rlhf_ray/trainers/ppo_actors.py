"""The actors of a PPO run: what they need, in which order they start, how they are joined up.

<run>/generator/0..   vLLM engines            <run>/reference/0..   the frozen reference
<run>/reward/<name>/0..  scorers              <run>/learner/0..     FSDP ranks            <run>/writer/0   Parquet
"""

from collections.abc import Callable

import numpy as np
import ray
from ray.actor import ActorHandle
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ray.actors.placement import ActorNeed
from rlhf_ray.actors.pool import ActorPool, Lost, events
from rlhf_ray.actors.reference import Reference
from rlhf_ray.actors.writer import RolloutWriter
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.algorithm import critic_kind
from rlhf_ray.config.arithmetic import ppo_arithmetic
from rlhf_ray.config.common import ModelSection
from rlhf_ray.errors import ConfigError, ObjectLost
from rlhf_ray.hub import check_model, explain_hub_error, load_tokenizer
from rlhf_ray.learner.rank import critic_source
from rlhf_ray.rewards.check import check_rewards
from rlhf_ray.schema import REWARD_PREFIX
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.rollouts import Rollouts
from rlhf_ray.trainers.session import Session, learner_needs
from rlhf_ray.weights.publish import WeightSync, choose_transport


def check_before_start(config: PPOConfig) -> PreTrainedTokenizerBase:
    """Everything that can be found wrong without an actor; returns the policy's tokenizer."""
    ppo_arithmetic(config)
    check_model(config.model.name, config.model.revision)
    if config.reference.model:
        check_model(config.reference.model)
    if config.critic.init_from:
        check_model(config.critic.init_from)
    check_rewards(config.rewards, config.reducer)
    _check_vocabularies(config)
    _check_adapter_sync(config)
    model = config.model
    return load_tokenizer(model.tokenizer or model.name, model.revision, model.trust_remote_code)


def prompt_limit(config: PPOConfig) -> int:
    """The longest prompt, in tokens, that leaves room for the longest response.

    Raises:
        ConfigError: there is no such room, or the configuration asks for more than the model has.
    """
    model, response = config.model.name, config.generation.max_new_tokens
    stated = getattr(_model_config(config.model, model), "max_position_embeddings", None)
    context = config.generation.max_context_tokens or stated
    if context is None:
        raise ConfigError(f"{model} does not state its context: set generation.max_context_tokens")
    if stated is not None and context > stated:
        raise ConfigError(f"generation.max_context_tokens: {context}, but {model} takes {stated} tokens at most")
    try:
        config.generation.require_room(config.data.max_prompt_tokens, context)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config.data.max_prompt_tokens or context - response


def _check_adapter_sync(config: PPOConfig) -> None:
    """`sync.lora: adapter` needs an adapter, and a transport that takes one."""
    if config.sync.lora != "adapter":
        return
    if config.model.lora is None:
        raise ConfigError("sync.lora: adapter, but this run trains all weights; set model.lora, or sync.lora=merged")
    if config.model.quantization is not None:
        raise ConfigError(
            f"sync.lora: adapter, but the engine's weights are not those that the learner rounded to "
            f"{config.model.quantization}; set sync.lora=merged"
        )
    if config.sync.transport not in ("auto", "object_store"):
        raise ConfigError(
            f"sync.transport: {config.sync.transport} carries whole weights, but sync.lora is adapter; set "
            "sync.transport=auto, or sync.lora=merged"
        )


def _check_vocabularies(config: PPOConfig) -> None:
    """The critic and the reference read the policy's tokens."""
    policy = config.model.name
    others = {"reference.model": config.reference.model}
    if critic_kind(config) == "separate":
        others["critic.init_from"] = critic_source(config)
    size = _model_config(config.model, policy).vocab_size
    for key, name in others.items():
        if name and (other := _model_config(config.model, name).vocab_size) != size:
            raise ConfigError(
                f"{key}: {name} has a vocabulary of {other}, the policy {policy} one of {size}; they must share a "
                f"tokenizer. Set {key}={policy} to start from the policy."
            )


def _model_config(section: ModelSection, name: str) -> PretrainedConfig:
    """The configuration file of the policy, or of another model that is loaded with the policy's options."""
    revision = section.revision if name == section.name else None
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError) as error:
        raise explain_hub_error(name, error) from error


class PPOActors(RolloutActors):
    """All actors of a run, started together and ready when the constructor returns."""

    session: Session

    def __init__(
        self, session: Session, config: PPOConfig, columns: list[str], total_steps: int, progress: Callable[..., None]
    ) -> None:
        rewards = {name: section for name, section in config.rewards.items() if section.enabled}
        super().__init__(session, config, columns, rewards)
        placement = session.reserve(self._needs())
        transport = choose_transport(config.sync, cuda=placement.gpus > 0, shared_gpus=placement.colocated)
        self.sync_section = config.sync.model_copy(update={"transport": transport})
        self.writer = self._writer_pool()
        self.learner = session.start_learner()
        self._total_steps, self.engine_dtype = total_steps, self._engine_dtype()
        joining = self.learner.begin_join(total_steps)
        self._start_rollout_actors(self.engine_dtype, self.sync_section, published=True)
        self.reference = self._reference_pool(self.engine_dtype) if config.kl.coef > 0 else None
        self._wait_until_ready(progress)
        self._finish_learner(joining)

    def _needs(self) -> list[ActorNeed]:
        needs = [ActorNeed("writer", 0), *learner_needs(self.config), *self._rollout_needs()]
        if self.config.kl.coef > 0:
            needs += [ActorNeed("reference", index, gpus=1) for index in range(self.config.reference.replicas)]
        return needs

    # -- the learner -------------------------------------------------------------------------------------------------

    def restart_learner(self) -> None:
        """New ranks in place of all old ones, as they were at the start of the run; nothing is published yet."""
        self.session.end_learner()
        self._replace_dead()
        self.learner = self.session.start_learner()
        self._finish_learner(self.learner.begin_join(self._total_steps))

    def _replace_dead(self) -> None:
        """What died along with the learner, as on its node, loads beside it, and not when it is next asked."""
        for pool in [*self._rollout_pools, self.writer]:
            pool.replicas.replace_dead()

    def _finish_learner(self, joining: list[ray.ObjectRef]) -> None:
        self.learner.finish_join(joining)
        self.learner.call("preparing PPO", "start_ppo", self.engine_dtype)
        self.sync = self._weight_sync(self.engine_dtype)

    # -- one kind each -----------------------------------------------------------------------------------------------

    def _reference_pool(self, engine_dtype: str) -> ActorPool:
        config = self.config
        section = config.reference
        name = section.model or config.model.name
        model = config.model.model_copy(update={"name": name, "lora": None})
        dtype = engine_dtype if section.dtype == "auto" or config.run.exact else section.dtype
        arguments = (model, dtype, section.tokens_per_batch, config.generation.temperature)

        def start(index: int) -> ActorHandle:
            return self.session.start("reference", index, Reference, *arguments)

        supervision = self.session.supervision
        return ActorPool("reference", start, section.replicas, "logprobs", returns=2, supervision=supervision)

    def _writer_pool(self) -> ActorPool:
        folder = str(self.session.folder.rollouts)

        def start(index: int) -> ActorHandle:
            return self.session.start("writer", index, RolloutWriter, folder)

        return ActorPool("writer", start, 1, "write", supervision=self.session.supervision)

    def _weight_sync(self, engine_dtype: str) -> WeightSync:
        deadline_s = self.config.resources.call_timeout_s
        sync = WeightSync(self.learner.actors, self.generators.replicas, self.sync_section, engine_dtype, deadline_s)
        if self.sync_section.transport != "object_store":
            sync.connect(self.learner.address, self.config.generation.tensor_parallel_size)
        return sync

    # -- start-up ----------------------------------------------------------------------------------------------------

    def _engine_dtype(self) -> str:
        """The engines compute as the learner does, unless told otherwise."""
        if self.config.run.exact:
            return "float32"
        dtype = self.config.generation.dtype
        return self.learner.call("starting", "compute_dtype") if dtype == "auto" else dtype

    # -- rollouts on disk --------------------------------------------------------------------------------------------

    def write_rollouts(self, stem: str, rollouts: Rollouts, total: np.ndarray) -> None:
        """Have an iteration written to Parquet meanwhile; waits only if the one before is not done."""
        self.finish_writing()
        self.session.disk.check(f"the rollouts of {stem}")
        rewards = {REWARD_PREFIX + name: values for name, values in rollouts.scores().items()} | {"reward": total}
        ends = np.cumsum([len(batch.meta["prompt_id"]) for batch in rollouts.batches])[:-1]
        split = {name: np.split(values, ends) for name, values in rewards.items()}
        columns = [{name: parts[number] for name, parts in split.items()} for number in range(len(rollouts.batches))]
        samples = [batch.samples for batch in rollouts.batches]
        self.writer.submit(stem, stem, samples, rollouts.references, columns)

    def finish_writing(self) -> None:
        """Wait for the rollouts that are being written. Raises ObjectLost where some of them are gone with a node."""
        for _, event in events([self.writer]):
            if isinstance(event, Lost):
                raise ObjectLost(f"the samples of {event.key} were lost before they were written")
