"""A checkpoint written before the redesign of the package (commit fed8ca1) still resumes.

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
    optimizer=OptimizerConfig(name="laprop", ema=0.9),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "cartpole.h5"
    path.write_bytes(gzip.decompress((FOLDER / "cartpole.h5.gz").read_bytes()))
    return path


def test_a_checkpoint_of_before_the_redesign_resumes_where_it_stopped(data, tmp_path):
    saved = checkpoint.path_for(tmp_path / "world")
    shutil.copy(FOLDER / saved.name, saved)
    history = checkpoint.read(saved).info["history"]
    assert [each["update"] for each in history] == [4, 8]
    reported = []
    world = dreamgym.fit(
        data, tmp_path / "world", config=CONFIG, progress=lambda *each: reported.append(each[0])
    )
    assert set(reported) == {12}
    assert world.provenance["history"][:2] == history
    # What the fit that was not interrupted had found at its end, in the old package.
    last = world.provenance["history"][2]
    assert last["loss"] == pytest.approx(6.352467060089111, rel=1e-4)
    assert last["held_out"] == pytest.approx(6.384298801422119, rel=1e-4)
    assert not saved.exists()


def test_a_dataset_of_before_the_redesign_is_read(data):
    with Dataset(data) as dataset:
        assert dataset.num_steps == 60
        dataset.verify()
