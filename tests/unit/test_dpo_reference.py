"""The precomputed reference of a DPO run: asked once, in parts, kept for a resume, never taken from another model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.trainers.dpo import DPOTrainer
from rlhf_ray.trainers.reference_file import FILE, ReferenceFile
from rlhf_ray.trainers.run_folder import RunFolder

pytestmark = pytest.mark.unit


class Learner:
    """Stands for the learner ranks: its reference says (row, -row) about a pair, and 100 more if it is held out."""

    def __init__(self, train: int, held_out: int) -> None:
        self.pairs, self.asked, self.given = (train, held_out), [], None

    def call(self, what: str, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def start_dpo(self, table: Any, eval_table: Any) -> tuple[int, int]:
        return self.pairs

    def reference_logprobs(self, rows: np.ndarray, held_out: bool) -> np.ndarray:
        self.asked.append((rows.tolist(), held_out))
        return np.stack([rows + 100 * held_out, -rows], axis=1).astype(np.float32)

    def set_reference(self, train: np.ndarray, held_out: np.ndarray | None) -> None:
        self.given = (train, held_out)


def start(folder: Path, learner: Learner, **keys: Any) -> Learner:
    training = {"pairs_per_step": 2, **keys}
    trainer = DPOTrainer("model", data={"path": "pairs.jsonl"}, training=training, lora=keys.get("model.lora"))
    trainer.folder = RunFolder(folder)
    trainer.start_objective(learner, None, None)  # type: ignore[arg-type]
    return learner


def test_every_pair_is_asked_once_and_a_resume_asks_nothing(tmp_path: Path) -> None:
    first = start(tmp_path, Learner(11, 3))
    assert first.asked == [(list(range(8)), False), ([8, 9, 10], False), ([0, 1, 2], True)]
    train, held_out = first.given
    np.testing.assert_array_equal(train, [[row, -row] for row in range(11)])
    np.testing.assert_array_equal(held_out, [[100, 0], [101, -1], [102, -2]])
    again = start(tmp_path, Learner(11, 3))
    assert again.asked == []
    for one, other in zip(again.given, first.given, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32


def test_without_held_out_pairs_there_is_nothing_to_give(tmp_path: Path) -> None:
    learner = start(tmp_path, Learner(2, 0))
    assert learner.given[0].shape == (2, 2)
    assert learner.given[1] is None


@pytest.mark.parametrize(("train", "held_out", "keys"), [(12, 3, {}), (10, 4, {}), (11, 3, {"reference_model": "m"})])
def test_another_reference_or_other_pairs_are_asked_anew(
    tmp_path: Path, train: int, held_out: int, keys: dict[str, Any]
) -> None:
    start(tmp_path, Learner(11, 3))
    learner = start(tmp_path, Learner(train, held_out), **keys)
    assert sum(len(rows) for rows, _ in learner.asked) == train + held_out
    assert ReferenceFile(tmp_path, keys.get("reference_model", "model")).read(train, held_out) is not None


def test_adapters_that_can_be_switched_off_leave_nothing_to_ask(tmp_path: Path) -> None:
    learner = start(tmp_path, Learner(4, 2), **{"model.lora": {"r": 2}})
    assert (learner.asked, learner.given) == ([], None)
    assert not (tmp_path / FILE).exists()
