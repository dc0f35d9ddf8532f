"""Real token sequences to compare models on: the run's own rollouts, else English text that every machine has."""

import argparse
import csv
import decimal
import doctest
import heapq
import json
import logging
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rlhf_ray.errors import ConfigError, DataError

COUNT, MAX_TOKENS = 13, 128
_MODULES = (argparse, csv, decimal, doctest, heapq, json, logging, textwrap)


@dataclass(frozen=True)
class Sequences:
    """Token ids, one int64 array per sequence, and where they are from."""

    tokens: list[np.ndarray]
    origin: str

    @property
    def total(self) -> int:
        return sum(map(len, self.tokens))


def choose_sequences(run: Path | None, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Sequences:
    """Up to `COUNT` sequences of at most `MAX_TOKENS` tokens (and of at most `context`, the model's own limit).

    Raises DataError when the tokenizer turns text into nothing.
    """
    rollouts = sorted((run / "rollouts").glob("*.parquet")) if run is not None else []
    if rollouts:
        table = pq.read_table(rollouts[-1], columns=["prompt_tokens", "response_tokens"]).slice(0, COUNT)
        rows = [row["prompt_tokens"] + row["response_tokens"] for row in table.to_pylist()]
        origin = f"rollouts of the run ({rollouts[-1].name})"
    else:
        rows = [tokenizer(text)["input_ids"] for text in _texts()]
        origin = "docstrings of Python's standard library"
    chosen = [np.array(row[: min(MAX_TOKENS, context or MAX_TOKENS)], dtype=np.int64) for row in rows]
    chosen = [sequence for sequence in chosen if len(sequence) >= 2]
    if not chosen:
        raise DataError(f"no sequence of two tokens or more to compare on in the {origin}: is its tokenizer whole?")
    return Sequences(chosen, origin)


def given_sequences(sequences: Sequence[Sequence[int]]) -> Sequences:
    """Sequences of token ids that the caller brings. Raises ConfigError for one of less than two tokens."""
    if not sequences or min(map(len, sequences)) < 2:
        raise ConfigError("sequences: give at least one, each of two token ids or more")
    return Sequences([np.array(sequence, dtype=np.int64) for sequence in sequences], "the caller")


def _texts() -> list[str]:
    """Paragraphs of different lengths, the same on every machine with this Python."""
    paragraphs = [p for module in _MODULES for p in (module.__doc__ or "").split("\n\n") if len(p.split()) >= 4]
    return paragraphs[:: max(1, len(paragraphs) // COUNT)][:COUNT]
