"""RLDS datasets; `foreign/rlds` was written by a builder of tensorflow_datasets 4.9.

It has episodes of 5, 6, 7 and 8 steps, of which the second is cut off by time. Reading needs
tensorflow_datasets, which is large and no dependency of the tests: those that need it are skipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions
from dreamgym.data.formats import Probe, detect_format
from tests.data.test_formats import FOREIGN, flags, read_both_ways
from tests.data.test_image_decoding import jpeg_that_claims

SOURCE = FOREIGN / "rlds"


def test_rlds(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    episodes = read_both_ways(SOURCE, tmp_path)
    assert flags(episodes) == [(n - 1, n != 6, n == 6, True) for n in (5, 6, 7, 8)]
    for k, episode in enumerate(episodes):
        t = np.arange(5 + k)
        seen = episode.observations
        assert set(seen) == {"observation/image", "observation/state"}
        np.testing.assert_array_equal(seen["observation/image"][:, 3, 4, 0], 10 * k + t)
        np.testing.assert_array_equal(seen["observation/state"][:, 1], t)
        np.testing.assert_array_equal(episode.rewards, t[:-1])
        expected = np.stack([np.sin(t), np.cos(t), 0.1 * t], axis=1)[:-1]
        np.testing.assert_allclose(episode.actions, expected, rtol=1e-6)
    chosen = ForeignOptions(tasks=("pull",), keys=("image",))
    with Dataset(SOURCE, foreign=chosen, memory=0) as dataset:
        assert dataset.observation_space == spaces.Box(0, 255, (16, 24, 3), np.uint8)
        assert dataset.lengths.tolist() == [6, 7]
        assert dataset.episode(1).observations[0, 0, 0, 0] == 30
        assert dataset.episode(0).observations[0, 0, 0, 0] == 20


def test_an_image_that_claims_more_than_its_bytes_is_not_decoded(tmp_path: Path) -> None:
    """TensorFlow would decode it, whole."""
    pytest.importorskip("tensorflow_datasets")
    tf = pytest.importorskip("tensorflow")
    copy = Path(shutil.copytree(SOURCE, tmp_path / "d"))
    path = str(next(copy.glob("push-train*")))
    records = [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(path)]
    records[1].features.feature["steps/observation/image"].bytes_list.value[2] = jpeg_that_claims(
        12_000
    )
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record.SerializeToString())
    with pytest.raises(DatasetError, match="episode 1, row 2: its image claims 144,000,000 pixels"):
        Dataset(copy)
    with Dataset(copy, on_bad="skip") as dataset:
        assert len(dataset) == 3


def test_rlds_is_detected_without_its_library() -> None:
    with Probe(SOURCE) as probe:
        found = detect_format(probe)
        assert found is not None
        assert found.NAME == "RLDS"


def test_classes_of_others_are_never_imported(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SOURCE, tmp_path / "d"))
    features = copy / "features.json"
    text = features.read_text()
    features.write_text(
        text.replace("tensorflow_datasets.core.features.text_feature", "antigravity")
    )
    with pytest.raises(DatasetError, match=r"names the class 'antigravity\.Text'"):
        Dataset(copy)


@pytest.mark.parametrize(
    "hidden",
    [
        {"python_class_name": "antigravity.Text"},
        {"type": "antigravity.Text", "content": {}},
        {"jsonFeature": {"json": json.dumps({"x": {"type": "antigravity.Text", "content": {}}})}},
    ],
)
def test_classes_are_found_under_every_key(tmp_path: Path, hidden: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(SOURCE, tmp_path / "d"))
    features = copy / "features.json"
    description = json.loads(features.read_text())
    features.write_text(json.dumps({**description, "more": hidden}))
    with pytest.raises(DatasetError, match=r"names the class 'antigravity\.Text'"):
        Dataset(copy)


@pytest.mark.parametrize("length", [2**31, str(2**40), 1e300, "+9999999999"])
def test_a_sequence_longer_than_the_bytes_is_refused(tmp_path: Path, length: float | str) -> None:
    """TensorFlow would allocate it: it hangs, or ends the process."""
    copy = Path(shutil.copytree(SOURCE, tmp_path / "d"))
    features = copy / "features.json"
    description = json.loads(features.read_text())
    description["featuresDict"]["features"]["steps"]["sequence"]["length"] = length
    features.write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="but the dataset has"):
        Dataset(copy)
