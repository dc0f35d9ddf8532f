"""`rlhf-ray pipeline`: all stages of one configuration, those that are done and unchanged left out."""

from pathlib import Path
from typing import Any

import click

from rlhf_ray.cli.recipe import tiny_option, tiny_overrides
from rlhf_ray.cli.stages import AUTO, config_options
from rlhf_ray.errors import ConfigError
from rlhf_ray.tracking.record import PIPELINE_CONFIG


@click.command()
@config_options
@tiny_option
@click.option(
    "--from",
    "start",
    metavar="STAGE",
    help="Take the stages before this one as they are; run it and all later ones anew.",
)
@click.option(
    "--resume",
    metavar="RUN|auto",
    help="Folder of an earlier pipeline: go on with it, with its configuration. auto: what it does anyway.",
)
def pipeline(
    files: tuple[Path, ...], overrides: tuple[str, ...], tiny: bool, start: str | None, resume: str | None
) -> None:
    """SFT, reward model, DPO or PPO, and evaluation, each on what the one before it made.

    \b
    rlhf-ray pipeline --config configs/pipeline_llama2_7b_hh.yaml
    rlhf-ray pipeline --config configs/pipeline_llama2_7b_hh.yaml --tiny
    rlhf-ray pipeline --config mine.yaml ppo.learner.learning_rate=1e-6      # repeats what this changes, no more
    rlhf-ray pipeline --config mine.yaml --from ppo
    rlhf-ray pipeline --resume runs/mine

    The runs lie in <run.root>/<run.name>/<stage>; run.name is the file's name unless it is set. The same command again
    goes on where it ended: a stage that is finished and unchanged (its keys, and the content of its data and models) is
    skipped, an interrupted one resumes, one that changed moves to earlier/ and runs anew.

    All keys: rlhf-ray config schema pipeline.
    """
    from rlhf_ray.config.load import load_config
    from rlhf_ray.config.rlhf import RLHFConfig

    folder = Path(resume).expanduser().absolute() if resume not in (None, AUTO) else None
    if folder is not None and not files:
        files = (folder / PIPELINE_CONFIG,)
        if not files[0].is_file():
            raise ConfigError(f"{folder}: no pipeline to resume here (it has no {PIPELINE_CONFIG})")
    if not files:
        raise ConfigError("nothing to run: give --config FILE, or --resume RUN (see rlhf-ray pipeline --help)")
    if tiny:
        overrides = (*tiny_overrides(files, overrides, RLHFConfig), *overrides)
    config: Any = load_config(RLHFConfig, files, overrides)
    if folder is not None:
        config.run.root, config.run.name = str(folder.parent), folder.name
    if config.run.name is None:
        config.run.name = files[0].stem + ("-tiny" if tiny else "")
    from rlhf_ray.trainers.rlhf import RLHFTrainer

    RLHFTrainer(config).train(start)
