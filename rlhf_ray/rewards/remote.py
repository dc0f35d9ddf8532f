"""Rewards from an HTTP endpoint of your own. The protocol, one POST per batch of samples:

    request   {"samples": [{"prompt": "...", "response": "...", "<column>": ...}, ...]}
    response  {"rewards": [0.7, null, {"error": "why", "traceback": "optional"}, {"reward": 1, "parts": {...}}, ...]}

One reward per sample, in their order: a finite number, null where the component does not apply, or an object with
`error` where this sample has no reward; what becomes of it is decided by the component's `on_failure`. A reward with
`parts`, numbers or null by name, has each of them logged beside it. Samples carry the columns named in `columns`
besides prompt and response. A bearer token (`token_env`) comes in the Authorization header. An empty list of samples
is a first question whether the endpoint works, to be answered with an empty list.

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


def read_reward(entry: object, seconds: float) -> Outcome:
    """One entry of `rewards`; `seconds`: what its request took."""
    if isinstance(entry, dict) and isinstance(entry.get("error"), str):
        failure = CallFailure("raised", f"answered with an error: {entry['error']}", str(entry.get("traceback", "")))
        return Outcome(failure=failure, seconds=seconds)
    reward, parts = entry, {}
    if isinstance(entry, dict) and "reward" in entry and isinstance(entry.get("parts", {}), dict):
        reward, parts = entry["reward"], entry.get("parts", {})
    try:
        value = _number(reward, "")
        numbers = {name: _number(part, f" for `{name}`") for name, part in parts.items()}
    except RequestFailed as wrong:
        return Outcome(failure=wrong.failure(), seconds=seconds)
    return Outcome(value=value, seconds=seconds, parts=numbers)


def _number(value: object, what: str) -> float | None:
    """A finite number or None. Raises RequestFailed."""
    if value is None:
        return None
    shown = excerpt(json.dumps(value, ensure_ascii=False))
    if not isinstance(value, (int, float)):
        raise RequestFailed("wrong_type", f'answered {shown}{what}, which is no number, null or {{"error": "..."}}')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        message = f"answered {shown}{what}; a reward must be finite (null where it does not apply)"
        raise RequestFailed("not_finite", message)
    return number


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
