"""`rlhf-ray export`: a trained model in the forms that other programs load."""

from pathlib import Path

import click

from rlhf_ray.export import FORMATS


@click.command(epilog="\b\nFormats:\n" + "\n".join(f"  {name:13} {what}" for name, what in FORMATS.items()))
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option(
    "--format", "-f", "formats", multiple=True, default=("safetensors",), show_default=True, help="Again for several."
)
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
@click.option("--max-shard-size", default="5GB", show_default=True, help="Largest safetensors file.")
@click.option("--revision", help="Branch, tag or commit of a model on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
def export(
    model: str,
    formats: tuple[str, ...],
    output: Path,
    max_shard_size: str,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Export the policy or reward model of a run, a saved model, or a PEFT adapter.

    \b
    rlhf-ray export runs/ppo-20260101-120000 -o exported
    rlhf-ray export runs/ppo-20260101-120000 -f onnx -f onnx-int8 -o exported
    rlhf-ray export runs/reward-20260101-120000/policy -f torch-export -o exported

    Each form is loaded back by its own runtime and compared with the source on real token sequences; past its
    tolerance the export fails and leaves nothing behind. DIR also gets a model card and export.json.
    """
    from rlhf_ray.export.api import export_model

    export_model(
        model,
        formats,
        output,
        max_shard_size=max_shard_size,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
