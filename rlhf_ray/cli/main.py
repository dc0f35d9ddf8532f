"""The `rlhf-ray` command. Commands import what they need when they run, so that `--help` answers at once."""

import sys
from typing import Any

import click

from rlhf_ray import __version__
from rlhf_ray.cli.config import config
from rlhf_ray.cli.data import data
from rlhf_ray.cli.demo import demo
from rlhf_ray.cli.doctor import doctor
from rlhf_ray.cli.eval import evaluate
from rlhf_ray.cli.export import export
from rlhf_ray.cli.pipeline import pipeline
from rlhf_ray.cli.replay import replay
from rlhf_ray.cli.reward_server import serve_reward
from rlhf_ray.cli.runs import runs
from rlhf_ray.cli.stages import dpo, ppo, reward, sft
from rlhf_ray.errors import RLHFRayError

INTERRUPTED = 130


class Main(click.Group):
    """The project's own errors become one message and an exit code; anything else is a bug and shows its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RLHFRayError as error:
            if ctx.params["debug"]:
                raise
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
@click.version_option(__version__, "-V", "--version", prog_name="rlhf-ray")
def main(debug: bool) -> None:
    """RLHF on Ray: SFT, reward model, DPO and PPO with vLLM rollouts, from a laptop to a cluster.

    Start with `rlhf-ray doctor`, then `rlhf-ray demo`.

    Exit codes: 0 done, 2 wrong configuration or data, 3 infrastructure lost (resume the run), 4 a weight sync failed
    its audit, 130 interrupted.
    """


for command in (
    demo,
    sft,
    reward,
    dpo,
    ppo,
    pipeline,
    runs,
    replay,
    evaluate,
    export,
    serve_reward,
    data,
    config,
    doctor,
):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
