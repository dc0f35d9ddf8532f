"""Rows held out for evaluation, chosen by their prompts so that no prompt is on both sides."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import xxhash

from rlhf_ray.config.data import DataSection
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.spool import TableSpool
from rlhf_ray.errors import DataError


def with_held_out(
    load: Callable[[str | None], Loaded], section: DataSection, seed: int
) -> tuple[Loaded, Loaded | None]:
    """The training rows and the held-out ones, as data.eval_path or data.eval_fraction asks for; None without either.

    `load(path)` gives the rows at a path, those of the section for None.
    """
    loaded = load(None)
    if section.eval_path:
        return loaded, load(section.eval_path)
    if section.eval_fraction:
        return split(loaded, section, seed)
    return loaded, None


def split(loaded: Loaded, section: DataSection, seed: int) -> tuple[Loaded, Loaded]:
    """(training rows, about section.eval_fraction of the rows); both keep the order of the table.

    The prompts are put in an order drawn from `seed`, and the first of them that have as many rows are held out, one at
    least: a function of seed and prompts, whatever the order of the rows. Raises DataError where there is one prompt
    only.
    """
    chosen = held_out_prompts(prompt_hashes(loaded.table, seed), section.eval_fraction)
    if chosen.all():
        raise DataError(
            f"data.eval_fraction: all {len(chosen):,} rows have the same prompt, and rows of a prompt stay together. "
            "Give held-out rows with data.eval_path."
        )
    training, held_out = (_select(loaded, mask, section) for mask in (~chosen, chosen))
    return training, held_out


def held_out_prompts(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows to hold out, bool [rows]: those of the smallest hashes of prompts (uint64 [rows])."""
    _, prompt_of_row, rows_of_prompt = np.unique(hashes, return_inverse=True, return_counts=True)
    wanted = max(round(fraction * len(hashes)), 1)
    prompts = int(np.searchsorted(np.cumsum(rows_of_prompt), wanted)) + 1
    return prompt_of_row < prompts


def prompt_hashes(table: pa.Table, seed: int) -> np.ndarray:
    """A hash of every row's prompt tokens, uint64 [rows]; another one for another seed."""
    return np.fromiter(
        (xxhash.xxh64_intdigest(prompt.tobytes(), seed & 0xFFFFFFFFFFFFFFFF) for prompt in _prompts(table)),
        np.uint64,
        count=table.num_rows,
    )


def _prompts(table: pa.Table) -> Iterator[np.ndarray]:
    """The prompt tokens of every row of prompts, demonstrations or preference pairs."""
    column = next(name for name in ("prompt_tokens", "tokens", "chosen_tokens") if name in table.column_names)
    for batch in table.to_batches():
        tokens, offsets = batch[column].values.to_numpy(), batch[column].offsets.to_numpy()
        ends = (
            offsets[:-1] + batch["prompt_length"].to_numpy() if "prompt_length" in table.column_names else offsets[1:]
        )
        yield from (tokens[start:end] for start, end in zip(offsets[:-1], ends, strict=True))


def _select(loaded: Loaded, mask: np.ndarray, section: DataSection) -> Loaded:
    """The rows of the mask, part by part, so that a mapped table becomes a mapped one."""
    spool, first = TableSpool(loaded.table.schema, section.memory_mib, section.spill_folder), 0
    for batch in loaded.table.to_batches():
        spool.append(pa.Table.from_batches([batch.filter(pa.array(mask[first : first + batch.num_rows]))]))
        first += batch.num_rows
    table, folder = spool.finish()
    return Loaded(table, loaded.report.of(table.num_rows), folder)
