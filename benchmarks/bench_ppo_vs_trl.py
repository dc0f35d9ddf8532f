"""PPO here against TRL's PPO: the same task, interleaved in one run.

    python benchmarks/bench_ppo_vs_trl.py --make-env     # once: the peer's environment in .venv-trl
    python benchmarks/bench_ppo_vs_trl.py                # 3 rounds, about 25 minutes on two cores

In every round each workload runs on TRL, then here twice: `like-for-like` (float32, a critic of its own) and
`recommended` (bfloat16, the value as a head on the policy's backbone). Each run has processes of its own, started when
those of the run before are gone, with the same number of threads. A run's seconds are the median over its iterations
after the first two.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arithmetic import __doc__ as FORMULA
from arithmetic import operations
from recipes import KL_COEF, LEARNING_RATE, RECIPES
from report import report
from side import run_side
from workload import WORKLOADS, Workload, build

ENVIRONMENT = Path(__file__).parents[1] / ".venv-trl"
PACKAGES = (["torch==2.13.0"], ["trl==1.12.0", "peft", "accelerate", "datasets"])  # in this order
WARM_UP = 2  # iterations dropped: kernels compile, memory is touched for the first time
LAST = 4  # iterations whose mean reward is the reward reached
PEER = "trl"


def make_environment() -> None:
    """Create the peer's virtual environment with pip; what is there already stays."""
    if not (ENVIRONMENT / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    for packages in PACKAGES:
        subprocess.run([ENVIRONMENT / "bin/pip", "install", "--quiet", *packages], check=True)


def run(side: str, workload: Workload, folder: Path, threads: int, seed: int, iterations: int) -> dict[str, Any]:
    """One run of `side` (the peer, or one of our recipes): its steady seconds per iteration and the reward reached."""
    common = ["--workload", workload.name, "--folder", folder, "--iterations", iterations, "--seed", seed]
    if side == PEER:
        settings = ["--learning-rate", LEARNING_RATE, "--kl-coef", KL_COEF]
        result = run_side(ENVIRONMENT / "bin/python", "peer_trl_ppo.py", *common, *settings, threads=threads)
    else:
        ours = ["--recipe", side, "--threads", threads]
        result = run_side(sys.executable, "our_ppo.py", *common, *ours, threads=threads)
        shutil.rmtree(folder / "runs")
    steady = statistics.median(result["seconds"][WARM_UP:])
    reward = statistics.mean(result["rewards"][-LAST:])
    print(f"  {workload.name} {side}: {steady:.2f} s per iteration, reward {reward:.3f}", flush=True)
    return {"side": side, "workload": workload.name, "seconds": steady, "reward": reward, "run": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-env", action="store_true", help="make the peer's environment and end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of either side")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--iterations", type=int, help="per run; default: 24 for 32x32, 8 for 64x128")
    args = parser.parse_args()
    if args.make_env:
        make_environment()
        return
    if not (ENVIRONMENT / "bin/python").exists():
        parser.error(f"the peer's environment {ENVIRONMENT} is not there: run with --make-env first")
    if args.iterations is not None and args.iterations <= WARM_UP:
        parser.error(f"--iterations must be above {WARM_UP}: the first {WARM_UP} are dropped")
    load = os.getloadavg()[0]
    workloads = [WORKLOADS[name] for name in args.workloads]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        rates, runs = [], []
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", flush=True)
            rates.append(run_side(sys.executable, "arithmetic.py", threads=args.threads))
            for workload in workloads:
                for side in (PEER, *RECIPES):
                    iterations = args.iterations or workload.iterations
                    runs.append({"round": number, **run(side, workload, folder, args.threads, number, iterations)})
        needed = {
            (workload.name, recipe): operations(folder, workload, recipe == "like-for-like")
            for workload in workloads
            for recipe in RECIPES
        }
    summary = summarise(workloads, runs, rates, needed)
    print_rates(rates)
    first = statistics.mean(run["run"]["rewards"][0] for run in runs)
    print(f"reward: mean of the last {LAST} iterations; {first:.3f} at the start")
    print(f"{args.threads} threads per process of {os.cpu_count()} cores; load average {load:.2f} at the start")
    details = {"threads": args.threads, "load_at_start": load, "formula": FORMULA, "rates": rates, "runs": runs}
    report("ppo_vs_trl", summary, details=details)


def summarise(
    workloads: list[Workload],
    runs: list[dict[str, Any]],
    rates: list[dict[str, float]],
    needed: dict[tuple[str, str], float],
) -> list[dict[str, Any]]:
    """A row per workload and side: medians over the rounds, the ratio taken round by round."""
    rate = statistics.median(r["float32"] for r in rates)
    rows = []
    for workload in workloads:
        of = {s: [r for r in runs if (r["side"], r["workload"]) == (s, workload.name)] for s in (PEER, *RECIPES)}
        for side, mine in of.items():
            seconds = statistics.median(r["seconds"] for r in mine)
            ratios = [theirs["seconds"] / r["seconds"] for theirs, r in zip(of[PEER], mine, strict=True)]
            work = needed.get((workload.name, side))
            rows.append(
                {
                    "workload": workload.name,
                    "side": side,
                    "s/iteration": seconds,
                    "samples/s": workload.samples / seconds,
                    "x TRL": statistics.median(ratios),
                    "least, greatest": f"{min(ratios):.2f}, {max(ratios):.2f}",
                    "GFLOP": work / 1e9 if work else "",
                    "of float32 rate": work / seconds / rate if work else "",
                    "samples seen": workload.samples * len(mine[0]["run"]["rewards"]),
                    "reward": statistics.median(r["reward"] for r in mine),
                }
            )
    return rows


def print_rates(rates: list[dict[str, float]]) -> None:
    for dtype in rates[0]:
        values = [rate[dtype] / 1e9 for rate in rates]
        print(
            f"matrix product, {dtype}: {statistics.median(values):.0f} GFLOP/s ({min(values):.0f} to {max(values):.0f})"
        )


if __name__ == "__main__":
    main()
