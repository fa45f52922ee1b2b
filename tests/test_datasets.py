"""The recipes of the datasets: each makes what its checksum says, and has a card and a sample."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset, DatasetMetadata, DatasetWriter, Episode
from dreamgym.train import TrainConfig
from dreamgym.world.held_out import open_for

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("datasets_make", ROOT / "datasets" / "make.py")
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)

RECORDED = [
    name
    for name, recipe in sorted(make.recipes().items())
    if all(part["make"] == "record" for part in recipe["parts"]) and "extra" not in recipe
]
"""Those that are made in seconds and the same on every machine."""
IMAGES = ("two-room-held",)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each in IMAGES)) for each in RECORDED]
)
def test_a_recipe_makes_its_dataset_bit_for_bit(name, tmp_path):
    assert make.make(name, tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == [tmp_path / "data.h5"]


@pytest.mark.parametrize("name", sorted(make.recipes()))
def test_a_dataset_has_a_card_and_a_small_sample_that_can_be_fitted(name):
    folder, recipe = ROOT / "datasets" / name, make.recipes()[name]
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")
    assert (folder / "sample.h5").stat().st_size < 2e6
    with Dataset(folder / "sample.h5") as sample:
        assert json.loads(sample.env_spec)["id"] == recipe["env_id"]
        assert sample.num_episodes > 1
    assert dreamgym.check(folder / "sample.h5").ok


def use(monkeypatch: pytest.MonkeyPatch, *parts: dict, env_id: str = "Pendulum-v1") -> None:
    """Make `make` take a recipe "test" of some parts."""
    recipe = {"env_id": env_id, "parts": list(parts), "checksum": ""}
    monkeypatch.setattr(make, "recipes", lambda: {"test": recipe})


RANDOM = {"make": "record", "policy": "random", "steps": 400, "seed": 0}


def test_several_recordings_are_shards_of_one_dataset(monkeypatch, tmp_path):
    mixed = {**RANDOM, "policy": "mixed", "seed": 1}
    use(monkeypatch, {**RANDOM, "max_episode_steps": 50}, mixed)
    assert make.make("test", tmp_path / "data") is False
    with Dataset(tmp_path / "data") as data:
        assert data.num_steps == 800
        assert list(data.lengths) == [50] * 8 + [200] * 2


def test_the_replay_of_an_agent_is_every_step_that_it_took(monkeypatch, tmp_path):
    pytest.importorskip("stable_baselines3")
    settings = {"learning_starts": 100, "train_freq": 50, "gradient_steps": 1}
    use(
        monkeypatch,
        {"make": "replay", "algo": "SAC", "steps": 450, "seed": 0, "settings": settings},
    )
    make.make("test", tmp_path / "data.h5")
    with Dataset(tmp_path / "data.h5") as data:
        assert list(data.lengths) == [200, 200, 50]
        assert data.policy == "SAC while it learns, seed 0"
    use(monkeypatch, {"make": "replay", "algo": "os", "steps": 1, "seed": 0, "settings": {}})
    with pytest.raises(ValueError, match="expected A2C, DDPG"):
        make.make("test", tmp_path / "other.h5")


@pytest.mark.slow
def test_the_data_of_the_online_loop_is_that_of_its_rounds(monkeypatch, tmp_path):
    config = {
        "first_steps": 300,
        "round_steps": 200,
        "dream_steps": 64,
        "evaluation_episodes": 1,
        "fit": {"updates": 5, "model": {"hidden": 16}},
        "train": {"num_envs": 2, "n_steps": 32},
    }
    use(
        monkeypatch,
        {"make": "improve", "real_steps": 500, "seed": 0, "config": config},
        env_id="CartPole-v1",
    )
    make.make("test", tmp_path / "data")
    with Dataset(tmp_path / "data") as data:
        assert data.num_steps == 500
    rounds = [(path, 1.0) for path in sorted((tmp_path / "data").glob("*.h5"))]
    with open_for(world := dreamgym.load(make.world_of(tmp_path / "data")), rounds) as read:
        assert read.is_fitted_data
    assert world.env_id == "CartPole-v1"


@pytest.mark.parametrize(("length", "count"), [(40, 3), (700, 2)])
def test_a_sample_of_images_is_small_and_has_two_episodes_at_least(
    monkeypatch, tmp_path, length, count
):
    monkeypatch.setattr(make, "HERE", tmp_path)
    (tmp_path / "pixels").mkdir()
    metadata = DatasetMetadata(
        observation_space=gym.spaces.Box(0, 255, (32, 32, 3), np.uint8),
        action_space=gym.spaces.Discrete(2),
    )
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "all.h5", metadata) as writer:
        for _ in range(3):
            episode = Episode(
                observations=rng.integers(0, 256, (length + 1, 32, 32, 3), np.uint8),
                actions=np.zeros(length, np.int64),
                rewards=np.ones(length, np.float32),
                terminated=True,
                truncated=False,
                complete=True,
            )
            writer.add(episode)
    sample = make.write_sample("pixels", tmp_path / "all.h5")
    assert sample.stat().st_size < 2e6
    assert list((tmp_path / "pixels").iterdir()) == [sample]
    with Dataset(sample) as data, Dataset(tmp_path / "all.h5") as whole:
        assert data.num_episodes == count
        first, same = data.episode(0), whole.episode(0)
        assert (first.observations == same.observations[: first.length + 1]).all()
        assert first.terminated == first.complete == (first.length == length)


def test_an_unknown_part_is_refused_with_the_nearest_name(monkeypatch, tmp_path):
    use(monkeypatch, {**RANDOM, "make": "recrod"})
    with pytest.raises(ValueError, match="did you mean 'record'"):
        make.make("test", tmp_path / "data.h5")


def test_settings_in_a_recipe_are_fields_of_the_configs():
    fit = make.fit_config(
        "mdn-rnn", "doom", {"updates": 7, "betas": [0.5, 0.9], "model": {"hidden": 9}}
    )
    preset = dreamgym.default_config("mdn-rnn", "doom")
    assert (fit.updates, fit.model.hidden, fit.optimizer.betas) == (7, 9, (0.5, 0.9))
    assert fit.model.mixtures == preset.model.mixtures
    loop = make.improve_config(
        {"family": "pets", "fit": {"updates": 3}, "train": {"net_arch": [8]}}
    )
    assert (loop.family, loop.fit.updates) == ("pets", 3)
    assert loop.fit.batch_size == dreamgym.default_config("pets").batch_size
    assert loop.train == TrainConfig(net_arch=(8,))
    with pytest.raises(ValueError, match="hiden"):
        make.fit_config("mdn-rnn", None, {"model": {"hiden": 9}})


def test_play_is_for_one_environment(tmp_path):
    with pytest.raises(ValueError, match=r"'play' plays dreamgym/PushT-v0, and not CartPole-v1"):
        make.record_part("CartPole-v1", tmp_path / "d", policy="play", steps=10, seed=0)
