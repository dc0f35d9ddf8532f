"""`rlhf-ray serve-reward`: one reward component of a configuration, behind HTTP."""

import os
import signal
from pathlib import Path

import click

from rlhf_ray.cli.stages import config_options
from rlhf_ray.errors import ConfigError


@click.command("serve-reward")
@config_options
@click.option("--name", required=True, help="The component: its key under `rewards`.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8900, show_default=True, help="Port to listen at; 0: any free one.")
@click.option("--column", "columns", multiple=True, help="A column that samples bring besides prompt and response.")
@click.option("--token-env", help="Environment variable that holds the bearer token to ask for.")
def serve_reward(
    files: tuple[Path, ...],
    overrides: tuple[str, ...],
    name: str,
    host: str,
    port: int,
    columns: tuple[str, ...],
    token_env: str | None,
) -> None:
    """Serve one reward component of a PPO configuration over HTTP, for components of type `remote` to ask.

    \b
    rlhf-ray serve-reward --config configs/ppo.yaml --name quality
    rlhf-ray ppo --config mine.yaml rewards.quality.url=http://127.0.0.1:8900/score

    Raw values are served: weight, gate, normalisation, clip and on_failure are the asking side's. A component that
    reads columns of the samples needs each as --column, and the asking one needs them under `columns`.
    """
    from rlhf_ray.actors.scorer import make_scorer
    from rlhf_ray.config import PPOConfig
    from rlhf_ray.config.load import load_config
    from rlhf_ray.rewards.reward_server import RewardServer

    rewards = load_config(PPOConfig, files, overrides).rewards
    if name not in rewards:
        raise ConfigError(f"--name {name}: the configuration has no such component; it has {', '.join(rewards)}")
    token = os.environ.get(token_env, "") if token_env else None
    if token == "":
        raise ConfigError(f"--token-env {token_env}: this environment variable is not set")
    # Under `fail` a scorer leaves the rows after a failure empty, which would read as "does not apply".
    section = rewards[name].model_copy(update={"on_failure": "skip_sample"})
    scorer = make_scorer(name, section, ["prompt", "response", *columns])
    scorer.ready()
    try:
        server = RewardServer((host, port), name, scorer.score, columns, token)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error}. Choose another --port.") from None
    # Containers end with SIGTERM, and a shell's background jobs start with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    click.echo(f"serving {name} at {server.url} (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("stopped")
    finally:
        server.server_close()
