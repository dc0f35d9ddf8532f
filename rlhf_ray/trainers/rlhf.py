"""The stages of RLHF one after the other, each on what earlier ones made: SFT, reward model, DPO, PPO, evaluation.

    rlhf-ray pipeline --config configs/pipeline_llama2_7b_hh.yaml

    config = load_config(RLHFConfig, ["pipeline.yaml"])   # ppo: {model: {name: "${sft}"}, ...}
    result = RLHFTrainer(config).train()                  # or train_sft(), train_reward_model(), ...

A stage that finished, and whose configuration and inputs are what they were, is not run again (`stage_cache`); one
that was interrupted goes on from its last checkpoint; any other begins anew. So `train()` again, with the same
run.name, does what is left to do, after a crash and after a change alike.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.actors.runtime import connect, disconnect
from rlhf_ray.config.arithmetic import ppo_arithmetic
from rlhf_ray.config.common import RunSection
from rlhf_ray.config.load import mapping_yaml
from rlhf_ray.config.rlhf import RLHFConfig, StageConfig, fill, placeholders
from rlhf_ray.errors import ConfigError
from rlhf_ray.evaluation.report import Report
from rlhf_ray.files import write_whole
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.record import PIPELINE_CONFIG
from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.results import PPOResult
from rlhf_ray.trainers.resume import finished_with
from rlhf_ray.trainers.run_lock import RunLock
from rlhf_ray.trainers.stage_cache import Ingredients, Plan, StageCache
from rlhf_ray.trainers.stage_result import StageResult
from rlhf_ray.trainers.stages import STAGES, StageOutcome


@dataclass
class RLHFResult:
    """What each stage left; None for one that is not configured or, after Ctrl-C, was not reached."""

    folder: Path
    sft: StageResult | None = None
    reward_model: StageResult | None = None
    dpo: StageResult | None = None
    ppo: PPOResult | None = None
    evaluation: Report | None = None
    skipped: list[str] = field(default_factory=list)  # stages that an earlier call had finished


class RLHFTrainer:
    """Runs an `RLHFConfig`. `callbacks` are those of the PPO stage."""

    def __init__(
        self, config: RLHFConfig, *, callbacks: Sequence[Callback] = (), console: Console | None = None
    ) -> None:
        self.config, self.callbacks, self.console = config, callbacks, console or Console()
        self.root = Path(config.run.root).expanduser() / (config.run.name or f"rlhf-{time.strftime('%Y%m%d-%H%M%S')}")
        self.cache = StageCache(self.root)

    def train(self, start: str | None = None) -> RLHFResult:
        """All configured stages in their order; Ctrl-C ends the one in hand and leaves out the rest.

        Args:
            start: take the stages before this one as they are, whatever has changed; run it and all later ones anew.

        Raises:
            ConfigError: `start` is no configured stage, or one before it has not finished.
        """
        names = list(self.config.stages)
        if start is not None and start not in names:
            raise ConfigError(f"no stage {start!r} to start from: there are {', '.join(names)}")
        if self.config.ppo is not None:
            ppo_arithmetic(self.config.ppo)  # what does not divide is refused before the first stage, not after it
        result = RLHFResult(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        with RunLock(self.root).held(self.console.warn):
            self._record()
            self._run_all(names, start, result)
        self._summarise(result)
        return result

    def _record(self) -> None:
        """Keep the configuration in the folder, for a resume; only what was set: other seeds are the pipeline's."""
        path, content = self.root / PIPELINE_CONFIG, self.config.model_dump(mode="json", exclude_unset=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != mapping_yaml(content):
            write_whole(path, mapping_yaml(content))

    def _run_all(self, names: list[str], start: str | None, result: RLHFResult) -> None:
        first = next(iter(self.config.stages.values()))
        cluster = connect(first.resources, first.tracking.verbose)  # one Ray for all of them
        try:
            for position, name in enumerate(names):
                plan = None if start is None else self._forced(name, start, position < names.index(start))
                outcome = self._run(name, plan)
                setattr(result, name, outcome.result)
                if outcome.skipped:
                    result.skipped.append(name)
                if outcome.interrupted:
                    break
        finally:
            disconnect(cluster)

    def train_sft(self) -> StageResult:
        """Fine-tune on the demonstrations."""
        return self._run("sft").result

    def train_reward_model(self) -> StageResult:
        """Train the reward model on the preferences."""
        return self._run("reward_model").result

    def train_dpo(self) -> StageResult:
        """Train the policy on the preferences themselves."""
        return self._run("dpo").result

    def train_ppo(self) -> PPOResult:
        """Train the policy towards the rewards."""
        return self._run("ppo").result

    def evaluate(self) -> Report:
        """Measure the models that the stages left."""
        return self._run("evaluation").result

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _run(self, name: str, plan: Plan | None = None) -> StageOutcome:
        """What the stage leaves, by running it or from the run that is there; `plan` overrules what the cache says."""
        stage, folder = STAGES[name], self.root / name
        if plan is None or plan.action != "skip":
            section, models = self._placed(name), self._models(name)
            with self.console.progress(f"{name}: reading what it is made from"):
                ingredients = Ingredients.of(section, models)
            plan = plan or self.cache.plan(name, ingredients)
        if plan.action == "resume" and finished_with(folder, _filled(section, models)):
            self.cache.finish(name, stage.leaves)  # all that was missing when the pipeline was killed
            plan = Plan("skip", "it had finished")
        if plan.action == "resume" and not stage.resumes:
            plan = Plan("run", plan.why)
        if plan.action == "skip":
            self.console.note(f"{name}: skipped, {plan.why}")
            return StageOutcome(stage.read(folder), skipped=True)
        aside = self.cache.begin(name, ingredients, plan.action)
        self.console.note(f"{name}: {'goes on' if plan.action == 'resume' else 'runs'}, {plan.why}")
        if aside is not None:
            self.console.note(f"{name}: its earlier run is now in {aside}")
        config = _filled(section, models)
        resume = folder if plan.action == "resume" else None
        outcome = StageOutcome(stage.run(config, resume, self.callbacks, self.console))
        if not outcome.interrupted:
            self.cache.finish(name, stage.leaves)
        return outcome

    def _forced(self, name: str, start: str, earlier: bool) -> Plan:
        if not earlier:
            return Plan("run", f"everything from {start} on is asked for")
        if not self.cache.finished(name):
            raise ConfigError(f"cannot start from {start}: {name} has not finished in {self.root}; start from {name}")
        return Plan("skip", f"it comes before {start}")

    def _placed(self, name: str) -> StageConfig:
        """The stage's configuration with its place in the pipeline's folder; placeholders still in it.

        Raises:
            ConfigError: the stage is not configured.
        """
        section = self.config.stages.get(name)
        if section is None:
            raise ConfigError(f"{name}: is not configured; RLHFConfig({name}=...)")
        ours, own = self.config.run, section.run
        shared = {key: getattr(ours, key) for key in ("seed", "exact") if key not in own.model_fields_set}
        run = RunSection(**{**own.model_dump(), **shared, "root": str(self.root), "name": name})
        return section.model_copy(update={"run": run})

    def _models(self, name: str) -> dict[str, Path]:
        """Stage -> its model, for all that this stage names.

        Raises:
            ConfigError: one of them has not left its model yet.
        """
        models = {}
        for key, stage in placeholders(self.config.stages.get(name), name):
            models[stage] = (self.root / stage / "policy").absolute()
            if not (models[stage] / "config.json").is_file():
                raise ConfigError(f"{key}: ${{{stage}}} is not trained yet: there is no model in {models[stage]}")
        return models

    def _summarise(self, result: RLHFResult) -> None:
        """What every stage gained, and where it is."""
        facts: dict[str, object] = {}
        for name in self.config.stages:
            if (done := getattr(result, name)) is not None:
                gain = STAGES[name].gain(done)
                facts[name] = [*([gain.describe()] if gain is not None else []), str(self.root / name)]
        self.console.stage("Pipeline", str(self.root))
        self.console.facts(facts)


def _filled(section: StageConfig, models: dict[str, Path]) -> StageConfig:
    """The stage's configuration with the models in the place of their placeholders."""
    return fill(section, {stage: str(model) for stage, model in models.items()})
