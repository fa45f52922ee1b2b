"""LeRobot datasets.

`foreign/lerobot_*_v3` were made by the writer of lerobot 0.4.4, `foreign/lerobot_*_v21` by that of
lerobot 0.3.3: three episodes of 7, 5 and 9 steps, of which the second does not succeed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check
from tests.data.test_formats import flags, read_both_ways

pytest.importorskip("pyarrow")
FOREIGN = Path(__file__).parent / "foreign"
NAMES = ("lerobot_image_v3", "lerobot_image_v21", "lerobot_video_v3", "lerobot_video_v21")
LENGTHS = (7, 5, 9)


def level(episode: int) -> np.ndarray:
    """Return the red value of the images of an episode."""
    return 20 + 25 * np.arange(LENGTHS[episode]) + 5 * episode


@pytest.fixture(params=NAMES)
def source(request: pytest.FixtureRequest) -> Path:
    if "video" in request.param:
        pytest.importorskip("av")
    return FOREIGN / request.param


def test_every_version_with_images_and_videos(source: Path, tmp_path: Path) -> None:
    episodes = read_both_ways(source, tmp_path, repeat_last=True)
    assert flags(episodes) == [
        (7, True, False, True),
        (5, False, True, True),
        (9, True, False, True),
    ]
    near = 0 if "image" in source.name else 3  # videos are lossy
    for k, episode in enumerate(episodes):
        t = np.arange(LENGTHS[k])
        seen = episode.observations
        assert set(seen) == {"observation.state", "observation.images.top"}
        state = np.stack([np.full(len(t), k), t, np.full(len(t), 0.5)], axis=1)
        np.testing.assert_array_equal(seen["observation.state"][:-1], state)
        np.testing.assert_array_equal(seen["observation.state"][-1], state[-1])
        images = seen["observation.images.top"]
        assert images.dtype == np.uint8
        assert images.shape == (len(t) + 1, 32, 48, 3)
        red = images[:-1, :, :, 0].reshape(len(t), -1).astype(int)
        assert np.abs(red - level(k)[:, None]).max() <= near
        expected = np.stack([np.sin(t + k), np.cos(2 * t)], axis=1).astype(np.float32)
        np.testing.assert_allclose(episode.actions, expected)
        assert episode.rewards.tolist() == [0.0] * (len(t) - 1) + [1.0]


def test_cameras_and_tasks_are_chosen_by_name(source: Path) -> None:
    chosen = ForeignOptions(keys=("top",), tasks=("pull",), allow_loss=True)
    with Dataset(source, foreign=chosen) as dataset:
        assert dataset.observation_space == spaces.Box(0, 255, (32, 48, 3), np.uint8)
        assert dataset.lengths.tolist() == [8]
    with Dataset(source, keys=["state"], foreign=ForeignOptions(allow_loss=True)) as dataset:
        assert list(dataset.observation_space) == ["observation.state"]
    with pytest.raises(DatasetError, match=r"no task \['fly'\]; it has \['pull', 'push'\]"):
        Dataset(source, foreign=ForeignOptions(tasks=("fly",)))
    with pytest.raises(DatasetError, match="LeRobot has no column to name for episode"):
        Dataset(source, foreign=ForeignOptions(columns={"episode": "episode_index"}))
    with pytest.raises(DatasetError, match=r"no column 'wrist', only \['action', 'next.done'"):
        Dataset(source, foreign=ForeignOptions(keys=("wrist",)))


def test_images_are_resized(source: Path) -> None:
    small = ForeignOptions(keys=("top",), image_size=(16, 16), allow_loss=True)
    with Dataset(source, foreign=small) as dataset:
        assert dataset.observation_space == spaces.Box(0, 255, (16, 16, 3), np.uint8)
        red = dataset.episode(2).observations[:, :, :, 0].astype(int)
        assert np.abs(red - level(2)[:, None, None]).max() <= 3
    assert any("ResizeObservation" in note for note in check(source, foreign=small).notes)


def test_a_loss_is_said_and_success_may_be_the_reward(source: Path) -> None:
    card = check(source)
    assert any("all 2 terminations are lost" in problem for problem in card.problems)
    assert any("--repeat-last" in problem for problem in card.problems)
    columns = {"reward": "next.success", "observation": "state"}
    named = ForeignOptions(columns=columns, repeat_last=True, terminals="boundary")
    with Dataset(source, foreign=named) as dataset:
        assert dataset.returns.tolist() == [1, 0, 1]
        assert not dataset.terminated.any()


def test_episodes_beyond_the_memory_stay_in_the_files(source: Path) -> None:
    with Dataset(source) as held, Dataset(source, memory=0) as left:
        assert not left.in_memory
        for index in (2, 0, 1):
            a, b = held.episode(index).observations, left.episode(index).observations
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
        windows = [d.windows([2, 0, 2], [1, 3, 4], 3).observation for d in (held, left)]
        for key in windows[0]:
            np.testing.assert_array_equal(windows[0][key], windows[1][key])


def test_an_episode_that_cannot_be_read_is_skipped(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "d"))
    if "v3" in source.name:
        pytest.skip("its episodes share their files")
    damaged = sorted(copy.glob("**/*_000001.*"))[0 if "image" in source.name else -1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DatasetError, match="_000001"):
        Dataset(copy)
    with Dataset(copy, on_bad="skip") as dataset:
        assert dataset.lengths.tolist() == [6, 8]
        assert "_000001" in dataset.skipped[0]
    assert any("_000001" in problem for problem in check(copy).problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "version is v1.6; expected 2.0 to 3.x"),
        ({"fps": 0}, "fps: it is 0"),
        ({"features": []}, "describes no features"),
    ],
)
def test_a_description_that_cannot_be_read(
    source: Path, tmp_path: Path, change: dict, message: str
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "d"))
    info = copy / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(DatasetError, match=message):
        Dataset(copy)


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    """FFmpeg would open the files and addresses that it names."""
    pytest.importorskip("av")
    copy = Path(shutil.copytree(FOREIGN / "lerobot_video_v21", tmp_path / "d"))
    (video, *_) = sorted(copy.glob("videos/**/*.mp4"))
    moved = video.rename(tmp_path / "elsewhere.mp4")
    video.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{moved}\n")
    with pytest.raises(DatasetError, match=r"episode_000000\.mp4.*not a readable video"):
        Dataset(copy)
