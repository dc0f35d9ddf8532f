"""How component values become one number per sample. Pure NumPy.

Every reducer has `reduce(values, weights)`: values are component -> float64 [samples] with NaN where a component does
not apply, weights component -> float. It returns float64 [samples], NaN where nothing applied. A component of weight 0
counts for nothing: it is there to gate others, or to be logged.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from rlhf_ray.config.rewards import ReducerSection
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.importing import import_function
from rlhf_ray.rewards.build import build_section
from rlhf_ray.rewards.inline import all_plain, from_code, import_path, label, to_code

Values = Mapping[str, np.ndarray]
Weights = Mapping[str, float]


class Reducer:
    """Base of all reducers. A subclass of your own needs `reduce` alone."""

    #: Whether the rest is scaled up where a failed component is left out: right for a sum, not for an average.
    rescales = False

    def reduce(self, values: Values, weights: Weights) -> np.ndarray:
        raise NotImplementedError

    def section(self) -> ReducerSection:
        """The reducer as configuration."""
        return FunctionReducer(self.reduce).section()


class WeightedSumReducer(Reducer):
    """Sum of weight * value; a component that does not apply adds nothing."""

    rescales = True

    def reduce(self, values: Values, weights: Weights) -> np.ndarray:
        # Component by component, not as a matrix product: a sample's bits must not depend on its neighbours.
        return sum((weights[name] * np.nan_to_num(column) for name, column in values.items()), start=_zeros(values))

    def section(self) -> ReducerSection:
        return ReducerSection(type="weighted_sum")


class MeanReducer(Reducer):
    """Weighted mean over the components that apply: sum of weight * value over sum of |weight|."""

    def reduce(self, values: Values, weights: Weights) -> np.ndarray:
        total = WeightedSumReducer().reduce(values, weights)
        magnitude = sum((abs(weights[name]) * ~np.isnan(c) for name, c in values.items()), start=_zeros(values))
        return np.divide(total, magnitude, out=np.full(total.shape, np.nan), where=magnitude > 0)

    def section(self) -> ReducerSection:
        return ReducerSection(type="mean")


class _Fold(Reducer):
    """Folds weight * value of the components that apply with a NumPy function that ignores NaN."""

    type: Literal["min", "max", "product"]
    fold: np.ufunc
    neutral: float

    def reduce(self, values: Values, weights: Weights) -> np.ndarray:
        total = np.full(_zeros(values).shape, self.neutral)
        applied = np.zeros(total.shape, dtype=bool)
        for name, column in values.items():
            if weights[name] != 0:
                present = ~np.isnan(column)
                total = np.where(present, self.fold(total, weights[name] * column), total)
                applied |= present
        return np.where(applied, total, np.nan)

    def section(self) -> ReducerSection:
        return ReducerSection(type=self.type)


class MinReducer(_Fold):
    """The smallest weight * value: a response is as good as its weakest side."""

    type, fold, neutral = "min", np.minimum, np.inf


class MaxReducer(_Fold):
    """The largest weight * value."""

    type, fold, neutral = "max", np.maximum, -np.inf


class ProductReducer(_Fold):
    """Product of weight * value: one zero makes the whole zero."""

    type, fold, neutral = "product", np.multiply, 1.0


class FunctionReducer(Reducer):
    """A function of your own: f(values, weights, **arguments) -> one number per sample.

    It must give a number wherever a component applies, and is not asked elsewhere: its answer there is ignored.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def reduce(self, values: Values, weights: Weights) -> np.ndarray:
        """Raises DataError when the function raises, or returns anything but a finite number per sample."""
        where = f"reducer `{label(self.function)}`"
        shape = _zeros(values).shape
        try:
            total = np.asarray(self.function(dict(values), dict(weights), **self.arguments), dtype=np.float64)
        except Exception as error:
            raise DataError(f"{where} raised {type(error).__name__}: {error}") from error
        if total.shape != shape:
            raise DataError(f"{where} returned shape {list(total.shape)} for {shape[0]} samples: return one each")
        applied = np.any([~np.isnan(column) for column in values.values()], axis=0)
        if (wrong := applied & ~np.isfinite(total)).any():
            row = int(np.flatnonzero(wrong)[0])
            sample = {name: float(column[row]) for name, column in values.items()}
            raise DataError(
                f"{where} returned {total[row]} for {wrong.sum()} samples, for example for {sample}. A value is NaN "
                "where its component does not apply: the reducer has to say what that means (np.nansum, np.where)."
            )
        return np.where(applied, total, np.nan)

    def section(self) -> ReducerSection:
        name = label(self.function)
        section = build_section(
            ReducerSection, f"reducer `{name}`", type="function", function=name, arguments=self.arguments
        )
        importable = import_path(self.function) is not None and all_plain(self.arguments)
        return section if importable else section.with_code(to_code(self.function))


_BY_TYPE: dict[str, type[Reducer]] = {
    "weighted_sum": WeightedSumReducer,
    "mean": MeanReducer,
    "min": MinReducer,
    "max": MaxReducer,
    "product": ProductReducer,
}


def make_reducer(section: ReducerSection) -> Reducer:
    """The reducer that a section describes. Raises ConfigError when its function cannot be imported."""
    if section.function is None:
        return _BY_TYPE[section.type]()
    function = import_function(section.function, "reducer") if section.code is None else from_code(section.code)
    return FunctionReducer(function, **section.arguments)


def reducer_section(reducer: Any) -> ReducerSection:
    """The section of a reducer, a reducer class, a function, a type's name, or a section itself."""
    if isinstance(reducer, ReducerSection):
        return reducer
    if isinstance(reducer, type) and issubclass(reducer, Reducer):
        return reducer().section()
    if isinstance(reducer, Reducer):
        return reducer.section()
    if isinstance(reducer, str):
        return build_section(ReducerSection, "reducer", type=reducer)
    if callable(reducer):
        return FunctionReducer(reducer).section()
    raise ConfigError(
        f"reducer: got {reducer!r}, expected a reducer such as MinReducer(), a function, or a type's name"
    )


def _zeros(values: Values) -> np.ndarray:
    """Zeros [samples]."""
    return np.zeros(len(next(iter(values.values()))))
