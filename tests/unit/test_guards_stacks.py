"""Where threads stand: asked for, and written by the process itself when a call takes too long."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from learner_world import demonstrations, save_tiny_model, sft_config

from rlhf_ray import faults
from rlhf_ray.actors.learner import Learner
from rlhf_ray.actors.stacks import thread_stacks
from rlhf_ray.actors.thread import CALL_TIMEOUT, OwnedThread

pytestmark = pytest.mark.unit

STUCK = """
import threading
from rlhf_ray.actors.thread import OwnedThread

def stuck_in_a_collective():
    threading.Event().wait(1.0)

OwnedThread().call("training", stuck_in_a_collective)
OwnedThread().call("training", print, "done")
"""


def test_stacks_show_what_another_thread_is_doing():
    entered, leave = threading.Event(), threading.Event()

    def stuck_here():
        entered.set()
        leave.wait(30)

    thread = threading.Thread(target=stuck_here, name="owner_0")
    thread.start()
    entered.wait(30)
    try:
        stacks = thread_stacks()
    finally:
        leave.set()
        thread.join()
    mine = next(part for part in stacks.split("\n\n") if part.startswith("Thread owner_0"))
    assert "in stuck_here" in mine
    assert "leave.wait(30)" in mine
    assert "test_stacks_show_what_another_thread_is_doing" in stacks


def test_a_call_past_its_deadline_writes_the_stacks_to_standard_error():
    environment = os.environ | {CALL_TIMEOUT: "0.3"}
    done = subprocess.run([sys.executable, "-c", STUCK], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert done.stderr.count("Timeout (") == 1
    assert "in stuck_in_a_collective" in done.stderr


def test_without_a_deadline_nothing_is_written(monkeypatch, capfd):
    monkeypatch.delenv(CALL_TIMEOUT, raising=False)
    assert OwnedThread().call("adding", sum, [1, 2]) == 3
    assert capfd.readouterr().err == ""


def test_a_rank_tells_where_it_is_while_it_trains(monkeypatch, tmp_path):
    monkeypatch.setenv(faults.ACTOR, "learner/0")
    monkeypatch.setenv(
        faults.PLAN, json.dumps([{"actor": "learner/0", "phase": "update", "action": "delay", "seconds": 0.3}])
    )
    learner = Learner(sft_config(save_tiny_model(tmp_path)), 0, 1)
    learner.join(learner.meeting_point(), 1)
    learner.start_sft(demonstrations(0, 4), None)
    training = threading.Thread(target=learner.step, args=[np.arange(4)])
    training.start()
    try:
        while "in carry_out" not in (stacks := learner.stacks()):
            assert training.is_alive()
    finally:
        training.join()
        learner.close()
    assert "in step" in stacks
    assert "Thread owner_0" in stacks
