"""Collecting rollouts: every batch goes to all scorers and the reference the moment it is generated.

A generator that is lost takes with it only what it had not sent: that is sampled again, by the others and by its
successor. A batch whose tokens are gone with their node is sampled again as well. Tokens depend on the weights, the
seed and the sample's key alone, so what comes is what would have come.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_ray.actors.pool import ActorPool, Done, Lost, events
from rlhf_ray.rewards.failure import RewardFailure
from rlhf_ray.schema import KEY, REWARD_PREFIX
from rlhf_ray.trainers.rollouts import Batch, Rollouts
from rlhf_ray.trainers.sample_ledger import SampleLedger, Share

Progress = Callable[[int], None]


class RolloutCollector:
    """Runs generators, scorers and the reference side by side over one stream of batches."""

    def __init__(
        self,
        generators: ActorPool,
        scorers: Mapping[str, ActorPool],
        reference: ActorPool | None,
        samples_per_prompt: int,
        chunk_prompts: int | None,
    ) -> None:
        self.generators, self.scorers, self.reference = generators, scorers, reference
        self.samples_per_prompt, self.chunk_prompts = samples_per_prompt, chunk_prompts

    def collect(
        self,
        prompts: pa.Table,
        iteration: int,
        seed: int,
        *,
        samples_per_prompt: int | None = None,
        with_reference: bool = True,
        sampling: dict[str, Any] | None = None,
        progress: Progress = lambda samples: None,
    ) -> Rollouts:
        """Sample, score and reference all `prompts`; returns when the last answer is in. See `Generator.generate`."""
        per_prompt = samples_per_prompt or self.samples_per_prompt
        arguments = (iteration, per_prompt, seed, sampling, self.chunk_prompts)
        reference = self.reference if with_reference else None
        run = _Collection(self, SampleLedger(prompts, per_prompt, self.chunk_prompts), reference, arguments, progress)
        try:
            return run.finish()
        except BaseException:
            for pool in run.pools:
                pool.abandon()
            raise


class _Collection:
    """One collection in progress."""

    def __init__(
        self,
        collector: RolloutCollector,
        ledger: SampleLedger,
        reference: ActorPool | None,
        arguments: tuple[Any, ...],
        progress: Progress,
    ) -> None:
        """`arguments`: of `generate`, between the prompts and the wanted samples."""
        self.generators, self.scorers, self.reference = collector.generators, collector.scorers, reference
        self.ledger, self.arguments, self.progress = ledger, arguments, progress
        self.pools = [self.generators, *self.scorers.values(), *([reference] if reference is not None else [])]
        self.batches: dict[int, Batch] = {}  # number in order of arrival -> those that are not lost
        self.failures: dict[int, list[RewardFailure]] = {}
        self.arrived = 0
        self.started = time.monotonic()
        self.generated = self.started

    def finish(self) -> Rollouts:
        self._ask(self.ledger.deal(len(self.generators.replicas)))
        for pool, event in events(self.pools):
            if pool is self.generators:
                self._from_generator(event)
            else:
                self._from_scorer(event)
        self.ledger.check_complete()
        rollouts, generate = time.monotonic() - self.started, self.generated - self.started
        seconds = {"generate": generate, "score": rollouts - generate, "rollouts": rollouts}
        failures = [failure for number in self.batches for failure in self.failures.get(number, [])]
        return Rollouts(list(self.batches.values()), failures, seconds)

    def _ask(self, shares: Sequence[Share]) -> None:
        for share in shares:
            self.generators.submit(share.number, share.prompts, *self.arguments, share.samples)

    def _from_generator(self, event: Done | Lost) -> None:
        if isinstance(event, Lost):
            self._ask(self.ledger.missing(event.key, len(self.generators.replicas)))
            return
        self.ledger.receive(event.key, event.value)
        self.generated = time.monotonic()
        number, batch = self.arrived, Batch(event.refs[0], event.value)
        self.batches[number], self.arrived = batch, number + 1
        for name, pool in self.scorers.items():
            pool.submit((number, name), batch.samples)
        if self.reference is not None:
            self.reference.submit((number, None), batch.samples)
        self.progress(len(event.value["prompt_id"]))

    def _from_scorer(self, event: Done | Lost) -> None:
        number, component = event.key
        batch = self.batches.get(number)
        if batch is None:  # lost meanwhile: what still comes of it is of no use
            return
        if isinstance(event, Lost):
            del self.batches[number]
            self._ask(self.ledger.again(batch.meta, len(self.generators.replicas)))
            self.progress(-len(batch.meta["prompt_id"]))
        elif component is None:
            batch.reference = event.refs[0]
        else:
            table, failures = event.value
            for name in table.column_names[len(KEY) :]:
                values = table[name].to_numpy(zero_copy_only=False)
                batch.scores[name.removeprefix(REWARD_PREFIX)] = values.astype(np.float64)
            self.failures.setdefault(number, []).extend(failures)
