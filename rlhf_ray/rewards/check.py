"""What can be found wrong with a run's rewards before an actor starts: without loading a model or scoring a sample."""

from collections.abc import Mapping, Sequence

from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    ReducerSection,
    RemoteRewardSection,
    RewardComponent,
)
from rlhf_ray.hub import check_model
from rlhf_ray.rewards.compose import enabled_components
from rlhf_ray.rewards.ensemble import member_names
from rlhf_ray.rewards.function import check_function
from rlhf_ray.rewards.judge import JudgeScorer
from rlhf_ray.rewards.loading import check_adapter
from rlhf_ray.rewards.reducers import make_reducer
from rlhf_ray.rewards.remote import RemoteScorer
from rlhf_ray.rewards.resolve import FunctionSpec


def check_rewards(sections: Mapping[str, RewardComponent], reducer: ReducerSection) -> None:
    """Something is enabled; gates, reducer, models and adapters are there. Raises ConfigError."""
    active = enabled_components(sections)
    make_reducer(reducer)
    for name in active:
        section = sections[name]
        if isinstance(section, EnsembleRewardSection):
            member_names(section.models)
            for model in section.models:
                check_model(model)
        elif isinstance(section, NeuralRewardSection):
            check_model(section.model, section.revision)
            if section.adapter:
                check_adapter(section.adapter)


def check_reward_columns(sections: Mapping[str, RewardComponent], columns: Sequence[str]) -> None:
    """Functions can be imported, and every component finds its columns among the samples'. Raises ConfigError."""
    for name, section in sections.items():
        if not section.enabled:
            continue
        if isinstance(section, FunctionRewardSection):
            check_function(FunctionSpec.of(section), columns)
        elif isinstance(section, RemoteRewardSection):
            RemoteScorer(name, section, columns)
        elif isinstance(section, JudgeRewardSection):
            JudgeScorer(name, section, columns)
