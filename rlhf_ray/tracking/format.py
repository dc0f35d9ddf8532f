"""Numbers as a person reads them in a column: never wider than the column, never more digits than they deserve."""

import itertools
import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def fit(value: float | None, width: int, decimals: int) -> str:
    """`value` in at most `width` characters, with up to `decimals` decimals; '-' for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    for digits in range(decimals, -1, -1):
        text = f"{value:,.{digits}f}"
        if len(text) <= width:
            return text
    return scientific(value)


def scientific(value: float | None) -> str:
    """Two significant digits: 1.2e-06 as `1.2e-6`; 0 and None as `0` and `-`."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float | None) -> str:
    """A fraction as `4.1%`; '-' for None."""
    return "-" if value is None else f"{100 * value:.1f}%"


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters; one that is longer keeps its beginning and its end."""
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def duration(seconds: float) -> str:
    """`6.2 s`, `4 min 12 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve on one line: the finite `values`, averaged into at most `width` blocks from lowest to highest."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [round(i * len(finite) / count) for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def histogram(values: Sequence[float], low: float, high: float, bins: int = 16) -> str:
    """Counts of `values` in equal bins over [low, high], as blocks; an empty bin is a space."""
    counts = [0] * bins
    for value in values:
        place = 0 if high <= low else int((value - low) / (high - low) * bins)
        counts[min(max(place, 0), bins - 1)] += 1
    most = max(counts) or 1
    return "".join(" " if n == 0 else BLOCKS[round(n / most * (len(BLOCKS) - 1))] for n in counts)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted, non-empty `ordered` lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
