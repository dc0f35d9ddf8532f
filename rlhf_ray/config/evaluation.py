"""An evaluation of saved models: which ones, on what, measured how. Only what is given is measured."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.common import ModelSection, ResourcesSection, RunSection, TrackingSection
from rlhf_ray.config.data import DemonstrationDataSection, PromptDataSection
from rlhf_ray.config.ppo import GenerationSection
from rlhf_ray.config.rewards import JudgeRewardSection, NeuralRewardSection, ReducerSection, RewardComponent


class ToxicitySection(NeuralRewardSection):
    """A classifier whose output `label_index` is the probability that a text is toxic; it reads the response alone."""

    activation: Literal["none", "sigmoid", "softmax"] = Field("sigmoid", description="Logits to probabilities.")
    template: str | None = Field("{response}", description="What the classifier reads; see rewards.<name>.template.")
    threshold: float = Field(0.5, gt=0, lt=1, description="A response counts as toxic above this probability.")


class JudgeSection(Section):
    """A language model behind an OpenAI-compatible endpoint that compares and grades responses."""

    base_url: str = Field(pattern=r"^https?://", description="The endpoint, up to and including `/v1`.")
    model: str = Field(description="Name of the model at the endpoint.")
    comparing: str | None = Field(
        None,
        description="Rubric file with {prompt}, {response} and {other}, graded -1 to 1; default: built in.",
    )
    grading: str | None = Field(
        None, description="Rubric file with {prompt}, {response} and {reference}, graded 1 to 10; default: built in."
    )
    structured: bool = Field(True, description="Ask for JSON by schema; off: find the grade in plain text.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer of the judge, in tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature of the judge.")
    token_env: str | None = Field(None, description="Environment variable that holds the bearer token.")
    concurrency: int = Field(8, ge=1, le=1024, description="Requests that run at a time.")
    retries: int = Field(3, ge=0, le=100, description="Further attempts after a lost connection, a 429 or a 5xx.")
    timeout_s: float = Field(120.0, gt=0, description="Seconds one request may take.")
    deadline_s: float = Field(300.0, gt=0, description="Seconds a request may take with all its retries.")

    def component(self, rubric: str, minimum: float, maximum: float) -> JudgeRewardSection:
        """The reward component that asks this judge by `rubric`; answers that cannot be read are left out."""
        options = self.model_dump(exclude={"comparing", "grading"})
        return JudgeRewardSection(
            **options, rubric=rubric, minimum=minimum, maximum=maximum, on_failure="skip_sample", type="judge"
        )


class QuestionsSection(Section):
    """Questions for the judge: graded turn by turn (MT-Bench's form), or held against an answer (AlpacaEval's form)."""

    path: str = Field(
        description="JSON or JSONL file of rows with `turns` (MT-Bench), or `instruction` and `output` (AlpacaEval)."
    )
    max_samples: int | None = Field(None, ge=1, description="Use only the first so many questions.")
    system_prompt: str | None = Field(None, description="System message put before every conversation.")
    chat_template: Literal["auto", "none", "llama2", "mistral", "chatml", "alpaca"] = Field(
        "auto", description="How conversations are rendered; see data.chat_template."
    )


class BenchmarksSection(Section):
    """Tasks of the lm-evaluation-harness, on the engine (extra: eval)."""

    tasks: list[str] = Field(min_length=1, description="Task or group names, e.g. truthfulqa_mc2.")
    include_path: str | None = Field(None, description="Folder with further task files (YAML).")
    fewshot: int | None = Field(None, ge=0, description="Examples before each question; default: the task's own.")
    limit: int | None = Field(None, ge=1, description="Use only the first so many documents of each task.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens, where a task does not say.")
    chat_template: bool = Field(False, description="Put the questions into the model's chat template.")
    deadline_s: float = Field(24 * 3600.0, gt=0, description="Seconds that all tasks may take together.")


class RewardsFile(Section):
    """The rewards of any configuration, e.g. of the run that trained the model; its other sections are passed over."""

    model_config = ConfigDict(extra="ignore")

    rewards: dict[str, RewardComponent] = Field(min_length=1, description="Reward components by name.")
    reducer: ReducerSection = Field(default_factory=ReducerSection)


class EvalConfig(Section):
    """Everything an evaluation is."""

    run: RunSection = Field(default_factory=RunSection)
    model: ModelSection
    against: str | None = Field(None, description="Another model, measured alike: win rates are of `model` over it.")
    reference: str | None = Field(None, description="The model whose KL is measured: what the policy started from.")
    data: PromptDataSection | None = Field(None, description="Prompts to answer.")
    generation: GenerationSection = Field(default_factory=GenerationSection)
    greedy: bool = Field(False, description="Always the likeliest token, in place of generation.temperature.")
    rewards: dict[str, RewardComponent] = Field(default_factory=dict, description="Reward components by name.")
    reducer: ReducerSection = Field(default_factory=ReducerSection)
    toxicity: ToxicitySection | None = Field(None, description="Classifier of toxic responses.")
    perplexity: DemonstrationDataSection | None = Field(None, description="Texts whose perplexity is measured.")
    judge: JudgeSection | None = Field(None, description="Judge of questions, and of the responses to the prompts.")
    questions: QuestionsSection | None = Field(None, description="Questions for the judge.")
    benchmarks: BenchmarksSection | None = Field(None, description="Public benchmarks.")
    show_samples: int = Field(3, ge=0, description="Responses shown on the console and in the report.")
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if not any((self.data, self.perplexity, self.questions, self.benchmarks)):
            raise ValueError("nothing to measure: give data (prompts), perplexity, questions or benchmarks")
        needs_prompts = {"rewards": self.rewards, "toxicity": self.toxicity, "reference": self.reference}
        if self.data is None and (without := [name for name, given in needs_prompts.items() if given]):
            raise ValueError(f"{', '.join(without)}: measured on responses to prompts; give data.path")
        if self.toxicity is not None and "toxicity" in self.rewards:
            raise ValueError(
                "rewards.toxicity: the classifier of section toxicity has this name; give the reward another"
            )
        if self.questions is not None and self.judge is None:
            raise ValueError("questions: there is nobody to judge the answers; set judge.base_url and judge.model")
        if self.judge is not None and self.questions is None and (self.data is None or self.against is None):
            raise ValueError("judge: nothing to judge; give questions, or data and a model to compare with (against)")
        return self

    @model_validator(mode="after")
    def _kl_is_of_what_was_sampled(self) -> Self:
        generation = self.generation
        if self.reference is not None and (self.greedy or generation.top_k or generation.top_p < 1):
            raise ValueError(
                "reference: the KL is an average over responses that the policy itself draws; greedy, top_k and top_p "
                "draw others. Leave them out, or leave reference out"
            )
        return self

    @model_validator(mode="after")
    def _context_suffices(self) -> Self:
        self.generation.require_room(self.data.max_prompt_tokens if self.data is not None else None)
        return self

    @property
    def models(self) -> list[str]:
        """`model`, and `against` where there is one."""
        return [self.model.name, *([self.against] if self.against is not None else [])]
