"""The actors that sample and score: generators, and one pool of scorers per reward component."""

from collections.abc import Callable

from ray.actor import ActorHandle

from rlhf_ray.actors.generator import Generator, generator_environment
from rlhf_ray.actors.placement import ActorNeed
from rlhf_ray.actors.pool import ActorPool
from rlhf_ray.actors.scorer import scorer_class
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.ppo import SyncSection
from rlhf_ray.config.rewards import FunctionRewardSection, HTTPOptions, NeuralOptions, RewardComponent
from rlhf_ray.trainers.collector import RolloutCollector
from rlhf_ray.trainers.session import ActorSession

EXACT_CHUNK_PROMPTS = 4  # exact mode scores samples in chunks of so many successive prompts
#: A model or an endpoint gets a batch of samples per call; one that is silent for so many of its timeouts is lost.
PATIENCE = 3


class RolloutActors:
    """Generators and scorers of one session. Subclasses reserve their places, with what else they start."""

    reference: ActorPool | None = None

    def __init__(
        self, session: ActorSession, config: PPOConfig, columns: list[str], rewards: dict[str, RewardComponent]
    ) -> None:
        """`columns`: names of the sample table's columns; `rewards`: the components that score."""
        self.session, self.config, self.columns, self.rewards = session, config, columns, rewards

    def _rollout_needs(self) -> list[ActorNeed]:
        generation = self.config.generation
        needs = [ActorNeed("generator", i, gpus=generation.tensor_parallel_size) for i in range(generation.replicas)]
        for name, section in self.rewards.items():
            gpus = int(isinstance(section, NeuralOptions) and section.device != "cpu")
            needs += [ActorNeed(f"reward/{name}", index, gpus=gpus) for index in range(section.replicas)]
        return needs

    def _start_rollout_actors(self, dtype: str, sync: SyncSection, published: bool) -> None:
        """Start generators that compute in `dtype`, and scorers; they load meanwhile.

        `published`: weights will be published to the generators, and until then they are not to sample.
        """
        self.generators = self._generator_pool(dtype, sync, published)
        self.scorers = {name: self._scorer_pool(name, section) for name, section in self.rewards.items()}

    def _generator_pool(self, dtype: str, sync: SyncSection, published: bool) -> ActorPool:
        config, model = self.config, self.config.model
        environment = generator_environment(config.generation, self.session.starter.threads, config.tracking.verbose)
        arguments = (model.name, config.generation, sync, dtype, config.run.seed)
        lora = model.lora if sync.lora == "adapter" else None
        options = (model.trust_remote_code, model.revision, model.tokenizer, lora)

        def start(index: int) -> ActorHandle:
            return self.session.start("generator", index, Generator, *arguments, *options, environment=environment)

        return ActorPool(
            "generator",
            start,
            config.generation.replicas,
            "generate",
            returns="streaming",
            supervision=self.session.supervision,
            weights=published,
        )

    def _scorer_pool(self, name: str, section: RewardComponent) -> ActorPool:
        kind = f"reward/{name}"
        if self.config.run.exact and isinstance(section, NeuralOptions):
            section = section.model_copy(update={"dtype": "float32"})

        def start(index: int) -> ActorHandle:
            arguments = (name, section, self.columns, self.session.starter.threads)
            return self.session.start(kind, index, scorer_class(section), *arguments)

        deadline_s = max(self.config.resources.call_timeout_s, self._longest_score_s(section))
        supervision = self.session.supervision
        return ActorPool(kind, start, section.replicas, "score", deadline_s=deadline_s, supervision=supervision)

    def _longest_score_s(self, section: RewardComponent) -> float:
        """Seconds that one batch of samples may take at worst: a function that hangs does so on every sample."""
        if isinstance(section, FunctionRewardSection):
            exact = EXACT_CHUNK_PROMPTS * self.config.ppo.samples_per_prompt
            return section.timeout_s * (exact if self.config.run.exact else self.config.generation.stream_samples)
        return PATIENCE * (section.deadline_s if isinstance(section, HTTPOptions) else section.timeout_s)

    @property
    def _rollout_pools(self) -> list[ActorPool]:
        others = [self.reference] if self.reference is not None else []
        return [self.generators, *self.scorers.values(), *others]

    def _wait_until_ready(self, progress: Callable[..., None]) -> None:
        deadline_s = self.config.resources.start_timeout_s
        for pool in self._rollout_pools:
            progress(1, note=f"waiting for {pool.name}")
            pool.wait_ready(deadline_s)

    def collector(self, scored: bool = True) -> RolloutCollector:
        """What collects rollouts from these actors; without scores if told so."""
        config = self.config
        return RolloutCollector(
            self.generators,
            self.scorers if scored else {},
            self.reference,
            config.ppo.samples_per_prompt,
            EXACT_CHUNK_PROMPTS if config.run.exact else None,
        )
