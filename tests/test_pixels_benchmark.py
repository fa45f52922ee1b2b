"""`benchmarks/pixels.py`: its games, and every stage from end to end."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MODULE = "pixels_benchmark_games"


@pytest.fixture(scope="module")
def games():
    """The module of games; Gymnasium finds its environments under the module's name."""
    path = ROOT / "benchmarks" / "support" / "games.py"
    spec = importlib.util.spec_from_file_location(MODULE, path)
    before = set(gym.registry)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    yield module
    for name in set(gym.registry) - before:
        gym.registry.pop(name)
    del sys.modules[MODULE]


def play(env: gym.Env, seed: int, steps: int = 60) -> list[np.ndarray]:
    """Return the images of an episode of actions in turn."""
    images = [env.reset(seed=seed)[0]]
    for step in range(steps):
        image, _, terminated, truncated, _ = env.step(step % env.action_space.n)
        images.append(image)
        if terminated or truncated:
            break
    return images


@pytest.mark.parametrize(
    ("env_id", "package"),
    [
        ("PixelBreakout-v0", "minatar"),
        ("PixelAsterix-v0", "minatar"),
        ("PixelFreeway-v0", "minatar"),
        ("PixelPong-v0", "ale_py"),
    ],
)
def test_a_seed_makes_a_game_of_images(games, env_id, package):
    pytest.importorskip(package, reason="the games need dreamgym[games]")
    env = gym.make(env_id)
    first, again, *others = [play(env, seed) for seed in (3, 3, 4, 5, 6, 7)]
    env.close()
    assert all(env.observation_space.contains(image) for image in first)
    assert len(first) == len(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(
        not np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=False)
    )


def test_a_cell_has_the_colour_of_the_first_channel_that_is_set_in_it(games):
    pytest.importorskip("minatar", reason="the games need dreamgym[games]")
    env = gym.make("PixelBreakout-v0").unwrapped
    cells = np.zeros((10, 10, 4), np.bool_)
    cells[0, 0, [1, 3]] = cells[9, 8, 0] = True
    image = env._image(cells)
    assert image.shape == (16, 16, 3)
    assert image[3, 3].tolist() == games.COLOURS[1].tolist()
    assert image[12, 11].tolist() == games.COLOURS[0].tolist()
    assert (image[3:13, 3:13].any(-1)).sum() == 2
    assert (image[:3] == games.BORDER_GREY).all()


def test_a_frame_of_pong_moves_from_channel_to_channel(games):
    pytest.importorskip("ale_py", reason="the games need dreamgym[games]")
    env = gym.make("PixelPong-v0")
    images = play(env, seed=0)
    env.close()
    for before, after in itertools.pairwise(images):
        assert np.array_equal(before[..., 1:], after[..., :-1])
    assert any(not np.array_equal(image[..., 0], image[..., 2]) for image in images)


@pytest.mark.slow
def test_every_stage_runs_and_what_is_there_is_used_again(tmp_path):
    pytest.importorskip("minatar", reason="the games need dreamgym[games]")
    file, work = tmp_path / "rows.json", tmp_path / "work"
    command = [sys.executable, str(ROOT / "benchmarks" / "pixels.py"), "--quick"]
    command += ["--families", "rssm", "--work", str(work), "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def rows(*further: str) -> dict[str, float]:
        done = subprocess.run([*command, *further], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}

    found = rows("--picture", str(tmp_path / "frames.png"))
    name = "breakout, rssm, seed 0"
    for what in ("error at 1", "action sensitivity", "step of 64 dreams", "real return", "cloning"):
        assert f"{name}: {what}" in found
    assert "breakout, 1 seeds: families better than model-free" in found
    assert (tmp_path / "frames-breakout.png").stat().st_size > 0
    kept = work / "breakout-0" / "rssm" / "transfer.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "real_return_mean": 99.5}))
    assert rows("--parts", "rows")[f"{name}: real return"] == 99.5
    assert rows()[f"{name}: real return"] == 99.5
