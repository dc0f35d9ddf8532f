"""Rewards from an HTTP endpoint of your own. The protocol, one POST per batch of samples:

    request   {"samples": [{"prompt": "...", "response": "...", "<column>": ...}, ...]}
    response  {"rewards": [0.7, null, {"error": "why", "traceback": "optional"}, ...]}

One reward per sample, in their order: a finite number, null where the component does not apply, or an object with
`error` where this sample has no reward; what becomes of it is decided by the component's `on_failure`. Samples carry
the columns named in `columns` besides prompt and response. A bearer token (`token_env`) comes in the Authorization
header. An empty list of samples is a first question whether the endpoint works, to be answered with an empty list.

Statuses: 200 with the above; 400, 413 or 422 for samples that cannot be scored (the batch is halved until only the
culprits fail); 429 or 503, with Retry-After where known, when busy; 401 or 403 for a wrong token. `rlhf-ray
serve-reward` is a server that follows it.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rlhf_ray.config.rewards import RemoteRewardSection
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.endpoint import Endpoint, Rows
from rlhf_ray.rewards.http import RequestFailed, excerpt
from rlhf_ray.rewards.outcome import CallFailure, Outcome


class RemoteScorer:
    """One remote component. Raises ConfigError for columns that the samples do not have or an absent token."""

    def __init__(self, name: str, section: RemoteRewardSection, columns: Sequence[str]) -> None:
        """`columns`: names of the sample table's columns."""
        self._where, self._section = f"rewards.{name}", section
        self._columns = ("prompt", "response", *section.columns)
        if missing := [column for column in self._columns if column not in columns]:
            raise ConfigError(
                f"{self._where}.columns: the samples have no column {_names(missing)}; they have {_names(columns)}."
            )
        self._endpoint = Endpoint(self._where, section)

    def start(self) -> None:
        """Ask the endpoint for no rewards. Raises ConfigError or InfrastructureError when it does not answer so."""
        self._endpoint.probe(lambda deadline: self._ask([], deadline))

    def score(self, table: pa.Table) -> list[Outcome]:
        """The outcome of every row of a `SAMPLES` table, in its order."""
        samples = self._samples(table)

        async def ask(rows: Rows, deadline: float) -> list[Outcome]:
            return await self._ask([samples[row] for row in rows], deadline)

        return self._endpoint.outcomes(len(samples), self._section.batch_size, ask)

    def close(self) -> None:
        """Close the connections; the next `score` would open others."""
        self._endpoint.close()

    def _samples(self, table: pa.Table) -> list[dict[str, Any]]:
        """The rows as the request has them. Raises ConfigError for a column that JSON cannot carry."""
        cells = {name: table.column(name).to_pylist() for name in self._columns}
        for name in self._section.columns:
            try:
                json.dumps(cells[name], allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{self._where}.columns: column `{name}` cannot be sent as JSON ({error}). Leave it out, or turn "
                    "it into text or finite numbers when the data is prepared."
                ) from None
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]

    async def _ask(self, samples: list[dict[str, Any]], deadline: float) -> list[Outcome]:
        started = asyncio.get_running_loop().time()
        answer = await self._endpoint.client.post(self._section.url, {"samples": samples}, deadline)
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list) or len(rewards) != len(samples):
            found = f"{len(rewards)} rewards" if isinstance(rewards, list) else "no list `rewards`"
            shown = excerpt(json.dumps(answer, ensure_ascii=False))
            message = f"was sent {len(samples)} samples and answered with {found}: {shown}"
            raise RequestFailed("wrong_type", message, answered=True)
        seconds = asyncio.get_running_loop().time() - started
        return [read_reward(reward, seconds) for reward in rewards]


def read_reward(reward: object, seconds: float) -> Outcome:
    """One entry of `rewards`; `seconds`: what its request took."""
    if reward is None:
        return Outcome(seconds=seconds)
    if isinstance(reward, dict) and isinstance(reward.get("error"), str):
        failure = CallFailure("raised", f"answered with an error: {reward['error']}", str(reward.get("traceback", "")))
        return Outcome(failure=failure, seconds=seconds)
    shown = excerpt(json.dumps(reward, ensure_ascii=False))
    if not isinstance(reward, (int, float)):
        message = f'answered {shown}, which is no number, null or {{"error": "..."}}'
        return Outcome(failure=CallFailure("wrong_type", message), seconds=seconds)
    try:
        value = float(reward)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        message = f"answered {shown}; a reward must be finite (null where it does not apply)"
        return Outcome(failure=CallFailure("not_finite", message), seconds=seconds)
    return Outcome(value=value, seconds=seconds)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
