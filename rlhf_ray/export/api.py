"""`export_model`: find the source, write the forms, load each back, compare, describe; all of it or nothing."""

import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from rlhf_ray.errors import ConfigError
from rlhf_ray.export.card import write_cards
from rlhf_ray.export.formats import Format, Loaded, make_formats
from rlhf_ray.export.quiet import quiet
from rlhf_ray.export.record import RunRecord
from rlhf_ray.export.report import ExportReport, Written
from rlhf_ray.export.sequences import Sequences, choose_sequences, given_sequences
from rlhf_ray.export.source import Source
from rlhf_ray.export.verify import Outputs, check, compare, model_outputs
from rlhf_ray.tracking.console import Console
from rlhf_ray.tracking.record import environment


def export_model(
    model: str | Path,
    format: str | Sequence[str] = "safetensors",
    output_path: str | Path = "export",
    *,
    quantization: Literal["int8"] | None = None,
    max_shard_size: str = "5GB",
    sequences: Sequence[Sequence[int]] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> ExportReport:
    """Write a model in one or several forms, each proven against its source.

    Args:
        model: folder of a run, of a saved model or of a PEFT adapter; or a hub name.
        format: one or several of `rlhf_ray.export.FORMATS`.
        output_path: a folder that is new or empty; each form gets a folder of its name in it, beside README.md (the
            model card) and export.json.
        quantization: "int8" is another way to ask for onnx-int8 in place of onnx.
        max_shard_size: largest safetensors file, such as "5GB" or "500MB".
        sequences: token ids to compare on; default: the run's own rollouts, else English text.
        revision, trust_remote_code: as for `model` in a configuration.

    Raises:
        ConfigError: the model, a format or the output is wrong, or this model cannot have that form.
        AuditError: a form is further from its source than its tolerance. Nothing is kept.
    """
    asked = [format] if isinstance(format, str) else list(dict.fromkeys(format))
    if quantization is not None:
        asked = [_quantized(name, quantization) for name in asked]
    formats, folder, console = make_formats(asked), Path(output_path).expanduser(), console or Console()
    if not formats:
        raise ConfigError("export: name at least one format")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; choose another for the export, or remove it")
    source = Source.find(model, revision, trust_remote_code)
    for form in formats.values():
        form.check(source)
    console.stage("Export", source.given)
    aside = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with quiet():
            chosen, expected = _write(source, formats, aside, max_shard_size, sequences, console)
            written = {
                name: _verify(name, form, source, aside / name, chosen, expected, console)
                for name, form in formats.items()
            }
        report = ExportReport(folder, source.given, source.kind, _describe(chosen), written, environment())
        report.save(aside)
        write_cards(aside, source, RunRecord.read(source.run) if source.run else None, report)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    console.facts({"model": f"{source.kind}, {source.model}", "compared on": report.compared_on})
    console.table(report.titles(), report.rows())
    console.note(f"written to {folder} (model card: README.md, figures: export.json)")
    return report


def _quantized(name: str, quantization: str) -> str:
    if name not in ("onnx", "onnx-int8") or quantization != "int8":
        raise ConfigError(f"export: {name} cannot be quantised to {quantization}; onnx can, to int8")
    return "onnx-int8"


def _write(
    source: Source,
    formats: dict[str, Format],
    folder: Path,
    max_shard_size: str,
    sequences: Sequence[Sequence[int]] | None,
    console: Console,
) -> tuple[Sequences, Outputs]:
    """Write all forms from one loaded source, which is let go of before any of them is loaded back.

    Returns the sequences to compare on, and the source's own outputs for them.
    """
    with console.progress("loading the source"):
        loaded = Loaded(source, max_shard_size)
        if sequences is not None:
            chosen = given_sequences(sequences)
        else:
            context = getattr(loaded.model.config, "max_position_embeddings", None)
            chosen = choose_sequences(source.run, loaded.tokenizer, context)
        expected = model_outputs(loaded.model, source.kind, chosen.tokens)
    for name, form in formats.items():
        (folder / name).mkdir(parents=True)
        with console.progress(f"writing {name}"):
            form.write(loaded, folder / name)
    return chosen, expected


def _verify(
    name: str, form: Format, source: Source, folder: Path, chosen: Sequences, expected: Outputs, console: Console
) -> Written:
    """Load one form back and compare it. Raises AuditError where it is not its source."""
    with console.progress(f"loading {name} back"):
        gap = compare(expected, form.outputs(source, folder, chosen.tokens))
    check(name, gap, form.tolerance)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    runtime = ", ".join(f"{package} {metadata.version(package)}" for package in form.runtime)
    return Written(runtime, gap, form.tolerance, size)


def _describe(sequences: Sequences) -> str:
    return f"{len(sequences.tokens)} sequences, {sequences.total} tokens: {sequences.origin}"
