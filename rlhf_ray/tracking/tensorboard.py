"""TensorBoard events through TensorBoard's own writer, which needs neither torch nor TensorFlow."""

import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

FLUSH_SECONDS = 10


class TensorBoardTracker:
    """Scalars in `folder`; a resumed run hides what was logged after the step it resumes from."""

    def __init__(self, folder: Path, resume_after: int | None = None) -> None:
        self._writer = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        if resume_after is not None:
            self.rewind(resume_after)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        values = [Summary.Value(tag=key, simple_value=float(value)) for key, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def rewind(self, step: int) -> None:
        """TensorBoard drops what it has read of later steps."""
        log = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=log))

    def close(self, failed: bool = False) -> None:
        self._writer.close()
