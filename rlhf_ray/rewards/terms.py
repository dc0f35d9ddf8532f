"""The algebra of rewards: terms that are weighted, joined, clipped, gated; each is one or more named components.

    reward = 0.7 * HuggingFaceRewardModel("org/quality") + 0.3 * HuggingFaceRewardModel("org/safety")
    reward = FunctionReward(brevity).clipped(0, 1).gated_by("correct", above=0.5) + correct

A term is a thin wrapper around sections of the configuration: what it builds is what YAML would say. Terms are values:
every operation returns a new one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

from rlhf_ray.config.base import Section
from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    ReducerSection,
    RemoteRewardSection,
    RewardComponent,
    RewardSection,
)
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.build import build_section, change_section
from rlhf_ray.rewards.decorator import OnFailure, mark_of
from rlhf_ray.rewards.inline import all_plain, import_path, label, to_code

if TYPE_CHECKING:
    from rlhf_ray.rewards.scores import RewardScores

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Term:
    """One or more named reward components, to be reduced to one number."""

    def __init__(self, sections: Mapping[str, RewardComponent], reducer: ReducerSection | None = None) -> None:
        for name in sections:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot name a reward component: use letters, digits, `_` and `-` only")
        self._sections = dict(sections)
        self._reducer = reducer or ReducerSection()

    def sections(self) -> dict[str, RewardComponent]:
        """The components by name, as the configuration's `rewards`."""
        return dict(self._sections)

    def reducer_section(self) -> ReducerSection:
        """The reducer, as the configuration's `reducer`."""
        return self._reducer

    def __mul__(self, factor: float) -> "Term":
        """All weights times a number."""
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        return self._changed(lambda section: {"weight": section.weight * float(factor)})

    __rmul__ = __mul__

    def __neg__(self) -> "Term":
        return self * -1

    def __add__(self, other: Any) -> "Term":
        """Both sides' components; a plain function is taken as a term."""
        return join([self, as_term(other)])

    def __radd__(self, other: Any) -> "Term":
        return self if other == 0 else join([as_term(other), self])  # sum() starts from 0

    def __sub__(self, other: Any) -> "Term":
        return self + -as_term(other)

    def clipped(self, low: float, high: float) -> "Term":
        """Values below `low` and above `high` become these (after the normalisation, before the weight)."""
        self._only("clipped")
        return self._changed(lambda section: {"clip": [float(low), float(high)]})

    def normalized(self) -> "Term":
        """Values minus their running mean, by their running std."""
        self._only("normalized")
        return self._changed(lambda section: {"normalize": "running"})

    def gated_by(
        self,
        component: "str | Term",
        *,
        above: float | None = None,
        below: float | None = None,
        otherwise: float = 0.0,
    ) -> "Term":
        """Count only where another component's raw value is within bounds, and as `otherwise` elsewhere."""
        name = component if isinstance(component, str) else component._only("gated_by")
        gate = {"component": name, "above": above, "below": below, "otherwise": otherwise}
        return self._changed(lambda section: {"gate": gate})

    def on_failure(self, policy: OnFailure) -> "Term":
        """What a failed call does: `fail`, `skip_sample` or `leave_out`."""
        return self._changed(lambda section: {"on_failure": policy})

    def replicated(self, replicas: int) -> "Term":
        """Score with so many actors."""
        return self._changed(lambda section: {"replicas": replicas})

    def named(self, name: str) -> "Term":
        return Term({name: self.sections()[self._only("named")]}, self.reducer_section())

    def score(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> "RewardScores":
        """Score responses [samples] to prompts [samples] in this process, without Ray; as a run would, in one batch.

        `columns` are further columns [samples] that reward functions ask for. Components that normalise do so over
        these samples. Functions are called directly: nothing stops one that hangs. Raises DataError as a run would.
        """
        from rlhf_ray.rewards.scores import score_term

        return score_term(self.sections(), self.reducer_section(), prompts, responses, columns)

    def __repr__(self) -> str:
        parts = [f"{section.weight:g} * {name}" for name, section in self.sections().items()]
        return f"<{type(self).__name__}: {' + '.join(parts) or 'nothing'}>"

    def _only(self, operation: str) -> str:
        """The name of the only component. Raises ConfigError when the operation would be ambiguous."""
        names = list(self.sections())
        if len(names) != 1:
            raise ConfigError(f"{operation} needs one component, not {len(names)} ({', '.join(names)}): use it on each")
        return names[0]

    def _changed(self, fields: Callable[[RewardSection], Mapping[str, Any]]) -> "Term":
        sections = {
            name: change_section(section, f"reward component `{name}`", **fields(section))
            for name, section in self.sections().items()
        }
        return Term(sections, self.reducer_section())


class FunctionReward(Term):
    """A function `f(prompt, response, ...)`, or its import path, with constant `arguments`.

    Named after the function. What `@llm_reward` says of it holds. A function that other processes cannot import (of a
    notebook or script, a lambda, a closure) travels with its code.
    """

    def __init__(self, function: Callable[..., Any] | str, **arguments: Any) -> None:
        if isinstance(function, str):
            where = f"reward function `{function}`"
            section = build_section(FunctionRewardSection, where, function=function, arguments=arguments)
            super().__init__({re.split(r"[:.]", function)[-1]: section})
            return
        mark = mark_of(function)
        options = mark.options if mark else FunctionRewardSection(function="unmarked")
        path = import_path(function)
        section = change_section(
            options, f"reward function `{label(function)}`", function=path or label(function), arguments=arguments
        )
        if path is None or not all_plain(arguments):
            section = section.with_code(to_code(function))
        super().__init__({(mark and mark.name) or _function_name(function): section})


class HuggingFaceRewardModel(Term):
    """A sequence-classification model: a reward model with one score, or a classifier whose `label_index` counts.

    Named `hf_<model id>`, with `_` for every character but letters and digits; one in a folder, after the folder.
    `max_length` is in tokens, prompt and response together. `normalize` subtracts the running mean and divides by the
    running std. `template`, `activation`, `adapter` and further `options` are fields of the section `neural`.
    """

    def __init__(
        self,
        model_id: str | PathLike[str],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        max_length: int | None = None,
        label_index: int = 0,
        normalize: bool = False,
        template: str | None = None,
        activation: Literal["none", "sigmoid", "softmax"] = "none",
        adapter: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        section = build_section(
            NeuralRewardSection,
            f"HuggingFaceRewardModel({model_id!r})",
            model=fspath(model_id),
            device=device,
            max_tokens=max_length,
            label_index=label_index,
            normalize="running" if normalize else "none",
            template=template,
            activation=activation,
            adapter=None if adapter is None else fspath(adapter),
            **options,
        )
        super().__init__({f"hf_{_identifier(section.model)}": section})


class RewardEnsemble(Term):
    """Several reward models as one component named `ensemble`; `options` are fields of the section `ensemble`."""

    def __init__(
        self,
        models: Sequence[str | PathLike[str]],
        combine: Literal["mean", "min", "uncertainty"] = "mean",
        penalty: float = 1.0,
        **options: Any,
    ) -> None:
        names = [fspath(model) for model in models]
        section = build_section(
            EnsembleRewardSection, "RewardEnsemble", models=names, combine=combine, penalty=float(penalty), **options
        )
        super().__init__({"ensemble": section})


class RemoteReward(Term):
    """A scorer behind an HTTP endpoint, named `remote`; `options` are fields of the section `remote`."""

    def __init__(self, url: str, columns: Sequence[str] = (), **options: Any) -> None:
        section = build_section(RemoteRewardSection, "RemoteReward", url=url, columns=list(columns), **options)
        super().__init__({"remote": section})


class LLMJudge(Term):
    """A language model that grades by a rubric file, named `judge`; `options` are fields of the section `judge`."""

    def __init__(self, base_url: str, model: str, rubric: str | PathLike[str], **options: Any) -> None:
        section = build_section(
            JudgeRewardSection, "LLMJudge", base_url=base_url, model=model, rubric=fspath(rubric), **options
        )
        super().__init__({"judge": section})


def as_term(reward: Any) -> Term:
    """A term from whatever may stand for a reward: a term, a composer, a function or its import path; a list of these,
    or a dict of them by name, whose values may be sections too. Raises ConfigError for anything else.
    """
    if isinstance(reward, Term):
        return reward
    if isinstance(reward, type) and issubclass(reward, Term):
        raise ConfigError(f"{reward.__name__} is a class: pass an instance, {reward.__name__}(...)")
    if isinstance(reward, Mapping):
        return join([_named(name, part) for name, part in reward.items()])
    if isinstance(reward, Sequence) and not isinstance(reward, str):
        return join([as_term(part) for part in reward])
    if isinstance(reward, str) or callable(reward):
        return FunctionReward(reward)
    raise ConfigError(
        f"{reward!r} ({type(reward).__name__}) is no reward: expected a RewardComposer, a reward model, a function "
        "f(prompt, response), its import path `module:function`, or a list of these"
    )


def join(terms: Sequence[Term]) -> Term:
    """All components of several terms, for a weighted sum. Raises ConfigError for a name that comes twice."""
    sections: dict[str, RewardComponent] = {}
    for term in terms:
        if len(terms) > 1 and term.reducer_section().type != "weighted_sum":
            raise ConfigError(
                f"{term!r} is reduced by `{term.reducer_section().type}`, and cannot be a part of something else: pass "
                "the other rewards to its constructor, RewardComposer(*rewards, reducer=...)"
            )
        for name, section in term.sections().items():
            if name in sections:
                raise ConfigError(f'two reward components are called `{name}`: rename one, term.named("other")')
            sections[name] = section
    return terms[0] if len(terms) == 1 else Term(sections)


class _Components(Section):
    rewards: dict[str, RewardComponent]


def _named(name: str, reward: Any) -> Term:
    """One entry of a dict of rewards."""
    if isinstance(reward, RewardSection | Mapping):
        return Term(build_section(_Components, "reward", rewards={name: reward}).rewards)
    return as_term(reward).named(name)


def _function_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", None)
    return (name or type(function).__name__).strip("<>")


def _identifier(model: str) -> str:
    name = model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".", "~")) else model
    return re.sub(r"[^A-Za-z0-9]", "_", name)
