"""Minari datasets of every storage and space, made and read by minari itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions, UnsupportedSpaceError, check
from tests.data.test_formats import FOREIGN, read_both_ways

pytest.importorskip("minari")
LENGTHS = (4, 6, 3)
STORAGES = ("hdf5", "arrow", "parquet")

INNER = spaces.Dict(speed=spaces.Box(-9, 9, (2,), np.float64), gear=spaces.Discrete(4, start=1))
OBSERVATIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-5, 5, (3,), np.float32),
    "discrete": spaces.Discrete(5),
    "binary": spaces.MultiBinary(4),
    "grey": spaces.Box(0, 255, (40, 32), np.uint8),
    "nested": spaces.Dict(
        image=spaces.Box(0, 255, (32, 36, 3), np.uint8),
        car=INNER,
        wheels=spaces.Tuple((spaces.Box(0, 1, (1,)), spaces.MultiDiscrete([2, 3]))),
    ),
    "tuple": spaces.Tuple((spaces.Box(0, 1, (2,)), spaces.Discrete(3))),
}
ACTIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "binary": spaces.MultiBinary(3),
    "numbers": spaces.Tuple((spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 2]))),
    "boxes": spaces.Dict(arm=spaces.Box(-1, 1, (2,)), hand=spaces.Box(0, 1, (1,))),
}


def stack(space: spaces.Space, count: int) -> Any:
    """Return `count` samples of a space, as minari's buffers hold them."""
    if isinstance(space, spaces.Dict):
        return {key: stack(child, count) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(child, count) for child in space.spaces)
    if space.dtype == np.uint8:  # smooth, as JPEG stores it nearly unchanged
        values = np.linspace(0, 200, int(np.prod(space.shape))).reshape(space.shape)
        return [(values + 5 * k).astype(np.uint8) for k in range(count)]
    return [space.sample() for _ in range(count)]


def make(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    observation: spaces.Space,
    action: spaces.Space,
    storage: str,
) -> tuple[Path, Any]:
    """Make a dataset with minari; return its folder and minari's own view of it."""
    import minari
    from minari.data_collector import EpisodeBuffer

    if storage != "hdf5":
        pytest.importorskip("pyarrow")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    observation.seed(0)
    action.seed(0)
    buffers = [
        EpisodeBuffer(
            id=k,
            observations=stack(observation, length + 1),
            actions=stack(action, length),
            rewards=np.arange(length, dtype=float).tolist(),
            terminations=[t == length - 1 and k != 1 for t in range(length)],
            truncations=[t == length - 1 and k == 1 for t in range(length)],
        )
        for k, length in enumerate(LENGTHS)
    ]
    dataset = minari.create_dataset_from_buffers(
        "made/test-v0",
        buffers,
        observation_space=observation,
        action_space=action,
        data_format=storage,
        author="a",
        author_email="a@b.c",
        code_permalink="x",
        algorithm_name="random",
    )
    return folder / "made" / "test-v0", dataset


def flat(space: spaces.Space, value: Any) -> np.ndarray:
    return np.stack([spaces.flatten(space, each) for each in value])


def leaves(space: spaces.Space, value: Any, key: str = "") -> dict[str, tuple[spaces.Space, Any]]:
    """Return the parts of a nested value that minari read, by their key."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return {key: (space, value)}
    children = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    found = {}
    for name, child in children:
        found |= leaves(child, value[name], f"{key}/{name}" if key else str(name))
    return found


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, storage: str
) -> None:
    space = OBSERVATIONS[name]
    source, dataset = make(tmp_path / "m", monkeypatch, space, ACTIONS["box"], storage)
    episodes = read_both_ways(source, tmp_path)
    assert [e.length for e in episodes] == list(LENGTHS)
    assert [(e.terminated, e.truncated) for e in episodes] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    for episode, own in zip(episodes, dataset.iterate_episodes(), strict=True):
        np.testing.assert_allclose(episode.actions, own.actions)
        np.testing.assert_allclose(episode.rewards, own.rewards)
        seen = episode.observations
        seen = seen if isinstance(seen, dict) else {"": seen}
        expected = leaves(space, own.observations)
        assert set(seen) == set(expected)
        for key, (child, values) in expected.items():
            if isinstance(child, spaces.Box):
                np.testing.assert_array_equal(seen[key].reshape(np.shape(values)), values)
            else:
                np.testing.assert_array_equal(seen[key], flat(child, values))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ACTIONS)
def test_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, storage: str) -> None:
    space = ACTIONS[name]
    source, dataset = make(tmp_path / "m", monkeypatch, OBSERVATIONS["box"], space, storage)
    episodes = read_both_ways(source, tmp_path)
    for episode, own in zip(episodes, dataset.iterate_episodes(), strict=True):
        columns = []
        for child, values in leaves(space, own.actions).values():
            rows = np.asarray(values).reshape(len(values), -1)
            columns.append(
                rows - (child.start if hasattr(child, "start") and name == "numbers" else 0)
            )
        joined = np.concatenate(columns, axis=1)
        np.testing.assert_allclose(episode.actions.reshape(joined.shape), joined)
    with Dataset(source) as read:
        kinds = {"discrete": spaces.Discrete, "box": spaces.Box, "boxes": spaces.Box}
        assert isinstance(read.action_space, kinds.get(name, spaces.MultiDiscrete))
    wrapped = any("TransformAction" in note for note in check(source).notes)
    assert wrapped == (name not in ("box", "discrete"))


def test_discrete_observations_are_those_of_flatten_observation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = OBSERVATIONS["discrete"]
    source, _ = make(tmp_path / "m", monkeypatch, space, ACTIONS["discrete"], "hdf5")
    with Dataset(source) as dataset:
        assert dataset.observation_space == spaces.flatten_space(space)
    assert any("FlattenObservation" in note for note in check(source).notes)


def test_mixed_actions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (1,))))
    source, _ = make(tmp_path / "m", monkeypatch, OBSERVATIONS["box"], mixed, "hdf5")
    with pytest.raises(UnsupportedSpaceError, match="either Boxes or numbers"):
        Dataset(source)


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_an_arrow_file_that_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    source, _ = make(tmp_path / "m", monkeypatch, OBSERVATIONS["box"], ACTIONS["box"], storage)
    (file,) = (source / "data" / "1").glob("part-*")
    file.write_bytes(file.read_bytes()[:-40])
    with Dataset(source, on_bad="skip") as dataset:
        assert dataset.lengths.tolist() == [4, 3]
        assert "data/1" in dataset.skipped[0]
    assert len(check(source).problems) == 1


def test_check_says_why_no_episode_is_good(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FOREIGN / "minari_vectors", tmp_path / "m"))
    info = json.loads((copy / "metadata.json").read_text())
    space = json.loads(info["observation_space"]) | {"shape": [3], "low": [0] * 3, "high": [1] * 3}
    (copy / "metadata.json").write_text(json.dumps(info | {"observation_space": json.dumps(space)}))
    with pytest.raises(DatasetError, match=r"no good episode \(3 bad ones, the first: .*shape"):
        check(copy)


@pytest.mark.parametrize(
    "spec", ["[1]", '"x"', '{"id": "A-v0", "kwargs": {}, "max_episode_steps": -1}']
)
def test_an_odd_env_spec_is_refused(tmp_path: Path, spec: str) -> None:
    copy = Path(shutil.copytree(FOREIGN / "minari_vectors", tmp_path / "m"))
    info = json.loads((copy / "metadata.json").read_text()) | {"env_spec": spec}
    (copy / "metadata.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="env_spec"):
        check(copy)
    assert check(copy, foreign=ForeignOptions(env_id="CartPole-v1")).env_id == "CartPole-v1"
