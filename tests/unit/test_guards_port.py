"""The port where the ranks meet stays theirs from the moment that it is named."""

import socket

import numpy as np
import pytest
import torch
from learner_world import demonstrations, save_tiny_model, sft_config

from rlhf_ray.actors.learner import Learner
from rlhf_ray.learner.group import LearnerGroup

pytestmark = pytest.mark.unit


def bind(address):
    host, _, port = address.rpartition(":")
    with socket.socket() as other:
        other.bind((host, int(port)))


def test_rank_0_brings_the_socket_that_it_has_bound():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    group = LearnerGroup(0, 1, address, torch.device("cpu"), 60, listener)
    try:
        assert group.share("met") == ["met"]
        with pytest.raises(OSError, match="in use"):
            bind(address)
    finally:
        group.close()


def test_nobody_takes_the_port_between_asking_and_joining(tmp_path):
    learner = Learner(sft_config(save_tiny_model(tmp_path)), 0, 1)
    address = learner.meeting_point()
    with pytest.raises(OSError, match="in use"):
        bind(address)
    learner.join(address, 1)
    try:
        learner.start_sft(demonstrations(0, 4), None)
        assert learner.step(np.arange(4))["loss/sft"] > 0
    finally:
        learner.close()
