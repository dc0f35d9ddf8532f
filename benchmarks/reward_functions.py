"""Reward functions of `bench_rewards.py`: three that cost next to nothing, one that computes, one that waits."""

import re
import time

SLOW_S, WAIT_S = 0.005, 0.050


def brevity(prompt: str, response: str) -> float:
    return max(0.0, 1.0 - len(response) / 1000)


def variety(prompt: str, response: str) -> float:
    words = response.split()
    return len(set(words)) / max(len(words), 1)


def digits(prompt: str, response: str) -> float:
    return float(len(re.findall(r"\d+", response)))


def slow(prompt: str, response: str) -> float:
    """Five milliseconds of the processor's time, however much of it the others leave."""
    end = time.thread_time() + SLOW_S
    while time.thread_time() < end:
        pass
    return 1.0


def wait(prompt: str, response: str) -> float:
    """As one that asks a service."""
    time.sleep(WAIT_S)
    return 1.0
