"""SFT, reward model and DPO here against TRL's trainers: the same model, rows and settings, interleaved in one run.

    python benchmarks/bench_ppo_vs_trl.py --make-env     # once: the peer's environment in .venv-trl
    python benchmarks/bench_offline_vs_trl.py            # 3 rounds, about 30 minutes on two cores

In every round each stage runs on TRL in float32 and in bfloat16 (autocast), then here three times: `like-for-like`
(float32, a row per sequence), `packed` (float32, several sequences in a row, none seeing another: the same loss and
gradients) and `recommended` (packed, bfloat16). Each run has processes of its own, started when those of the
run before are gone, with the same number of threads. Samples per second (pairs, for reward model and DPO) are those of
all steps but the first two. Here the pass that takes DPO's reference log-probs before the first step counts too, in
equal parts on every step; TRL asks its reference within each.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_ppo_vs_trl import ENVIRONMENT, print_rates
from offline_workload import ROWS_PER_STEP, STAGES, write_rows
from report import report
from side import run_side
from workload import build

WARM_UP = 2  # steps dropped: kernels compile, memory is touched for the first time
LAST = 4  # steps whose mean loss is the loss reached
PEERS: dict[str, list[str]] = {"trl": [], "trl bf16": ["--bf16"]}
RECIPES = ("like-for-like", "packed", "recommended")


def run(side: str, stage: str, folder: Path, threads: int, seed: int, steps: int) -> dict[str, Any]:
    """One run of `side` (the peer, or one of our recipes): samples per second and the loss reached."""
    common = ["--stage", stage, "--folder", folder, "--seed", seed]
    if side in PEERS:
        settings = ["--steps", steps, *PEERS[side]]
        result = run_side(ENVIRONMENT / "bin/python", "peer_trl_offline.py", *common, *settings, threads=threads)
    else:
        ours = ["--recipe", side, "--threads", threads]
        result = run_side(sys.executable, "our_offline.py", *common, *ours, threads=threads)
        shutil.rmtree(folder / "runs")
    seconds = statistics.mean(result["seconds"][WARM_UP:]) + result.get("preparing_s", 0.0) / steps
    loss = statistics.mean(result["losses"][-LAST:])
    print(f"  {stage} {side}: {ROWS_PER_STEP / seconds:.1f} samples/s, loss {loss:.4f}", flush=True)
    return {"side": side, "stage": stage, "samples/s": ROWS_PER_STEP / seconds, "loss": loss, "run": result}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per stage and side: medians over the rounds, the ratio to TRL's float32 taken round by round."""
    rows = []
    for stage in dict.fromkeys(run["stage"] for run in runs):
        of = {s: [r for r in runs if (r["side"], r["stage"]) == (s, stage)] for s in (*PEERS, *RECIPES)}
        for side, mine in of.items():
            ratios = [r["samples/s"] / theirs["samples/s"] for theirs, r in zip(of["trl"], mine, strict=True)]
            rows.append(
                {
                    "stage": stage,
                    "side": side,
                    "samples/s": statistics.median(r["samples/s"] for r in mine),
                    "x TRL": statistics.median(ratios),
                    "least, greatest": f"{min(ratios):.2f}, {max(ratios):.2f}",
                    "first loss": statistics.mean(r["run"]["losses"][0] for r in mine),
                    "last loss": statistics.mean(r["loss"] for r in mine),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of either side")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=24, help="per run")
    args = parser.parse_args()
    if not (ENVIRONMENT / "bin/python").exists():
        parser.error(f"the peer's environment {ENVIRONMENT} is not there: bench_ppo_vs_trl.py --make-env makes it")
    if args.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}: the first {WARM_UP} are dropped")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        write_rows(folder, args.steps)
        rates, runs = [], []
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", flush=True)
            rates.append(run_side(sys.executable, "arithmetic.py", threads=args.threads))
            for stage in args.stages:
                sides = (run(side, stage, folder, args.threads, number, args.steps) for side in (*PEERS, *RECIPES))
                runs.extend({"round": number, **result} for result in sides)
    print_rates(rates)
    print(f"{args.threads} threads per process of {os.cpu_count()} cores; load average {load:.2f} at the start")
    details = {"threads": args.threads, "load_at_start": load, "rates": rates, "runs": runs}
    report("offline_vs_trl", summarise(runs), details=details)


if __name__ == "__main__":
    main()
