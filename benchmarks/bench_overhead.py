"""What orchestration costs: an iteration on Ray against the sum of its parts run bare.

    python benchmarks/bench_overhead.py

An iteration streams samples from the generator to the scorers and the reference, trains, publishes the weights and
proves their arrival. The parts (see bare_parts.py) are LLM.generate, the reference's forward passes with the reward
function, and the learner's PPO objective, each alone in a process without Ray. They take turns with the runs on Ray,
round by round; everything has the same number of threads. Weight sync, streaming, Arrow, metrics and threads that sleep
while they wait (bare ones spin) all count as overhead.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bare_parts import PARTS
from recipes import RECIPES
from report import report
from side import run_side
from workload import WORKLOADS, build

WARM_UP = 2  # iterations dropped
Seconds = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8, help=f"per run; the first {WARM_UP} are dropped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workload", choices=WORKLOADS, default="64x128")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    if args.iterations <= WARM_UP:
        parser.error(f"--iterations must be above {WARM_UP}: the first {WARM_UP} are dropped")
    load = os.getloadavg()[0]
    measured: dict[str, list[Seconds]] = {recipe: [] for recipe in args.recipes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        for number in range(args.rounds):
            for recipe in args.recipes:
                seconds = measure(recipe, args.workload, folder, args.threads, args.iterations)
                measured[recipe].append(seconds)
                print(f"round {number + 1}, {recipe}: " + ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()))
    print(f"{args.threads} threads per process of {os.cpu_count()} cores; load average {load:.2f} at the start")
    rows = [row(recipe, rounds) for recipe, rounds in measured.items()]
    report("overhead", rows, details={"threads": args.threads, "load_at_start": load, "rounds": measured})


def measure(recipe: str, workload: str, folder: Path, threads: int, iterations: int) -> Seconds:
    """Steady seconds of one round: the iteration on Ray, its phases, and each bare part."""
    common = ["--recipe", recipe, "--workload", workload, "--folder", folder]
    common += ["--iterations", str(iterations), "--threads", str(threads)]
    ray = run_side(sys.executable, "our_ppo.py", *common, threads=threads)
    shutil.rmtree(folder / "runs")
    seconds = {"iteration": steady(ray["seconds"])}
    for part in PARTS:
        bare = run_side(sys.executable, "bare_parts.py", "--part", part, *common, threads=threads)
        seconds[part] = steady(bare["seconds"])
    return seconds | {name.replace("seconds/", "on Ray: "): steady(values) for name, values in ray["phases"].items()}


def steady(seconds: list[float]) -> float:
    return statistics.median(seconds[WARM_UP:])


def row(recipe: str, rounds: list[Seconds]) -> dict[str, Any]:
    """Medians over the rounds; the overhead is taken round by round."""
    bare = [sum(seconds[part] for part in PARTS) for seconds in rounds]
    overhead = [100 * (seconds["iteration"] / parts - 1) for seconds, parts in zip(rounds, bare, strict=True)]
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in ("iteration", *PARTS)}
    return {
        "recipe": recipe,
        **{f"{name} s": value for name, value in medians.items()},
        "sum of parts s": statistics.median(bare),
        "overhead %": statistics.median(overhead),
        "least, greatest": f"{min(overhead):.1f}, {max(overhead):.1f}",
    }


if __name__ == "__main__":
    main()
