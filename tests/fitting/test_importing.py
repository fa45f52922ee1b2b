"""Worlds of models that were fitted elsewhere: any model with a dataset, and LeWM checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import FitConfig
from dreamgym.cli.app import main
from dreamgym.data import Dataset, DatasetMetadata, FrameSkip, SkippedDataset
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import LeWMError, WorldError
from dreamgym.models import JEPA, GoalReward
from dreamgym.models.jepa import LeWMStatistics, load_lewm
from dreamgym.models.jepa.lewm import read_config, tensor_names
from dreamgym.world.world import load
from tests.data.samples import random_episode, write
from tests.models.jepa.test_lewm import a_config
from tests.small_worlds import small_model

CONFIG = FitConfig(starts=6, held_out=0.4)
SKIP = FrameSkip(steps=5)
# Larger than the model's own 14 pixels, so that metrics use few windows.
IMAGES = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeWM as small as its config allows."""
    folder, config = tmp_path_factory.mktemp("lewm"), a_config()
    config["encoder"]["image_size"] = 14
    config["predictor"] |= {"depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 32}
    for part in ("projector", "pred_proj"):
        config[part] = {**config[part], "hidden_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    sizes, numbers = read_config(folder / "config.json")
    places = JEPA(IMAGES, gym.spaces.Box(-1, 1, (numbers,)), sizes).state_dict()
    renamed = tensor_names(12, sizes.blocks)
    torch.save({theirs: places[ours] for theirs, ours in renamed.items()}, folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of images with actions of two numbers, as LeWM takes."""
    metadata = DatasetMetadata(
        observation_space=IMAGES, action_space=gym.spaces.Box(-1, 1, (2,), np.float32)
    )
    rng = np.random.default_rng(0)
    episodes = [
        random_episode(IMAGES, metadata.action_space, n, rng, terminated=False, truncated=True)
        for n in (23, 31, 12, 40)
    ]
    return write(tmp_path_factory.mktemp("images") / "d.h5", episodes, metadata)


def test_a_world_of_any_model(tmp_path: Path) -> None:
    model = small_model("mdn-rnn")
    metadata = DatasetMetadata(
        observation_space=model.observation_space, action_space=model.action_space
    )
    rng = np.random.default_rng(0)
    episodes = [
        random_episode(model.observation_space, model.action_space, 30, rng) for _ in range(6)
    ]
    path = write(tmp_path / "d.h5", episodes, metadata)
    world = dreamgym.from_model(model, path, tmp_path / "w", config=CONFIG)
    assert world.starts.size == 6
    assert "open_loop" in world.quality
    assert world.provenance["dataset_steps"] == 180
    assert world.provenance["fit"]["fitted"] == "elsewhere"
    again = load(tmp_path / "w")
    for one, two in zip(
        model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
    dream = DreamVectorEnv(again, 4, output="torch", autoreset_mode="SameStep")
    dream.reset(seed=0)
    observation, *_ = dream.step(dream.action_space.sample())
    assert torch.isfinite(observation).all()
    with pytest.raises(FileExistsError):
        dreamgym.from_model(model, path, tmp_path / "w", config=CONFIG)
    with (
        Dataset(path) as dataset,
        pytest.raises(WorldError, match=r"action_space is Discrete\(3\).*MultiDiscrete"),
    ):
        dreamgym.from_model(model, SkippedDataset(dataset, FrameSkip(steps=2)), config=CONFIG)


def test_a_world_of_a_lewm_checkpoint(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    """Load, save, load again, and dream with a goal, in blocks of five actions."""
    with Dataset(images) as dataset:
        data = SkippedDataset(dataset, SKIP)
        statistics = LeWMStatistics.of(data)
        rows = np.concatenate([dataset.episode(i).actions for i in range(4)])
        np.testing.assert_allclose(statistics.action_mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.action_std, rows.std(0, ddof=1), rtol=1e-5)
        with pytest.raises(LeWMError, match="action_mean, action_std"):
            dreamgym.from_lewm(checkpoint, data, config=CONFIG)
        world = dreamgym.from_lewm(checkpoint, data, statistics=statistics, config=CONFIG)
        plain = load_lewm(checkpoint, IMAGES, data.action_space, statistics)
        first = data.episode(0)
    assert world.action_space == gym.spaces.Box(-1, 1, (10,), np.float32)
    assert world.frame_skip == SKIP
    assert world.default_view == "latent"
    rewarded = world.with_model(GoalReward(world.model, first.observations[-1]))
    rewarded.save(tmp_path / "w")
    again = load(tmp_path / "w")
    # The same predictions as the checkpoint's own, action by action.
    noise = torch.full((1, plain.noise_dim), 0.5)
    state = plain.observe(
        plain.initial(1), torch.zeros(1, 10), torch.from_numpy(first.observations[:1]), noise
    )
    action = torch.from_numpy(first.actions[:1])
    one, two = (model.step(state, action, noise) for model in (plain, again.model))
    assert torch.equal(plain.features(one[0]), again.model.features(two[0]))
    distance = (again.model.features(two[0]) - again.model.goal).norm()
    torch.testing.assert_close(two[1].reward, -distance.view(1))
    dream = DreamVectorEnv(again, 3, max_episode_steps=4, output="torch", autoreset_mode="SameStep")
    dream.reset(seed=0)
    for _ in range(4):
        observation, reward, terminated, truncated, _ = dream.step(dream.action_space.sample())
        assert (reward < 0).all()
        assert not terminated.any()
    assert truncated.all()
    assert observation.shape == (3, 192)


def test_a_dict_of_images_alone_is_accepted(checkpoint: Path) -> None:
    statistics = LeWMStatistics(
        action_mean=[0, 0], action_std=[1, 1], pixel_mean=[0.5] * 3, pixel_std=[0.5] * 3
    )
    blocks = SKIP.space(gym.spaces.Box(-1, 1, (2,)))
    model = load_lewm(checkpoint, gym.spaces.Dict(pixels=IMAGES), blocks, statistics)
    seen = {"pixels": torch.zeros(2, *IMAGES.shape, dtype=torch.uint8)}
    assert model.embed(seen).shape == (2, 192)
    both = gym.spaces.Dict(pixels=IMAGES, speed=gym.spaces.Box(-1, 1, (2,)))
    with pytest.raises(LeWMError, match="select only the key of the images"):
        load_lewm(checkpoint, both, blocks, statistics)


def test_the_command(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["adopt", str(checkpoint), str(images), "--frame-skip", "5"]

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([*line, *words])
        return int(left.value.code or 0), capsys.readouterr().err

    code, error = run("--out", str(tmp_path / "w"))
    assert code == 1
    assert "action_mean, action_std, pixel_mean, pixel_std" in error
    bad = tmp_path / "bad.json"
    bad.write_text('{"action_means": [0]}')
    assert run("--out", str(tmp_path / "w"), "--statistics", str(bad))[0] == 2
    assert not (tmp_path / "w").exists()
    figures = tmp_path / "f.json"
    code, error = run(
        *("--out", str(tmp_path / "w"), "--statistics", "dataset", "--goal", "1"),
        *("--json", str(figures), "--horizon", "7"),
    )
    assert code == 0, error
    world = load(tmp_path / "w")
    assert (world.family, world.horizon, world.frame_skip) == ("goal-reward", 7, SKIP)
    assert json.loads(figures.read_text())["frame_skip"] == SKIP.to_json()
    assert run("--out", str(tmp_path / "w"), "--statistics", "dataset")[0] == 1
