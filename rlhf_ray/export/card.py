"""The model card: README.md with the front matter that hubs read, and what the run recorded of the model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.export.record import STAGES, RunRecord
from rlhf_ray.export.report import ExportReport
from rlhf_ray.export.source import Source
from rlhf_ray.export.usage import usage
from rlhf_ray.hub import looks_like_path

CARD = "README.md"
#: Forms that are published as folders of their own, where the card belongs beside the weights.
PUBLISHED = ("safetensors", "adapter")


def write_cards(folder: Path, source: Source, record: RunRecord | None, report: ExportReport) -> None:
    """README.md in the export's folder and in each form that a hub takes as it is."""
    (folder / CARD).write_text(card(source, record, report, {name: name for name in report.formats}), encoding="utf-8")
    for name in PUBLISHED:
        if name in report.formats:
            (folder / name / CARD).write_text(card(source, record, report, {name: "."}), encoding="utf-8")


def card(source: Source, record: RunRecord | None, report: ExportReport, folders: Mapping[str, str]) -> str:
    """The whole text. `folders`: the forms that it is about -> where each lies, seen from the card."""
    title = record.name if record else source.given.rstrip("/").rsplit("/", 1)[-1]
    parts = [_front_matter(source, record, folders), f"# {title}\n", _introduction(source, record)]
    if record is not None:
        parts += [_training(record), _results(record), _syncs(record)]
    parts += [_forms(report, folders), usage(source.kind, folders), _versions(record, report)]
    if record is not None:
        parts.append(f"<details><summary>Configuration</summary>\n\n```yaml\n{record.config_text}```\n\n</details>\n")
    return "\n".join(part for part in parts if part)


def _front_matter(source: Source, record: RunRecord | None, folders: Mapping[str, str]) -> str:
    stage = record.stage if record else None
    tags = ["rlhf-ray", *([stage] if stage else []), *(["lora"] if source.adapter is not None else [])]
    matter: dict[str, Any] = {
        "library_name": "peft" if list(folders) == ["adapter"] else "transformers",
        "pipeline_tag": "text-generation" if source.kind == "policy" else "text-classification",
        "tags": tags,
    }
    if record is not None:
        if hub_name(record.base):
            matter["base_model"] = record.base
        if hub_name(path := str(record.config["data"]["path"])):
            matter["datasets"] = [path]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n"


def _introduction(source: Source, record: RunRecord | None) -> str:
    if record is None:
        return f"A {source.kind}, exported from `{_short(source.given)}` by rlhf-ray.\n"
    stage = STAGES.get(record.stage or "", "training")
    return f"A {source.kind}: `{_short(record.base)}` after {stage} with rlhf-ray.\n"


def _training(record: RunRecord) -> str:
    config, data = record.config, record.config["data"]
    facts: dict[str, object] = {
        "stages": " → ".join(_lineage(record)),
        "data": _data(data),
        "held-out data": _short(str(data["eval_path"])) if data.get("eval_path") else "none",
        "trained": _trained(config["model"]),
        "seed": config["run"]["seed"],
        "steps": record.metrics[-1].get("step", 0) if record.metrics else 0,
    }
    if record.environment:
        facts["started"] = record.environment["started"]
        facts["machine"] = f"{record.environment['platform']}, {record.environment['cores']} cores"
    for name, section in config.get("rewards", {}).items():
        facts[f"reward `{name}`"] = f"{section['type']}, weight {section.get('weight', 1.0):g}"
    return "## Training\n\n" + _table(["", ""], [[name, str(value)] for name, value in facts.items()])


def _lineage(record: RunRecord) -> Iterator[str]:
    """The start and each stage since, as far as the runs' folders are still there."""
    parent = record.parent
    if parent is None:
        yield f"`{_short(record.base)}`"
    else:
        yield from _lineage(parent)
    yield f"{STAGES.get(record.stage or '', 'training')} (`{record.name}`)"


def _data(data: Mapping[str, Any]) -> str:
    path = str(data["path"])
    keys = ("split", "subset", "max_samples") if hub_name(path) else ("max_samples",)
    return ", ".join([_short(path), *(f"{key} {data[key]}" for key in keys if data.get(key) is not None)])


def _trained(model: Mapping[str, Any]) -> str:
    lora = model.get("lora")
    if not lora:
        return "all weights"
    quantised = f" on a {model['quantization']} base" if model.get("quantization") else ""
    return f"LoRA, r {lora['r']}, alpha {lora['alpha']:g}{quantised}"


def _results(record: RunRecord) -> str:
    metrics = record.telling_metrics()
    if not metrics:
        return ""
    rows = [[f"`{name}`", f"{first:.4g}", f"{last:.4g}"] for name, (first, last) in sorted(metrics.items())]
    return "## Results\n\n" + _table(["metric", "first", "last"], rows)


def _syncs(record: RunRecord) -> str:
    syncs = record.syncs()
    if syncs is None:
        return ""
    return (
        "## Weight syncs\n\n"
        f"Version {syncs.version} was the last of the weights that the generators sampled with; each sync was confirmed"
        " tensor by tensor. On the tokens of "
        f"{syncs.iterations} iterations, the generators' log-probs differed from the learner's by"
        f" {syncs.mean_gap:.2g} nats on average and by {syncs.largest_gap:.2g} at most.\n"
    )


def _forms(report: ExportReport, names: Collection[str]) -> str:
    rows = [row for row in report.rows() if row[0] in names]
    return (
        "## Exports\n\nEach was loaded back and compared with the model that it was made from, on "
        f"{report.compared_on}.\n\n" + _table(report.titles(), rows)
    )


def _versions(record: RunRecord | None, report: ExportReport) -> str:
    exported = report.environment["packages"]
    trained = record.environment.get("packages", {}) if record else {}
    rows = [[name, trained.get(name, "-"), exported.get(name, "-")] for name in sorted({*trained, *exported})]
    return "## Versions\n\n" + _table(["package", "trained with", "exported with"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells keep to themselves."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def hub_name(name: str) -> bool:
    """Whether a hub that reads the card can follow this name: `owner/name`, and no path on this machine."""
    return name.count("/") == 1 and not Path(name).suffix and not looks_like_path(name) and not Path(name).exists()


def _short(name: str) -> str:
    """A hub name as it is; of a path its last two parts, for cards travel and folders do not."""
    return name if hub_name(name) else "/".join(Path(name).parts[-2:])
