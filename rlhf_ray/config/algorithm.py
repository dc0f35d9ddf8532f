"""What the keys of the algorithm mean together: each estimator's needs and habits, and combinations that cannot be."""

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.ppo import Advantage, PPOConfig
from rlhf_ray.errors import ConfigError

Average = Literal["token", "sequence", "constant"]


@dataclass(frozen=True)
class EstimatorTraits:
    """What an advantage estimator needs, and how the papers that propose it go on from the advantages."""

    critic: bool = False
    grouped: bool = False  # compares the responses to one prompt, so there must be several
    whiten: bool = False  # over the tokens of the whole iteration
    average: Average = "token"  # of the policy's loss


#: The formulas are in `algorithms.estimators` and `algorithms.advantages`.
ESTIMATORS: dict[Advantage, EstimatorTraits] = {
    "gae": EstimatorTraits(critic=True, whiten=True),
    "grpo": EstimatorTraits(grouped=True, average="sequence"),
    "grpo_no_std": EstimatorTraits(grouped=True, average="sequence"),
    "dr_grpo": EstimatorTraits(grouped=True, average="constant"),
    "rloo": EstimatorTraits(grouped=True),
    "reinforce_pp": EstimatorTraits(whiten=True),
    "reinforce_pp_baseline": EstimatorTraits(grouped=True, whiten=True),
}


def estimator_traits(config: PPOConfig) -> EstimatorTraits:
    """Those of `ppo.advantage`."""
    return ESTIMATORS[config.ppo.advantage]


def critic_kind(config: PPOConfig) -> Literal["separate", "value_head", "none"]:
    """`critic.kind` with `auto` resolved: none for an estimator without critic, a value head under LoRA, else a network
    of its own."""
    if not estimator_traits(config).critic:
        return "none"
    if config.critic.kind == "separate" or config.critic.kind == "value_head":
        return config.critic.kind
    return "value_head" if config.model.lora is not None else "separate"


def loss_average(config: PPOConfig) -> Average:
    """`ppo.loss_average` with `auto` resolved: GSPO averages over responses, all else as the estimator does."""
    if config.ppo.loss_average != "auto":
        return config.ppo.loss_average
    return "sequence" if config.ppo.ratio == "sequence" else estimator_traits(config).average


def whitens(config: PPOConfig) -> bool:
    """`ppo.whiten_advantages`, or else what the estimator does."""
    chosen = config.ppo.whiten_advantages
    return estimator_traits(config).whiten if chosen is None else chosen


def generator_logprobs_serve(config: PPOConfig) -> bool:
    """Whether the generator's log-probs are the old ones: only raw, untempered, untruncated ones can be.

    Raises ConfigError where they were asked for, or are to be corrected for (`ppo.tis_cap`), and cannot serve.
    """
    generation, choice, corrected = config.generation, config.ppo.old_logprobs, config.ppo.tis_cap is not None
    same_distribution = generation.temperature == 1.0 and generation.top_k == 0 and generation.top_p == 1.0
    if choice == "generator" and not same_distribution:
        raise ConfigError(
            "ppo.old_logprobs: the generator's log-probs are raw ones, and with generation.temperature other than 1, "
            "top_k or top_p the ratio to the learner's would be biased. Set ppo.old_logprobs=learner (or auto)."
        )
    if corrected and not same_distribution:
        raise ConfigError(
            "ppo.tis_cap: the generator's log-probs are raw ones, and with generation.temperature other than 1, top_k "
            "or top_p they are not those it sampled by. Leave ppo.tis_cap out, or sample at temperature 1."
        )
    if corrected and choice == "generator":
        raise ConfigError(
            "ppo.tis_cap weighs tokens by learner / generator probability, which is 1 with ppo.old_logprobs=generator. "
            "Set ppo.old_logprobs=learner (or auto), or leave ppo.tis_cap out."
        )
    if choice == "auto":
        return same_distribution and not config.run.exact and not corrected
    return choice == "generator"


def check_algorithm(config: PPOConfig) -> None:
    """Raises ConfigError, naming the keys, for an estimator without what it needs and for penalties that cannot be."""
    ppo, name, traits = config.ppo, config.ppo.advantage, estimator_traits(config)
    if traits.grouped and ppo.samples_per_prompt < 2:
        raise ConfigError(
            f"ppo.samples_per_prompt: {ppo.samples_per_prompt}, but ppo.advantage={name} compares the responses to one "
            "prompt, so all advantages would be 0. Sample several (4 to 16), or use reinforce_pp or gae."
        )
    if ppo.dynamic_sampling.enabled and ppo.samples_per_prompt < 2:
        raise ConfigError(
            f"ppo.dynamic_sampling drops prompts whose responses have equal rewards, and with ppo.samples_per_prompt="
            f"{ppo.samples_per_prompt} that is all of them. Sample several responses per prompt, or disable it."
        )
    if config.critic.kind in ("separate", "value_head") and not traits.critic:
        raise ConfigError(
            f"critic.kind: {config.critic.kind}, but ppo.advantage={name} has no critic; set none or auto"
        )
    if config.critic.kind == "none" and traits.critic:
        free = ", ".join(other for other, traits in ESTIMATORS.items() if not traits.critic)
        raise ConfigError(f"critic.kind: none, but ppo.advantage={name} needs a critic; these do without: {free}")
    if config.critic.warmup_iterations and not traits.critic:
        raise ConfigError(f"critic.warmup_iterations: there is no critic to warm up with ppo.advantage={name}; set 0")
    if ppo.overlong.buffer_tokens > config.generation.max_new_tokens:
        raise ConfigError(
            f"ppo.overlong.buffer_tokens: {ppo.overlong.buffer_tokens} is more than generation.max_new_tokens "
            f"({config.generation.max_new_tokens}), so even an empty response would be punished"
        )
    generator_logprobs_serve(config)
