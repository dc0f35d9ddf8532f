"""A long run under faults: does anything grow? Memory, descriptors and threads of every actor, the object store's use.

    python benchmarks/soak.py                                   # 300 iterations, a death every 20
    python benchmarks/soak.py --iterations 60 --every 10

The faults of `fault_run.DEATHS` come in an order drawn from the seed. Samples are taken before every iteration, also
before replayed ones. The trend is the median of all slopes between two samples (Theil and Sen) after the warm-up, and
without the first samples of each life of an actor, which loads and warms up then. Something is flat if that trend adds
less to it over the whole run than FLAT allows. Writes soak.json, .png and .html; exit code 1 when something grows.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from fault_run import DEATHS, faulty_ppo, mark_processes
from panels import Panel, draw_panels
from processes import holdings
from report import RESULTS, report

from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.fault_schedule import FaultSchedule, seeded_hits
from rlhf_ray.trainers.ppo import PPOTrainer

WARM_UP = 0.2  # share of the samples that the trend leaves out at the beginning
KV_CACHE_GIB = 1 / 64  # small: that its pages are touched one after the other is growth, and no leak
SETTLING = 10  # samples at the beginning of each life that it leaves out
#: growth over a run that counts as none: the larger of an amount, and a share of the median
FLAT = {"memory MiB": (8.0, 0.02), "descriptors": (3.0, 0.0), "threads": (3.0, 0.0)}
TITLES = {"memory MiB": "resident memory, MiB", "descriptors": "file descriptors", "threads": "threads"}


class Sampler(Callback):
    """Samples before every iteration what the processes hold and the object store has in use."""

    def __init__(self, mark: str) -> None:
        self.mark, self.count = mark, 0
        self.series: defaultdict[str, defaultdict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        self.lives: defaultdict[str, dict[int, int]] = defaultdict(dict)

    def on_iteration_start(self, iteration: int) -> None:
        for actor, holding in holdings(self.mark).items():
            self.series["memory MiB"][actor][self.count] = holding.memory_mib
            self.series["descriptors"][actor][self.count] = holding.descriptors
            self.series["threads"][actor][self.count] = holding.threads
            self.lives[actor][self.count] = holding.pid
        self.series["memory MiB"]["object store"][self.count] = object_store_mib()
        self.count += 1

    def values(self, what: str, whose: str) -> np.ndarray:
        """One value per sample; NaN where there is none."""
        known = self.series[what][whose]
        return np.array([known.get(number, np.nan) for number in range(self.count)])

    def curve(self, what: str, whose: str) -> list[float | None]:
        """The same for JSON."""
        return [None if np.isnan(value) else float(value) for value in self.values(what, whose)]

    def settled(self, whose: str) -> np.ndarray:
        """Bool [samples]: past the warm-up of the run and of this life."""
        lives = [self.lives[whose].get(number, 0) for number in range(self.count)]
        ages = np.zeros(self.count, int)
        for number in range(1, self.count):
            ages[number] = ages[number - 1] + 1 if lives[number] == lives[number - 1] else 0
        return (np.arange(self.count) >= WARM_UP * self.count) & (ages >= SETTLING)


def object_store_mib() -> float:
    """What the objects that somebody still refers to take in the object store."""
    total, free = (
        resources["object_store_memory"] for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return (total - free) / 2**20


def trend(values: np.ndarray, use: np.ndarray) -> float:
    """Theil and Sen's slope per sample; 0 where there are not two samples."""
    places = np.flatnonzero(use & np.isfinite(values))
    if len(places) < 2:
        return 0.0
    earlier, later = np.triu_indices(len(places), k=1)
    rises = values[places[later]] - values[places[earlier]]
    return float(np.median(rises / (places[later] - places[earlier])))


def rows(sampler: Sampler) -> list[dict[str, Any]]:
    """What each thing is at the end, how it grows, and the verdict."""
    found = []
    for what, (amount, share) in FLAT.items():
        for whose in sorted(sampler.series[what]):
            values, use = sampler.values(what, whose), sampler.settled(whose)
            slope, middle = trend(values, use), float(np.nanmedian(values))
            growth = slope * sampler.count * (1 - WARM_UP)
            found.append(
                {
                    "whose": whose,
                    "what": what,
                    "median": middle,
                    "last": float(values[np.isfinite(values)][-1]),
                    "per 100 iterations": 100 * slope,
                    "samples": int((use & np.isfinite(values)).sum()),
                    "verdict": "flat" if growth < max(amount, share * middle) else "GROWS",
                }
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--every", type=int, default=20, help="iterations from one fault to the next; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the faults")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    sampler = Sampler(mark_processes())
    hits = seeded_hits(args.seed, args.iterations - 1, args.every, DEATHS) if args.every else []
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        config = faulty_ppo(folder, "tiny", args.iterations, generation={"cpu_kv_cache_gib": KV_CACHE_GIB})
        with FaultSchedule(folder / "faults", hits) as schedule:
            result = PPOTrainer(config, callbacks=[schedule, sampler]).train()
        if schedule.pending or result.iterations != args.iterations:
            raise RuntimeError(f"{result.iterations} iterations done; not met: {', '.join(map(str, schedule.pending))}")
    table = rows(sampler)
    series = {what: {whose: sampler.curve(what, whose) for whose in sorted(sampler.series[what])} for what in FLAT}
    report("soak", table, args.out, {"faults": [str(hit) for hit in hits], "samples": sampler.count, "series": series})
    panels = [Panel(TITLES[what], curves) for what, curves in series.items()]
    draw_panels(panels, table, args.out / "soak", f"{args.iterations} iterations, {len(hits)} deaths")
    return int(any(row["verdict"] != "flat" for row in table))


if __name__ == "__main__":
    sys.exit(main())
