"""Dynamic sampling (DAPO, Yu et al. 2025, sec. 3.2): prompts without a signal are replaced before training.

A prompt whose responses all have the same reward gives advantages of zero. Such prompts are left out of training and
others drawn in their place, round by round, until the iteration has its number of prompts or `max_rounds` have passed.
Which prompts a round draws is a function of (seed, iteration, round) and of those drawn before; the order in which the
iterations go through the prompts stays as it is, so a resumed run needs no cursor. All samples stay in the iteration's
rollouts, on disk and in its mean reward; the metrics `samples/*` count what is trained on.
"""

from collections.abc import Callable

import numpy as np

from rlhf_ray.trainers.rollouts import Rollouts


def refill(
    rollouts: Rollouts,
    rows: np.ndarray,
    total_rows: int,
    *,
    max_rounds: int,
    seed: tuple[int, int],
    collect: Callable[[np.ndarray], Rollouts],
    with_signal: Callable[[Rollouts], int],
) -> Rollouts:
    """`rollouts` of the prompts `rows`, and of others until as many prompts as `rows` give a signal.

    total_rows: how many prompts there are. seed: (run's seed, iteration). collect: rollouts of the given rows.
    with_signal: how many prompts of the rollouts so far do.
    """
    wanted, drawn = len(rows), rows
    for number in range(1, max_rounds):
        left = np.setdiff1d(np.arange(total_rows), drawn)
        missing = min(wanted - with_signal(rollouts), len(left))
        if missing <= 0:
            break
        more = np.random.default_rng([*seed, 2, number]).permutation(left)[:missing]
        drawn, rollouts = np.concatenate([drawn, more]), rollouts.joined(collect(more))
    return rollouts
