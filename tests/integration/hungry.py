"""An actor that can be killed, and that asks for more memory than there is."""

import os
import time
from typing import Any

from rlhf_ray.actors.memory import memory_use


class Hungry:
    def health(self) -> dict[str, Any]:
        return {"state": "idle", "since_s": 0.0, **memory_use()}

    def pid(self) -> int:
        return os.getpid()

    def wait(self) -> None:
        time.sleep(600)

    def allocate(self) -> int:
        return len(bytearray(2**60))
