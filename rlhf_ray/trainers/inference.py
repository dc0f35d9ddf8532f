"""A policy outside the training loop: prompts in any form, answered by the running actors or by short-lived ones."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rlhf_ray.actors.generator import SAMPLING_KEYS
from rlhf_ray.config import PPOConfig
from rlhf_ray.config.rewards import RewardComponent
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import check_model, load_tokenizer
from rlhf_ray.models.load import resolve_dtype
from rlhf_ray.tracking.console import Console
from rlhf_ray.trainers.build import prompts_path
from rlhf_ray.trainers.evaluation import EVALUATION
from rlhf_ray.trainers.ppo_actors import prompt_limit
from rlhf_ray.trainers.rollout_actors import RolloutActors
from rlhf_ray.trainers.session import ActorSession


class InferenceActors(RolloutActors):
    """Generators on a saved policy, and scorers; ready when the constructor returns."""

    def __init__(
        self,
        session: ActorSession,
        config: PPOConfig,
        columns: list[str],
        rewards: dict[str, RewardComponent],
        progress: Callable[..., None],
    ) -> None:
        super().__init__(session, config, columns, rewards)
        placement = session.reserve(self._rollout_needs())
        # No updates come: a saved policy is whole.
        sync = config.sync.model_copy(update={"transport": "object_store", "lora": "merged"})
        self._start_rollout_actors(engine_dtype(config, on_gpu=placement.gpus > 0), sync, published=False)
        self._wait_until_ready(progress)


@contextmanager
def inference_actors(
    config: PPOConfig, columns: list[str], rewards: dict[str, RewardComponent], console: Console
) -> Iterator[RolloutActors]:
    """Actors on the policy `config.model`, for as long as the block runs; their logs are kept only if it fails."""
    check_model(config.model.name, config.model.revision)
    logs = Path(tempfile.mkdtemp(prefix="rlhf_ray-logs-"))
    with ActorSession(config, f"inference-{uuid.uuid4().hex[:8]}", logs) as session:
        with console.progress("starting the actors") as advance:
            actors = InferenceActors(session, config, columns, rewards, advance)
        yield actors
    shutil.rmtree(logs, ignore_errors=True)


def load_inputs(config: PPOConfig, prompts: Any, max_new_tokens: int | None = None) -> pa.Table:
    """`schema.PROMPTS` of a path or of prompts in memory, all of them in their order, rendered as in training.

    Strings and conversations are prompts as they are; rows, tables and files have the shape of `data.path`. A prompt
    that is too long is cut where `data.too_long` is `truncate`, and an error otherwise.
    """
    data = config.data
    changes: dict[str, Any] = {"max_samples": None, "streaming": False, "eval_path": None, "eval_split": None}
    changes["too_long"] = "truncate" if data.too_long == "truncate" else "error"
    if isinstance(prompts, list | tuple) and not any(isinstance(prompt, Mapping) for prompt in prompts):
        changes |= {"prompt_column": "prompt", "preprocess": None}
    if max_new_tokens is not None:
        generation = config.generation.model_copy(update={"max_new_tokens": max_new_tokens})
        config = config.model_copy(update={"generation": generation})
    model = config.model
    tokenizer = load_tokenizer(model.tokenizer or model.name, model.revision, model.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="rlhf_ray-prompts-") as folder:
        section = data.model_copy(update=changes | {"path": prompts_path(prompts, Path(folder))})
        return load_prompts(section, tokenizer, prompt_limit(config)).table


def sample_texts(
    actors: RolloutActors, prompts: pa.Table, seed: int, sampling: Mapping[str, Any], progress: Callable[[int], None]
) -> list[str]:
    """One response per prompt, in the prompts' order."""
    rollouts = actors.collector(scored=False).collect(
        prompts,
        EVALUATION,
        seed,
        samples_per_prompt=1,
        with_reference=False,
        sampling=dict(sampling),
        progress=progress,
    )
    order = np.argsort(rollouts.column("prompt_id"), kind="stable")
    return [response for _, response in rollouts.texts(order.tolist())]


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Refuse what the generator does not know, before it is started."""
    if unknown := sorted(set(sampling) - set(SAMPLING_KEYS)):
        raise ConfigError(f"generate has no {', '.join(unknown)}; it takes seed, {', '.join(SAMPLING_KEYS)}")


def engine_dtype(config: PPOConfig, on_gpu: bool) -> str:
    """As in training, where the engines compute as the learner does; on GPUs the engine's own `auto` is the same."""
    if config.run.exact:
        return "float32"
    dtype = config.generation.dtype if config.generation.dtype != "auto" else config.learner.dtype
    if dtype != "auto" or on_gpu:
        return dtype
    return str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
