"""Room on the disk of a run folder: said early, and an error before anything is written when there is none."""

import shutil
from collections.abc import Callable
from pathlib import Path

from rlhf_ray.errors import DiskFull

MIB = 2**20


class DiskGuard:
    """Looks at the room left in `folder` before something large is written there."""

    def __init__(self, folder: Path, min_free_mib: int, warn: Callable[[str], None]) -> None:
        """`warn` hears it when less than `min_free_mib` is left: once, and again after there was more."""
        self.folder, self._min_free_mib, self._warn, self._low = folder, min_free_mib, warn, False

    def check(self, what: str) -> None:
        """Before `what` is written.

        Raises:
            DiskFull: not a byte is left.
        """
        free = shutil.disk_usage(self.folder).free
        if not free:
            raise DiskFull(
                f"no room for {what}: 0 bytes are left on the disk of {self.folder}. Free space (older runs, "
                "checkpoints of other runs), or resume the run's copy on another disk."
            )
        low = free < self._min_free_mib * MIB
        if low and not self._low:
            self._warn(
                f"{free // MIB:,} MiB are left on the disk of {self.folder} before {what} is written "
                f"(guards.min_free_disk_mib={self._min_free_mib}): free space, or lower checkpoint.keep_last"
            )
        self._low = low
