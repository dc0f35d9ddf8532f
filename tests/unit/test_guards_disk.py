"""The room on a run's disk: a warning when it runs low, an error when there is none."""

from collections import namedtuple

import pytest

from rlhf_ray.errors import DiskFull, InfrastructureError
from rlhf_ray.trainers import disk
from rlhf_ray.trainers.disk import MIB, DiskGuard

pytestmark = pytest.mark.unit

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Sets the bytes that the disk has left."""

    def leave(count):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: Usage(2**40, 2**40 - count, count))

    return leave


def test_low_room_is_said_once_until_there_was_more(free, tmp_path):
    warnings = []
    guard = DiskGuard(tmp_path, 256, warnings.append)
    for left in (256 * MIB, 255 * MIB, 100 * MIB, 300 * MIB, 20 * MIB):
        free(left)
        guard.check("a checkpoint")
    assert len(warnings) == 2
    assert warnings[0].startswith(f"255 MiB are left on the disk of {tmp_path} before a checkpoint is written")
    assert warnings[1].startswith("20 MiB")


def test_no_room_at_all_is_an_error_that_names_folder_and_bytes(free, tmp_path):
    free(0)
    with pytest.raises(DiskFull, match=rf"no room for the policy: 0 bytes are left on the disk of {tmp_path}\. Free"):
        DiskGuard(tmp_path, 0, pytest.fail).check("the policy")
    assert issubclass(DiskFull, InfrastructureError)


def test_a_disk_with_room_says_nothing(tmp_path):
    DiskGuard(tmp_path, 0, pytest.fail).check("a checkpoint")
