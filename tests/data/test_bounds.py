"""Observations outside the bounds of their space: noticed, and no bound of a world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check, record
from dreamgym.data.bounds import covers, widened_space
from dreamgym.fitting import FitConfig, fit

NARROW = spaces.Box(np.float32([-0.1, -1, 0]), np.float32([0.1, 1, np.inf]))
WIDE = spaces.Box(-2.0, 2.0, (3,), np.float32)


class Narrow(gym.Env[Any, Any]):
    """The first number leaves its bounds on both sides; the others stay within."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any] = NARROW, dtype: type = np.float32) -> None:
        self.observation_space, self.dtype = space, dtype

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observe(), float(self.np_random.normal()), False, self.time >= 10, {}

    def observe(self) -> Any:
        values = self.np_random.uniform(0, 1, 3)
        values[0] = 2 * values[0] - 1
        return (values if self.dtype is np.float32 else np.rint(10 * values)).astype(self.dtype)


def recorded(path: Path, **kwargs: Any) -> Path:
    with pytest.warns(UserWarning, match="'observation' lie outside their space") as warned:
        record(Narrow(**kwargs), steps=60, out=path)
    assert len(warned) == 1  # and not once an episode
    return path


def test_check_counts_them_by_channel_with_the_range_found(tmp_path: Path) -> None:
    data = recorded(tmp_path / "d.h5")
    card = check(data)
    assert card.ok
    (note,) = [note for note in card.notes if "outside their space" in note]
    with Dataset(data) as dataset:
        (outside,) = dataset.outside_observations()["observation"]
        rows = np.concatenate([dataset.episode(i).observations[:, 0] for i in range(len(dataset))])
    assert outside.channel == 0
    assert outside.found == pytest.approx((rows.min(), rows.max()))
    assert outside.share == pytest.approx((np.abs(rows) > 0.1).mean())
    assert f"channel 0 is within -0.1 and 0.1 by the space and from {rows.min():.6g}" in note


def test_a_world_drops_the_bounds_that_its_data_contradict(tmp_path: Path) -> None:
    config = FitConfig(updates=1, batch_size=4, segment_length=4, starts=16)
    world = fit(recorded(tmp_path / "d.h5"), config=config)
    low, high = world.observation_space.low, world.observation_space.high
    assert low.tolist() == [-np.inf, -1, 0]
    assert high.tolist() == [np.inf, 1, np.inf]
    assert any("outside their space" in alarm for alarm in world.quality["alarms"])
    further = fit(tmp_path / "d.h5", config=FitConfig(**{**vars(config), "model": world.model}))
    assert further.observation_space == world.observation_space


def test_integers_outside_lose_their_bounds_as_well(tmp_path: Path) -> None:
    space = spaces.Box(0, 3, (3,), np.int32)
    with Dataset(recorded(tmp_path / "d.h5", space=space, dtype=np.int32)) as dataset:
        wider = widened_space(space, dataset.outside_observations())
    limits = np.iinfo(np.int32)
    assert wider.low.tolist() == [limits.min, 0, 0]
    assert wider.high.tolist() == [limits.max] * 3


def test_declared_bounds_replace_those_of_the_recording(tmp_path: Path) -> None:
    data = recorded(tmp_path / "d.h5")
    foreign = ForeignOptions(observation_space=WIDE)
    assert not [note for note in check(data, foreign=foreign).notes if "outside" in note]
    with Dataset(data, foreign=foreign) as dataset:
        assert dataset.observation_space == WIDE
    other = ForeignOptions(observation_space=spaces.Box(-2.0, 2.0, (4,), np.float32))
    with pytest.raises(DatasetError, match="differs from the recorded one in its bounds only"):
        Dataset(data, foreign=other)


def test_rounding_is_not_outside(tmp_path: Path) -> None:
    space = spaces.Box(-1.0, np.float32([1.0, 1.0, 1.0 - 1e-6]), (3,), np.float32)
    record(Narrow(space), steps=40, out=tmp_path / "d.h5")
    assert not [note for note in check(tmp_path / "d.h5").notes if "outside" in note]


def test_a_space_covers_itself_and_narrower_ones() -> None:
    assert covers(WIDE, WIDE)
    assert covers(WIDE, spaces.Box(-2.0, 1.0, (3,), np.float32))
    assert not covers(WIDE, NARROW)
    assert not covers(WIDE, spaces.Box(-1.0, 1.0, (2,), np.float32))
    assert not covers(WIDE, spaces.Dict({"a": WIDE}))
    assert covers(spaces.Dict({"a": WIDE}), spaces.Dict({"a": WIDE}))
