"""What the reference of a DPO run said about its pairs, kept in the run folder for a resume (and for a look at it)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE = "reference.parquet"
SCHEMA = pa.schema(
    [
        pa.field("held_out", pa.bool_(), nullable=False),  # of data.eval_path; rows keep their order
        pa.field("chosen_logprob", pa.float32(), nullable=False),
        pa.field("rejected_logprob", pa.float32(), nullable=False),
    ]
)
MODEL = b"rlhf_ray.reference"


class ReferenceFile:
    """Log-probs of `reference`, a model's name, in the run folder `folder`."""

    def __init__(self, folder: Path, reference: str) -> None:
        self._path, self._reference = folder / FILE, reference

    def read(self, train: int, held_out: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Log-probs of the training and of the held-out pairs, float32 [pairs, 2], chosen and rejected.

        None where there are none of this reference, or not of that many pairs.
        """
        if not self._path.is_file():
            return None
        table = pq.read_table(self._path)
        apart = table["held_out"].to_numpy()
        if table.schema.metadata.get(MODEL) != self._reference.encode() or len(apart) != train + held_out:
            return None
        if int(apart.sum()) != held_out:
            return None
        logprobs = np.stack([table[name].to_numpy() for name in SCHEMA.names[1:]], axis=1)
        return logprobs[~apart], logprobs[apart]

    def write(self, train: np.ndarray, held_out: np.ndarray) -> None:
        """Keep what `read` gives; the file is there only when it is whole."""
        logprobs = np.concatenate([train, held_out])
        apart = np.arange(len(logprobs)) >= len(train)
        table = pa.table([apart, logprobs[:, 0], logprobs[:, 1]], schema=SCHEMA.with_metadata({MODEL: self._reference}))
        aside = self._path.with_suffix(".partial")
        pq.write_table(table, aside)
        aside.rename(self._path)
