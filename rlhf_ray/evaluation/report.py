"""What an evaluation found: as a table to read, as JSON to compute with, as Markdown to publish."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypedDict

from rlhf_ray.evaluation.estimates import Estimate, WinRate
from rlhf_ray.evaluation.text import Measures
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.format import fit, percent

REPORT_JSON, REPORT_MARKDOWN = "report.json", "report.md"
#: Measures that are shares of responses, shown in percent.
SHARES = ("truncated", "empty", "repeated", "share_above_threshold", "win_rate")
ABSENT = "-"


class Shown(TypedDict):
    """A prompt with every model's response: label -> (text, reward or None)."""

    prompt: str
    responses: Mapping[str, tuple[str, float | None]]


@dataclass(frozen=True)
class Comparison:
    """One model's answers against another's, by one standard (`reward`, `judge`, `questions`)."""

    standard: str
    model: str
    against: str
    result: WinRate
    swayed: int | None = None  # ties because the judge's verdict changed with the order


@dataclass
class Report:
    """The measures of one or two models, their comparisons, and a few of their responses."""

    models: dict[str, str]  # label -> name or folder
    measures: dict[str, Measures] = field(default_factory=dict)  # label -> measure -> estimate
    comparisons: list[Comparison] = field(default_factory=list)
    samples: list[Shown] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # where it was written

    def add(self, label: str, measures: Measures) -> None:
        """Take in measures of the model `label`."""
        self.measures.setdefault(label, {}).update(measures)

    def value(self, measure: str, label: str | None = None) -> float:
        """One number, by default of the first model; NaN where it could not be measured. KeyError for no measure."""
        estimate = self.measures[label or next(iter(self.models))][measure]
        return math.nan if estimate is None else estimate.value

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """The report that an earlier evaluation wrote into `folder`."""
        known = json.loads((folder / REPORT_JSON).read_text(encoding="utf-8"))
        measures = {
            label: {name: None if plain is None else Estimate(**plain) for name, plain in of.items()}
            for label, of in known["measures"].items()
        }
        comparisons = [
            Comparison(one["standard"], one["model"], one["against"], WinRate(**one["result"]), one["swayed"])
            for one in known["comparisons"]
        ]
        return cls(known["models"], measures, comparisons, known["samples"], known["facts"], folder)

    # -- forms -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what could not be measured is None."""
        comparisons = [
            asdict(one) | {"count": one.result.count, "win_rate": _plain(one.result.estimate)}
            for one in self.comparisons
        ]
        measures = {label: {name: _plain(e) for name, e in of.items()} for label, of in self.measures.items()}
        known: dict[str, Any] = {"models": self.models, "facts": self.facts, "measures": measures}
        return known | {"comparisons": comparisons, "samples": self.samples}

    def to_json(self) -> str:
        """`to_dict` as strict JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Tables with 95 % intervals, and the samples."""
        lines = [f"# Evaluation of {' and '.join(self.models)}", ""]
        lines += [f"- {name}: {value}" for name, value in {**self.models, **self.facts}.items()]
        if rows := self.rows():
            lines += ["", *_markdown_table(["measure", *self.models], rows)]
        if self.comparisons:
            lines += ["", *_markdown_table(["comparison", "win rate", "won / tied / lost"], self.comparison_rows())]
        if self.samples:
            lines += ["", "## Responses"]
        for sample in self.samples:
            lines += ["", _quoted(sample["prompt"])]
            for label, (text, reward) in sample["responses"].items():
                scored = "" if reward is None else f" ({reward:.3g})"
                lines += ["", f"**{label}**{scored}", "", _fenced(text)]
        return "\n".join([*lines, "", "Intervals in brackets hold the true value 19 times of 20.", ""])

    def show(self, console: Console) -> None:
        """The tables and samples on the console."""
        console.facts(self.facts)
        if rows := self.rows():
            console.table(["", *self.models], rows)
        if self.comparisons:
            console.table(["", "win rate", "won / tied / lost"], self.comparison_rows())
        if self.samples:
            console.samples(self.samples)

    def write(self, folder: Path) -> None:
        """Write both files into `folder`."""
        (folder / REPORT_JSON).write_text(self.to_json(), encoding="utf-8")
        (folder / REPORT_MARKDOWN).write_text(self.to_markdown(), encoding="utf-8")
        self.folder = folder

    # -- cells -------------------------------------------------------------------------------------------------------

    def rows(self) -> list[list[str]]:
        """[measure, a cell per model], in the order in which they were measured."""
        names = dict.fromkeys(name for of in self.measures.values() for name in of)
        return [
            [name, *(cell(name, self.measures.get(label, {}).get(name)) for label in self.models)] for name in names
        ]

    def comparison_rows(self) -> list[list[str]]:
        """[who against whom by which standard, win rate, counts]."""
        rows = []
        for one in self.comparisons:
            result = one.result
            counts = f"{result.wins} / {result.ties} / {result.losses}"
            if one.swayed:
                counts += f", {one.swayed} swayed by the order"
            if result.missing:
                counts += f", {result.missing} without a verdict"
            rows.append([f"{one.standard}: {one.model} over {one.against}", cell("win_rate", result.estimate), counts])
        return rows


def cell(measure: str, estimate: Estimate | None) -> str:
    """`0.431 [0.382, 0.480]`; shares in percent."""
    if estimate is None:
        return ABSENT
    share = measure.rpartition("/")[2] in SHARES
    shown = [
        percent(x) if share else fit(x, 9, 3) for x in (estimate.value, estimate.low, estimate.high) if x is not None
    ]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def label_models(names: Sequence[str]) -> dict[str, str]:
    """label -> name: the last parts of each name, as many as tell them apart; `policy` says less than its run."""
    if len(set(names)) < len(names):
        return {f"{name} ({number})": name for number, name in enumerate(names, start=1)}
    parts = [PurePath(name.removesuffix("/policy") or name).parts for name in names]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(labels, names, strict=True))


def _plain(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    return None if estimate is None else asdict(estimate)


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; numbers are aligned to the right."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines]


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.strip().splitlines() or [""])


def _fenced(text: str) -> str:
    """A code block around any text: its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
