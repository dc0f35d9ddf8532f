"""PPO here against TRL's PPO: the same task, interleaved in one run.

    python benchmarks/bench_ppo_vs_trl.py --make-env     # once: the peer's environment in .venv-trl
    python benchmarks/bench_ppo_vs_trl.py                # 3 rounds, about 25 minutes on two cores

In every round each workload runs on TRL, then here twice: `like-for-like` (float32, a critic of its own) and
`recommended` (bfloat16, the value as a head on the policy's backbone). Each run has processes of its own, started when
those of the run before are gone, with the same number of threads. A run's seconds are the median over its iterations
after the first two.
"""

import argparse
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
from report import Report, spread
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
    report = Report("ppo_vs_trl", "How many times as fast as TRL's PPO is an iteration?", args.threads)
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
    summarise(report, workloads, runs, rates, needed)


def summarise(
    report: Report,
    workloads: list[Workload],
    runs: list[dict[str, Any]],
    rates: list[dict[str, float]],
    needed: dict[tuple[str, str], float],
) -> None:
    """Ratios round by round, then their medians; the fraction of the measured matrix-product rate beside them."""
    rate = {dtype: statistics.median(r[dtype] for r in rates) for dtype in rates[0]}
    summary = []
    for workload in workloads:
        of = {s: [r for r in runs if (r["side"], r["workload"]) == (s, workload.name)] for s in (PEER, *RECIPES)}
        for side, mine in of.items():
            seconds = statistics.median(r["seconds"] for r in mine)
            row: dict[str, Any] = {"workload": workload.name, "side": side, "seconds": seconds}
            row |= {"samples_per_s": workload.samples / seconds}
            row |= {"speedup": [theirs["seconds"] / r["seconds"] for theirs, r in zip(of[PEER], mine, strict=True)]}
            row |= {"samples": workload.samples * len(mine[0]["run"]["rewards"])}
            row |= {"reward": [r["reward"] for r in mine]}
            if side != PEER:
                achieved = needed[workload.name, side] / seconds
                row |= {"gflop": needed[workload.name, side] / 1e9}
                row |= {"fraction_of_float32_rate": achieved / rate["float32"]}
                row |= {"fraction_of_bfloat16_rate": achieved / rate["bfloat16"]}
            summary.append(row)
    columns = ["workload, side", "s/iteration", "samples/s", "times TRL", "GFLOP", "of float32 rate", "reward"]
    report.table("Median over rounds (least to greatest)", columns, [_cells(row) for row in summary])
    first = statistics.mean(r["run"]["rewards"][0] for r in runs)
    reached = ", ".join(dict.fromkeys(f"{row['workload']}: {row['samples']}" for row in summary))
    report.notes += [
        f"Reward: mean over the last {LAST} iterations; samples seen, the same on all sides: {reached}; first {first:.3f}.",
        f"Matrix product [2048]^3 in this run: {rate['float32'] / 1e9:.0f} GFLOP/s float32, "
        f"{rate['bfloat16'] / 1e9:.0f} bfloat16. Fractions: {' '.join((FORMULA or '').split())}",
    ]
    report.data = {"summary": summary, "matrix_rates": rates, "runs": runs, "formula": FORMULA}
    report.finish()


def _cells(row: dict[str, Any]) -> list[object]:
    cells: list[object] = [f"{row['workload']} {row['side']}", row["seconds"], row["samples_per_s"]]
    cells += [spread(row["speedup"]), row.get("gflop", ""), row.get("fraction_of_float32_rate", "")]
    return [*cells, spread(row["reward"])]


if __name__ == "__main__":
    main()
