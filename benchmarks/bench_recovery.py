"""What the death of each kind of actor costs a run: seconds until it is noticed, until it is made good, and in all.

    python benchmarks/bench_recovery.py                     # a 4.5M-parameter model, three rounds
    python benchmarks/bench_recovery.py --size tiny --rounds 1

One run, in which the deaths of `fault_run.DEATHS` take turns, GAP iterations apart. "noticed" counts from the SIGKILL
to the line in failures.jsonl, "recovered" from there to the run's own note of the recovery, "delay" is what the
iterations from the death to the next but one took longer than undisturbed ones of the same run: replays count.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fault_run import DEATHS, SIZES, faulty_ppo, mark_processes
from report import RESULTS, report

from rlhf_ray.trainers.callbacks import Callback
from rlhf_ray.trainers.failure_log import FAILURES_FILE
from rlhf_ray.trainers.fault_schedule import FaultSchedule, Hit
from rlhf_ray.trainers.ppo import PPOTrainer

WARM_UP, GAP, AFFECTED = 4, 5, 3  # iterations: dropped, from one death to the next, that a death may prolong
EVERY = 2  # iterations from checkpoint to checkpoint
Line = dict[str, Any]


class Clock(Callback):
    """When each iteration began for the first time, in monotonic seconds."""

    def __init__(self) -> None:
        self.begun: dict[int, float] = {}

    def on_iteration_start(self, iteration: int) -> None:
        self.begun.setdefault(iteration, time.monotonic())

    def seconds(self, first: int, count: int) -> float:
        """From the beginning of iteration `first` to that of the iteration `count` later."""
        return self.begun[first + count] - self.begun[first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="4.5M")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    mark_processes()
    places = itertools.count(WARM_UP, GAP)
    hits = [replace(death, iteration=next(places)) for _ in range(args.rounds) for death in DEATHS]
    with tempfile.TemporaryDirectory(prefix="recovery-") as temporary:
        folder, clock, iterations = Path(temporary), Clock(), next(places)
        config = faulty_ppo(folder, args.size, iterations, checkpoint={"every": EVERY})
        with FaultSchedule(folder / "faults", hits) as schedule:
            run = PPOTrainer(config, callbacks=[schedule, clock]).train().folder
        if schedule.pending:
            raise RuntimeError(f"not met: {', '.join(map(str, schedule.pending))}")
        fired = {hit: schedule.marker(hit).stat().st_mtime for hit in hits}
        lines = [json.loads(line) for line in (run / FAILURES_FILE).read_text().splitlines()]
    calm = undisturbed(clock, hits, iterations)
    measured = {hit: measure(hit, fired[hit], lines, clock, calm) for hit in hits}
    rows = [row(death, [measured[hit] for hit in hits if same(hit, death)]) for death in DEATHS]
    details = {"size": args.size, "rounds": args.rounds, "undisturbed_iteration_s": calm, "failures": lines}
    print(f"an undisturbed iteration takes {calm:.2f} s")
    report("recovery", rows, args.out, details)


def undisturbed(clock: Clock, hits: list[Hit], iterations: int) -> float:
    """Median seconds of the iterations that are neither hit nor right after a hit."""
    hit = {hit.iteration + later for hit in hits for later in range(AFFECTED)}
    calm = [number for number in range(WARM_UP, iterations) if number not in hit]
    return statistics.median(clock.seconds(number, 1) for number in calm)


def measure(hit: Hit, fired: float, lines: list[Line], clock: Clock, calm: float) -> dict[str, float]:
    """The three spans of one death, in seconds."""
    times = [(datetime.fromisoformat(line["time"]).timestamp(), line) for line in lines]
    names = (hit.actor, f"{hit.actor.partition('/')[0]}/all")  # ranks may be known to be lost, and not which
    after = [(when, line) for when, line in times if line["actor"] in names and when >= fired]
    return {
        "noticed s": next(when for when, line in after if line["cause"]) - fired,
        "recovered s": next(line["recovery_s"] for _, line in after if line["recovery_s"] is not None),
        "delay s": clock.seconds(hit.iteration, AFFECTED) - AFFECTED * calm,
    }


def same(hit: Hit, death: Hit) -> bool:
    return (hit.actor, hit.phase) == (death.actor, death.phase)


def row(death: Hit, rounds: list[dict[str, float]]) -> Line:
    """Medians over the rounds, and the longest delay."""
    medians = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    longest = max(times["delay s"] for times in rounds)
    return {"dies": death.actor, "at": death.phase, "deaths": len(rounds), **medians, "longest delay s": longest}


if __name__ == "__main__":
    main()
