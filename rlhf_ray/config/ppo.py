"""A PPO run: rollouts, rewards, reference, critic, optimisation, weight sync."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import (
    CheckpointSection,
    Dtype,
    LearnerSection,
    ModelSection,
    ResourcesSection,
    RunSection,
    TrackingSection,
)
from rlhf_ray.config.data import PromptDataSection
from rlhf_ray.config.guards import GuardsSection, check_rollback
from rlhf_ray.config.rewards import ReducerSection, RewardComponent

Advantage = Literal["gae", "grpo", "grpo_no_std", "rloo", "reinforce_pp", "reinforce_pp_baseline", "dr_grpo"]


class GenerationSection(Section):
    """The rollout generator: one vLLM engine per replica."""

    replicas: int = Field(1, ge=1, le=1024, description="Generator actors.")
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs per engine.")
    dtype: Dtype = Field("auto", description="Engine dtype; auto: the learner's compute dtype.")
    max_new_tokens: int = Field(128, ge=1, description="Longest response, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="Shortest response, in tokens.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature (applied in the learner too).")
    top_k: int = Field(0, ge=0, description="Sample from the k likeliest tokens; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens with this total probability.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a response.")
    stream_samples: int = Field(16, ge=1, description="Finished samples per batch that is handed on.")
    max_context_tokens: int | None = Field(None, ge=2, description="Prompt + response; default: the model's context.")
    max_concurrent_samples: int = Field(256, ge=1, description="Sequences that one engine decodes at a time.")
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1, description="Share of a GPU's memory for the engine.")
    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of an engine on CPU, in GiB.")
    enforce_eager: bool | None = Field(None, description="No CUDA graphs or compilation; default: only on CPU.")

    def require_room(self, max_prompt_tokens: int | None, context: int | None = None) -> None:
        """See that the longest prompt and response fit into `context` tokens, or what the configuration says of it.

        Raises ValueError when they do not. Nothing can be said where neither states a context.
        """
        context, response = context or self.max_context_tokens, self.max_new_tokens
        if context is not None and context <= response:
            raise ValueError(
                f"generation.max_new_tokens: {response} leaves no room for a prompt in the context of {context} tokens"
            )
        if context is not None and max_prompt_tokens is not None and max_prompt_tokens + response > context:
            raise ValueError(
                f"data.max_prompt_tokens: {max_prompt_tokens} and generation.max_new_tokens ({response}) exceed the "
                f"context of {context} tokens together; lower one of them"
            )


class ReferenceSection(Section):
    """The frozen reference policy."""

    model: str | None = Field(None, description="Hub name or folder; default: the policy's start.")
    replicas: int = Field(1, ge=1, le=256, description="Reference actors.")
    dtype: Dtype = Field("auto", description="Compute dtype; auto: the learner's.")
    tokens_per_batch: int = Field(16384, ge=1, description="Padded tokens per forward pass.")


class CriticSection(Section):
    """The value function."""

    kind: Literal["auto", "separate", "value_head", "none"] = Field(
        "auto",
        description="Own network, or a head on the policy's backbone; auto: value_head with LoRA, else separate, and "
        "none where ppo.advantage does without.",
    )
    init_from: str | None = Field(
        None,
        description="Reward model or language model to start from; default: the first neural reward, else the policy.",
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate; default: the learner's.")
    warmup_iterations: int = Field(0, ge=0, description="First iterations that train the critic only.")


class KLSection(Section):
    """The penalty for leaving the reference."""

    coef: float = Field(0.05, ge=0, description="Initial coefficient of the penalty.")
    warmup_iterations: int = Field(
        0, ge=0, description="First iterations, over which the coefficient rises linearly from 0."
    )
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Per-token estimator (Schulman 2020).")
    placement: Literal["reward", "loss"] = Field("reward", description="Subtract from the reward, or add to the loss.")
    controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: steer towards target (Ziegler 2019)."
    )
    target: float = Field(6.0, gt=0, description="KL per response, in nats, for the adaptive controller.")
    horizon: int = Field(10000, ge=1, description="Samples over which the adaptive controller reacts.")

    @model_validator(mode="after")
    def _loss_has_a_gradient(self) -> Self:
        if self.placement == "loss" and self.estimator == "k1" and self.coef:
            raise ValueError(
                "estimator k1 in the loss pulls nowhere (its gradient is zero on average); set kl.estimator=k2 or k3, "
                "or kl.placement=reward"
            )
        return self


class OverlongSection(Section):
    """A soft penalty for responses near max_new_tokens (DAPO, Yu et al. 2025, eq. 13)."""

    buffer_tokens: int = Field(0, ge=0, description="The penalty begins so many tokens below max_new_tokens; 0: none.")
    penalty: float = Field(1.0, ge=0, description="Subtracted at max_new_tokens; within the buffer linearly less.")


class DynamicSamplingSection(Section):
    """Train only on prompts whose responses differ in reward (DAPO, Yu et al. 2025, sec. 3.2)."""

    enabled: bool = Field(False, description="Drop prompts without a signal, and draw others in their place.")
    max_rounds: int = Field(4, ge=1, le=100, description="Rounds of sampling per iteration, the first one included.")


class PPOSection(Section):
    """The algorithm and its batch arithmetic."""

    iterations: int | None = Field(None, ge=1, description="Run length in iterations (or give epochs).")
    epochs: float | None = Field(None, gt=0, description="Run length in passes over the prompts (or give iterations).")
    prompts_per_iteration: int = Field(32, ge=1, description="Prompts drawn per iteration.")
    samples_per_prompt: int = Field(1, ge=1, description="Responses sampled for each prompt.")
    samples_per_minibatch: int | None = Field(
        None, ge=1, description="Samples per optimiser step over all ranks; default: all of the iteration."
    )
    ppo_epochs: int = Field(1, ge=1, le=100, description="Passes over each iteration's samples.")
    advantage: Advantage = Field(
        "gae",
        description="Estimator: gae has a critic; the others need none, and but for reinforce_pp several samples "
        "per prompt.",
    )
    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token (gae, reinforce_pp).")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="Probability ratio of each token, or of the whole response per token (GSPO)."
    )
    clip_range: float = Field(0.2, gt=0, description="Clip of the probability ratio (GSPO: about 3e-4).")
    clip_range_high: float | None = Field(
        None, gt=0, description="Upper clip where it differs (clip-higher, DAPO: 0.28); default: clip_range."
    )
    dual_clip: float | None = Field(
        None, gt=1, description="Largest ratio that counts against a bad token (Ye et al. 2020: 3); null: none."
    )
    loss_average: Literal["auto", "token", "sequence", "constant"] = Field(
        "auto",
        description="Mean over tokens; over responses of their token means; or over responses of their token sums per "
        "max_new_tokens. auto: as the estimator was published.",
    )
    tis_cap: float | None = Field(
        None, gt=0, description="Weigh tokens by learner / generator probability, at most this; null: not."
    )
    value_clip_range: float | None = Field(0.2, gt=0, description="Clip of the value's move; null: none.")
    value_loss_coef: float = Field(0.5, ge=0, description="Weight of the value loss (shared backbone).")
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    whiten_advantages: bool | None = Field(
        None, description="Mean 0 and std 1 over all response tokens of the iteration; default: as the estimator does."
    )
    reward_clip: float | None = Field(None, gt=0, description="Clip the composed reward to [-c, c].")
    target_kl: float | None = Field(
        None, gt=0, description="Stop the PPO epochs when the policy moved this far (nats/token)."
    )
    old_logprobs: Literal["auto", "generator", "learner"] = Field(
        "auto", description="Whose log-probs are the old ones; auto: generator where the audit can vouch for them."
    )
    missing_eos_penalty: float = Field(0.0, ge=0, description="Subtracted from samples cut at max_new_tokens.")
    overlong: OverlongSection = Field(
        default_factory=OverlongSection, description="A soft penalty for responses near max_new_tokens."
    )
    dynamic_sampling: DynamicSamplingSection = Field(
        default_factory=DynamicSamplingSection, description="Train only on prompts whose responses differ in reward."
    )


class SyncSection(Section):
    """Learner -> generator weights."""

    transport: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto", description="auto: object_store on CPU, ipc where learner and generator share GPUs, else nccl."
    )
    bucket_mib: int = Field(128, ge=1, description="Size of a transfer bucket, in MiB.")
    audit_mean_tolerance: float | None = Field(
        None, gt=0, description="Mean log-prob gap that stops the run; default by dtype."
    )
    audit_max_tolerance: float | None = Field(
        None, gt=0, description="Largest gap that stops the run; default by dtype."
    )
    lora: Literal["merged", "adapter"] = Field(
        "merged", description="With LoRA: publish merged weights, or the adapter alone where vLLM can apply it."
    )


class EvaluationSection(Section):
    every: int = Field(0, ge=0, description="Evaluate every so many iterations; 0: before and after only.")
    prompts: int = Field(128, ge=0, description="Held-out prompts used per evaluation; 0: none.")
    show_samples: int = Field(3, ge=0, description="Responses shown on the console per evaluation.")


class EarlyStopSection(Section):
    """End the run before its length is reached; the policy is saved as always."""

    kl: float | None = Field(None, gt=0, description="Stop when the KL from the reference exceeds so many nats ...")
    kl_per: Literal["response", "token"] = Field("response", description="... per response, or per token of it ...")
    kl_patience: int = Field(1, ge=1, description="... in so many iterations in a row.")
    plateau: int | None = Field(None, ge=1, description="Stop after so many iterations without a better mean reward.")
    plateau_min_gain: float = Field(0.0, ge=0, description="A mean reward counts as better from this gain on.")


class PPOConfig(Section):
    """Everything a PPO run is."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    data: PromptDataSection
    rewards: dict[str, RewardComponent] = Field(description="Reward components by name.")
    reducer: ReducerSection = Field(default_factory=ReducerSection)
    ppo: PPOSection = Field(default_factory=PPOSection)
    kl: KLSection = Field(default_factory=KLSection)
    critic: CriticSection = Field(default_factory=CriticSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    sync: SyncSection = Field(default_factory=SyncSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    early_stop: EarlyStopSection = Field(default_factory=EarlyStopSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    guards: GuardsSection = Field(default_factory=GuardsSection)
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _rollback_has_a_goal(self) -> Self:
        check_rollback(self.guards, self.checkpoint)
        return self

    @model_validator(mode="after")
    def _context_suffices(self) -> Self:
        self.generation.require_room(self.data.max_prompt_tokens)
        return self
