"""Files written before the redesign of the package (commit fed8ca1).

`before_redesign/` holds a dataset recorded then, and the checkpoint of a fit of it that was stopped
after 8 of 12 updates.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

import dreamgym
from dreamgym import FitConfig, OptimizerConfig
from dreamgym.data import Dataset
from dreamgym.errors import CheckpointError
from dreamgym.fitting import checkpoint
from dreamgym.models import MDNRNNConfig

FOLDER = Path(__file__).parent / "before_redesign"
CONFIG = FitConfig(
    updates=12,
    batch_size=4,
    segment_length=4,
    evaluate_every=4,
    starts=4,
    horizon=5,
    model=MDNRNNConfig(hidden=2, trunk=2, head=2, mixtures=2),
    optimizer=OptimizerConfig(name="laprop", ema=0.9, gradient_clip=10.0, clip_by="norm"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "cartpole.h5"
    path.write_bytes(gzip.decompress((FOLDER / "cartpole.h5.gz").read_bytes()))
    return path


def test_a_checkpoint_of_a_model_with_other_layers_is_refused_and_kept(data, tmp_path):
    """The reward and the end bonus of an MDN-RNN were outputs of one network then."""
    saved = checkpoint.path_for(tmp_path / "world")
    shutil.copy(FOLDER / saved.name, saved)
    history = checkpoint.read(saved).info["history"]
    assert [each["update"] for each in history] == [4, 8]
    with pytest.raises(CheckpointError, match="finish it with the version that began it"):
        dreamgym.fit(data, tmp_path / "world", config=CONFIG)
    assert saved.exists()


def test_a_dataset_of_before_the_redesign_is_read(data):
    with Dataset(data) as dataset:
        assert dataset.num_steps == 60
        dataset.verify()
