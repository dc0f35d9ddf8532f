"""A PPO run whose reward is composed: an ensemble, a function that returns a dict, a gate, normalisation, a reducer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_runs import TinyRuns
from transformers import AutoModelForSequenceClassification

from rlhf_ray.trainers.ppo import PPOResult, PPOTrainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

ITERATIONS = 2


def opposite(model: Path, folder: Path) -> Path:
    """A copy of a reward model with another head."""
    shutil.copytree(model, folder)
    changed = AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        changed.score.weight.copy_(changed.score.weight.flip(1))
    changed.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def composed(
    ray_local: None, tiny: TinyRuns, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PPOResult, list[pd.DataFrame]]:
    root = tmp_path_factory.mktemp("runs")
    other = opposite(Path(tiny.reward), root / "other")
    config = tiny.ppo(
        root,
        "composed",
        "rewards.short.enabled=false",
        "rewards.even={type: function, function: 'tiny_rewards:even', weight: 0}",
        f"rewards.quality={{type: ensemble, models: [{tiny.reward}, {other}], combine: uncertainty,"
        " normalize: running, clip: [-1.5, 1.5]}",
        "rewards.counts={type: function, function: 'tiny_rewards:counts', keys: {distinct: 0.1, last: 0.01},"
        " gate: {component: even, above: 0.5}}",
        f"ppo.iterations={ITERATIONS}",
        "kl.coef=0",
    )
    result = PPOTrainer(config).train()
    frames = [pd.read_parquet(path) for path in sorted((result.folder / "rollouts").glob("*.parquet"))]
    return result, frames


def test_every_member_and_key_has_its_column(composed: tuple[PPOResult, list[pd.DataFrame]]) -> None:
    _, frames = composed
    assert len(frames) == ITERATIONS
    for frame in frames:
        assert "reward/short" not in frame
        first, second = frame["reward/quality/reward"], frame["reward/quality/other"]
        assert_allclose(frame["reward/quality"], (first + second) / 2 - (first - second).abs() / 2)
        words = frame["response"].str.split()
        assert frame["reward/counts/distinct"].tolist() == [len(set(w)) for w in words]
        assert frame["reward/counts/last"].isna().tolist() == [len(w) <= 4 for w in words]
        expected = 0.1 * frame["reward/counts/distinct"] + 0.01 * frame["reward/counts/last"].fillna(0)
        assert_allclose(frame["reward/counts"], expected)


def test_the_total_is_gated_normalised_and_clipped(composed: tuple[PPOResult, list[pd.DataFrame]]) -> None:
    _, frames = composed
    seen: list[float] = []
    shut = 0
    for frame in frames:
        seen += frame["reward/quality"].tolist()
        quality = ((frame["reward/quality"] - np.mean(seen)) / np.std(seen)).clip(-1.5, 1.5)
        is_open = frame["number"] % 2 == 0
        shut += int((~is_open).sum())
        assert_allclose(frame["reward"], quality + frame["reward/counts"].where(is_open, 0.0), atol=1e-9)
    assert 0 < shut < sum(map(len, frames))


def test_components_and_their_parts_are_metrics(composed: tuple[PPOResult, list[pd.DataFrame]]) -> None:
    result, frames = composed
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for line, frame in zip([line for line in lines if "reward/mean" in line], frames, strict=True):
        for name in ("quality", "quality/reward", "quality/other", "counts", "counts/distinct", "counts/last"):
            assert line[f"reward/{name}/mean"] == pytest.approx(frame[f"reward/{name}"].mean())
        assert line["reward/counts/last/did_not_apply"] == frame["reward/counts/last"].isna().sum()
