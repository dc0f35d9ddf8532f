"""A class of reward methods, composed with reward models and other functions.

    class Sentiment(RewardComposer):
        @llm_reward
        def brevity_bonus(self, prompt: str, response: str) -> float:
            return max(0.0, 1.0 - len(response) / 300)

    reward = Sentiment(HuggingFaceRewardModel("lvwerra/distilbert-imdb"), reward_weights={"brevity_bonus": 0.5})

Scoring processes make their own instance: of an importable class from the arguments of the constructor, where these are
plain data; of any other from its pickled code.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from rlhf_ray.config.rewards import FunctionRewardSection, ReducerSection, RewardComponent
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.build import change_section
from rlhf_ray.rewards.decorator import Mark, mark_of
from rlhf_ray.rewards.inline import all_plain, import_path, label, to_code
from rlhf_ray.rewards.terms import Term, as_term, join


@dataclass(frozen=True)
class _Composition:
    """What `RewardComposer.__init__` was told."""

    terms: tuple[Term, ...] = ()
    weights: Mapping[str, float] | None = None
    reducer: ReducerSection | None = None
    disabled: tuple[str, ...] = ()


class RewardComposer(Term):
    """Base class: every method marked with `@llm_reward` is a component, in order of definition, inherited ones first.

    An override that is not marked itself keeps the options of what it overrides; `name = None` takes a reward out.
    """

    _composition = _Composition()  # for a subclass whose constructor does not call ours
    _call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().__new__(cls)
        instance._call = (args, kwargs)  # here, so that a subclass need not pass its arguments on to be remembered
        return instance

    def __init__(
        self,
        *rewards: Any,
        reward_weights: Mapping[str, float] | None = None,
        reducer: Any = None,
        disabled: Iterable[str] = (),
    ) -> None:
        """`rewards` are further components: reward models, functions, composers.

        Args:
            reward_weights: weights by component, instead of the components' own.
            reducer: how the components become one number (default: the weighted sum); a reducer such as
                `MinReducer()`, its name, or a function f(values, weights).
            disabled: components to switch off.

        Raises:
            ConfigError: a name in `reward_weights` or `disabled` is no component, or two components share one.
        """
        self._composition = _Composition(
            tuple(as_term(reward) for reward in rewards),
            dict(reward_weights or {}),
            None if reducer is None else _reducer_section(reducer),
            (disabled,) if isinstance(disabled, str) else tuple(disabled),
        )
        self._check_names()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        taken = [name for name, thing in vars(cls).items() if mark_of(thing) and hasattr(RewardComposer, name)]
        if taken:
            raise ConfigError(
                f"{cls.__name__}.{taken[0]}: every RewardComposer has a `{taken[0]}` of its own; give the method "
                f'another name, and the component this one: @llm_reward(name="{taken[0]}")'
            )

    def sections(self) -> dict[str, RewardComponent]:
        """All components by name: the methods, then the further rewards. Raises ConfigError."""
        made = self._composition
        sections = join([Term(self._methods()), *made.terms]).sections()
        changes: dict[str, dict[str, Any]] = {name: {"weight": weight} for name, weight in (made.weights or {}).items()}
        for name in made.disabled:
            changes.setdefault(name, {})["enabled"] = False
        for name, fields in changes.items():
            sections[name] = change_section(sections[name], f"{type(self).__name__}, component `{name}`", **fields)
        return sections

    def reducer_section(self) -> ReducerSection:
        return self._composition.reducer or ReducerSection()

    def _methods(self) -> dict[str, RewardComponent]:
        """The sections of the marked methods."""
        marks = _marks(type(self))
        sections: dict[str, RewardComponent] = {}
        for attribute, mark in marks.items():
            name = mark.name or attribute
            if name in sections:
                raise ConfigError(f"{type(self).__name__}: two reward methods are called `{name}`")
            sections[name] = self._section(attribute, mark)
        return sections

    def _section(self, attribute: str, mark: Mark) -> FunctionRewardSection:
        """How a scoring process finds the method: by class and constructor arguments, or pickled with its instance."""
        needs_instance = not isinstance(inspect.getattr_static(self, attribute), staticmethod | classmethod)
        constructor = _plain_constructor(type(self), *self._call) if needs_instance else {}
        where = f"{type(self).__name__}.{attribute}"
        function = f"{label(type(self))}.{attribute}"
        if import_path(type(self)) is not None and constructor is not None:
            return change_section(mark.options, where, function=function, constructor=constructor)
        return change_section(mark.options, where, function=function).with_code(to_code(getattr(self, attribute)))

    def _check_names(self) -> None:
        made = self._composition
        known = [mark.name or attribute for attribute, mark in _marks(type(self)).items()]
        known += [name for term in made.terms for name in term.sections()]
        if twice := [name for name in known if known.count(name) > 1]:
            raise ConfigError(f"{type(self).__name__}: two components are called `{twice[0]}`; rename one")
        for option, names in (("reward_weights", made.weights or {}), ("disabled", made.disabled)):
            for name in names:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f" Did you mean `{near[0]}`?" if near else ""
                    raise ConfigError(
                        f"{type(self).__name__}: {option} names `{name}`, which is no component.{hint} "
                        f"The components are {', '.join(f'`{one}`' for one in known) or 'none'}."
                    )


def _reducer_section(reducer: Any) -> ReducerSection:
    from rlhf_ray.rewards.reducers import reducer_section  # with NumPy, which a sandbox's child can start without

    return reducer_section(reducer)


def _marks(cls: type) -> dict[str, Mark]:
    """The marked methods by attribute, in order of definition, those of base classes first."""
    marks: dict[str, Mark] = {}
    for base in reversed(cls.__mro__):
        for attribute, thing in vars(base).items():
            if mark := mark_of(thing):
                marks[attribute] = mark
            elif attribute in marks and thing is None:
                del marks[attribute]
    return marks


def _plain_constructor(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments that make the same instance, by name; None where they are not plain data.

    What only the base class reads (rewards, weights, reducer) does not change what the methods do, and is left out.
    """
    make = vars(next(base for base in cls.__mro__ if "__init__" in vars(base)))["__init__"]
    if make is RewardComposer.__init__:
        return {}
    signature = inspect.signature(make)
    bound = signature.bind(None, *args, **kwargs)
    constructor: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            constructor |= {key: item for key, item in value.items() if key not in _OWN_OPTIONS}
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            return None
        else:
            constructor[name] = value
    return constructor if all_plain(constructor) else None


_OWN_OPTIONS = frozenset(inspect.signature(RewardComposer.__init__).parameters) - {"self", "rewards"}
