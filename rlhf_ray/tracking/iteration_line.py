"""One PPO iteration on the console: a row of a table at 120 columns, a row and a dim second line at 80."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from rlhf_ray.tracking.format import fit, percent, scientific

Metrics = dict[str, float]

#: Narrower consoles get the second line.
ONE_LINE_WIDTH = 118
COUNTER_WIDTH = 9
#: Where the lines below the first begin.
INDENT = COUNTER_WIDTH + 3


@dataclass(frozen=True)
class Column:
    """A number in the row: right-aligned in `width` characters, under `title`."""

    title: str
    width: int
    text: Callable[[Metrics], str]


def _plain(title: str, key: str, width: int, decimals: int) -> Column:
    return Column(title, width, lambda metrics: fit(metrics.get(key), width, decimals))


def _reward(metrics: Metrics) -> str:
    mean, std = metrics.get("reward/mean"), metrics.get("reward/std")
    return fit(mean, 7, 3) + ("" if std is None else f" ±{fit(std, 5, 3)}")


def _gap(metrics: Metrics) -> str:
    return f"{scientific(metrics.get('audit/mean_gap'))}/{scientific(metrics.get('audit/max_gap'))}"


OUTCOME = (
    Column("reward ±std", 14, _reward),
    _plain("KL", "kl/mean", 6, 2),
    _plain("policy", "loss/policy", 7, 4),
    _plain("value", "loss/value", 7, 4),
    Column("clip", 6, lambda metrics: percent(metrics.get("policy/clip_fraction"))),
    _plain("length", "response/length_mean", 6, 1),
)
SPEED = (_plain("tok/s", "throughput/response_tokens_per_s", 7, 0), _plain("seconds", "seconds/total", 7, 1))
GAP = Column("audit gap", 14, _gap)
PHASES = (
    _plain("gen", "seconds/generate", 5, 1),
    _plain("score", "seconds/score", 5, 1),
    _plain("train", "seconds/train", 5, 1),
    _plain("sync", "seconds/sync", 5, 1),
)


def header(width: int) -> Text:
    """The titles above the rows, for a console of `width` columns."""
    columns = (*OUTCOME, GAP, *SPEED, *PHASES) if width >= ONE_LINE_WIDTH else (*OUTCOME, *SPEED)
    line = Text(f"  {'iteration':>{COUNTER_WIDTH}}", style="dim")
    for column in columns:
        line.append(" " + column.title.rjust(column.width))
    return line


def row(width: int, iteration: int, total: int | None, metrics: Metrics) -> list[Text]:
    """The line (two below ONE_LINE_WIDTH) of one iteration; absent metrics show as `-`."""
    counter = f"{iteration}/{total}"
    if total is None or len(counter) > COUNTER_WIDTH:
        counter = str(iteration)
    wide = width >= ONE_LINE_WIDTH
    line = Text(f"  {counter:>{COUNTER_WIDTH}}")
    for column in OUTCOME:
        line.append(" " + column.text(metrics).rjust(column.width), style="bold" if column is OUTCOME[0] else "")
    for column in (GAP, *SPEED, *PHASES) if wide else SPEED:
        line.append(" " + column.text(metrics).rjust(column.width), style="dim")
    if wide:
        return [line]
    phases = "  ".join(f"{column.title} {column.text(metrics)}" for column in PHASES)
    return [line, Text(f"{'':{INDENT}}gap {_gap(metrics)}   seconds: {phases}", style="dim")]
