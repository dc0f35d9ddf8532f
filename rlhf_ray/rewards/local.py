"""Scoring in this process, for notebooks and for tests of rewards: no Ray, no sandbox, breakpoints work.

Functions go through the same binding and the same reading of answers as in a run. What a run's sandbox adds is missing:
a call that hangs, hangs; a call that ends its process ends this one.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from rlhf_ray.config.rewards import (
    EnsembleRewardSection,
    FunctionRewardSection,
    JudgeRewardSection,
    NeuralRewardSection,
    RemoteRewardSection,
    RewardComponent,
)
from rlhf_ray.errors import DataError
from rlhf_ray.rewards.calling import call_in_turn, call_together
from rlhf_ray.rewards.function import BoundFunction, bind_function
from rlhf_ray.rewards.outcome import Outcome
from rlhf_ray.rewards.resolve import FunctionSpec
from rlhf_ray.rewards.wire import Calls

Table = Mapping[str, Sequence[Any]]  # column -> values [samples]; `prompt` and `response` are among them


def score_section(name: str, section: RewardComponent, table: Table) -> list[Outcome]:
    """The outcome of every row for one component. Raises ConfigError when it cannot score at all."""
    if isinstance(section, FunctionRewardSection):
        return call_function(bind_function(FunctionSpec.of(section), table), table)
    if isinstance(section, NeuralRewardSection | EnsembleRewardSection):
        from rlhf_ray.rewards.ensemble import neural_reward

        return neural_reward(section).score(_arrow(_with_tokens(section, table)))
    return _ask_endpoint(name, section, table)


def call_function(bound: BoundFunction, table: Table) -> list[Outcome]:
    """Call a function on every row, in this process."""
    columns = [table[name] for name in ("prompt", "response", *bound.columns)]
    outcomes: list[Outcome | None] = [None] * len(table["prompt"])
    size = bound.spec.batch_size or 1
    starts = range(0, len(outcomes), size)
    _call(bound, [_calls(columns, range(start, min(start + size, len(outcomes)))) for start in starts], outcomes)
    again = [row for row, outcome in enumerate(outcomes) if outcome is None]
    for row in again:
        _call(bound, [_calls(columns, range(row, row + 1), alone=True)], outcomes)
    return [outcome if outcome is not None else Outcome() for outcome in outcomes]


def _calls(columns: Sequence[Sequence[Any]], rows: range, alone: bool = False) -> Calls:
    return Calls(rows, [column[rows.start : rows.stop] for column in columns], alone)


def _call(bound: BoundFunction, messages: Sequence[Calls], outcomes: list[Outcome | None]) -> None:
    """Call on the rows of all messages; a row that has to be called again, alone, is left None."""
    if not bound.is_async:
        for message in messages:
            call_in_turn(bound, message, outcomes.__setitem__)
        return
    waiting = iter(messages)

    async def next_calls() -> Calls | None:
        return next(waiting, None)

    async def run() -> None:
        await call_together(bound, next_calls, outcomes.__setitem__)

    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread runs an event loop already
        thread.submit(lambda: asyncio.run(run())).result()


def _ask_endpoint(name: str, section: RemoteRewardSection | JudgeRewardSection, table: Table) -> list[Outcome]:
    from rlhf_ray.rewards.judge import JudgeScorer
    from rlhf_ray.rewards.remote import RemoteScorer

    scorer: RemoteScorer | JudgeScorer
    if isinstance(section, RemoteRewardSection):
        scorer = RemoteScorer(name, section, list(table))
    else:
        scorer = JudgeScorer(name, section, list(table))
    try:
        return scorer.score(_arrow(table))
    finally:
        scorer.close()


def _arrow(table: Table) -> pa.Table:
    arrays = {}
    for name, column in table.items():
        try:
            arrays[name] = pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"score: column `{name}` holds what a run's table could not: {error}") from None
    return pa.table(arrays)


def _with_tokens(section: NeuralRewardSection | EnsembleRewardSection, table: Table) -> Table:
    """Add the tokens that our own reward models read, where the caller gave none: those of finished rollouts.

    A tokenizer with a chat template has written its special tokens into the prompts already, as in a run's data.
    """
    from rlhf_ray.hub import load_tokenizer
    from rlhf_ray.models.reward_stats import RewardStats

    models = section.models if isinstance(section, EnsembleRewardSection) else [section.model]
    own = [model for model in models if RewardStats.load(model) is not None]
    if not own or section.template is not None or "response_tokens" in table:
        return table
    tokenizer = load_tokenizer(own[0])
    special = not tokenizer.chat_template
    prompts = [tokenizer.encode(text, add_special_tokens=special) for text in table["prompt"]]
    prompts = [tokens[:-1] if special and tokens[-1:] == [tokenizer.eos_token_id] else tokens for tokens in prompts]
    responses = [tokenizer.encode(text, add_special_tokens=False) for text in table["response"]]
    ended = [[*tokens, tokenizer.eos_token_id] for tokens in responses]
    return {**table, "prompt_tokens": prompts, "response_tokens": ended}
