"""A report on every kind of world: families, images, Dicts, actions, frame skips."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset, FrameSkip, with_frame_skip
from dreamgym.models import PETSConfig, RSSMConfig
from dreamgym.trust import RankingConfig, page, report

LENGTH = 24


class Moves(gym.Env):
    """A point that actions move: seen as numbers, as an image, or as both."""

    def __init__(self, seen: str, action_space: gym.Space) -> None:
        point = gym.spaces.Box(-20, 20, (2,), np.float32)
        image = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        both = gym.spaces.Dict(camera=image, point=point)
        self.observation_space = {"point": point, "image": image, "both": both}[seen]
        self.action_space, self.seen = action_space, seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.age = self.np_random.normal(size=2), 0
        return self.look(), {}

    def step(self, action):
        moved = np.resize(np.asarray(action, float), 2) - 0.5
        self.point = np.clip(self.point + 0.3 * moved, -20, 20)
        self.age += 1
        ended = bool(self.np_random.random() < 0.03)
        return self.look(), -float(abs(self.point[0])), ended, self.age >= LENGTH, {}

    def look(self):
        point = self.point.astype(np.float32)
        if self.seen == "point":
            return point
        image = np.zeros((32, 32, 3), np.uint8)
        row, column = np.clip(16 + 4 * self.point, 0, 31).astype(int)
        image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 255
        return image if self.seen == "image" else {"camera": image, "point": point}


TWO = gym.spaces.Discrete(2)
SMALL_RSSM = RSSMConfig(deter=16, hidden=16, stoch=4, classes=4, units=16)


@pytest.mark.parametrize(
    ("seen", "action_space", "family", "model"),
    [
        ("point", gym.spaces.MultiDiscrete([2, 3]), "mdn-rnn", None),
        ("point", gym.spaces.Box(0, 1, (2,), np.float32), "pets", PETSConfig(hidden=16, layers=2)),
        pytest.param("image", TWO, "mdn-rnn", None, marks=pytest.mark.slow),
        pytest.param("both", TWO, "rssm", SMALL_RSSM, marks=pytest.mark.slow),
        ("point", TWO, "jepa", None),
    ],
    ids=["multi-discrete", "pets", "image", "dict", "jepa"],
)
def test_a_report_is_made(seen, action_space, family, model, tmp_path):
    env = Moves(seen, action_space)
    path = dreamgym.record(env, steps=600, out=tmp_path / "d.h5", seed=0)
    config = dreamgym.default_config(family, model=model, updates=3, starts=64)
    world = dreamgym.fit(path, family=family, config=config)
    made = report(world, path)
    assert made.findings
    html = page([made])
    assert not re.search(r"\bnan\b", re.sub("base64,[^']*", "", html))
    assert len(html) < 5_000_000
    figures = made.figures
    assert ("channels" in figures) == (seen != "image" and world.model.decodes)
    assert len(figures["actions"]["each"]) == int(np.prod(action_space.shape or ()))
    if seen in ("image", "both"):
        assert "data:image/png;base64," in html
        assert figures["frames"]["horizons"][0] == 1
        assert "Usable to" in made.advice
    if family == "pets":
        assert figures["limits"]["uncertainty"] > 0
        assert figures["visits"][0]["visit"]["unsure"] is not None
        assert "uncertainty_error" in figures["spread_and_error"]


def test_a_world_with_a_frame_skip_is_reported_on_in_its_own_steps(tmp_path):
    env = Moves("point", gym.spaces.Box(0, 1, (2,), np.float32))
    path = dreamgym.record(env, steps=800, out=tmp_path / "d.h5", seed=0)
    with Dataset(path) as dataset:
        skipped = with_frame_skip(dataset, FrameSkip(steps=2))
        world = dreamgym.fit(skipped, config=dreamgym.FitConfig(updates=3, starts=64))
    ranking = RankingConfig(seeds=1, steps=512, stages=0, num_envs=8, episodes=2, temperatures=())
    real = lambda: gym.wrappers.TimeLimit(Moves("point", env.action_space), LENGTH)  # noqa: E731
    made = report(world, path, env=real, ranking=ranking)
    assert made.figures["data"]["fitted"]
    assert made.figures["limits"]["longest_episode"] == LENGTH // 2
    assert made.figures["ranking"]["count"] == 2
    assert len(made.figures["actions"]["each"]) == 4  # a block of two actions
