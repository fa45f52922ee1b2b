from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, DatasetMetadata, Episode, check, record
from tests.data.samples import dict_cartpole, write, write_random


def test_a_card_of_cartpole(cartpole: Path) -> None:
    card = check(cartpole)
    with Dataset(cartpole) as dataset:
        episodes = [dataset.episode(i) for i in range(len(dataset))]
        assert card.checksum == dataset.checksum
    assert card.ok
    assert card.problems == []
    assert card.env_id == "CartPole-v1"
    assert card.episodes == len(episodes)
    assert card.steps == 2000
    assert card.size_bytes == cartpole.stat().st_size
    assert card.ended["terminated"] == sum(e.terminated for e in episodes)
    assert card.ended["cut off"] == sum(not e.complete for e in episodes)
    assert sum(card.ended.values()) == len(episodes)
    returns = [float(e.rewards.sum()) for e in episodes]
    assert card.returns["mean"] == pytest.approx(np.mean(returns))
    assert card.lengths["max"] == max(e.length for e in episodes)
    actions = np.concatenate([e.actions for e in episodes])
    assert card.actions["share"] == pytest.approx([np.mean(actions == 0), np.mean(actions == 1)])
    observations = np.concatenate([e.observations for e in episodes])
    channel = card.observations["observation"]["per_channel"][2]
    assert channel["min"] == observations[:, 2].min()
    assert channel["std"] == pytest.approx(observations[:, 2].std(), rel=1e-4)


def test_a_card_is_json_and_reads_well(pendulum: Path) -> None:
    card = check(pendulum)
    again = json.loads(json.dumps(card.as_dict(), allow_nan=False))
    assert again["ok"] is True
    assert again["ended"] == {"terminated": 0, "truncated": 10, "cut off": 0}
    text = str(card)
    for part in ("Pendulum-v1", "10 truncated", "2,000 steps", "sticky:0.8", "ready to fit"):
        assert part in text


def test_constant_and_saturated_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(101, 4)).astype(np.float32)
    observations[:, 1] = 3.0
    observations[:, 2] = np.minimum(observations[:, 2], -0.5)
    episode = Episode(
        observations=observations,
        actions=rng.integers(0, 2, size=100),
        rewards=np.ones(100, np.float32),
        terminated=True,
        truncated=False,
        complete=True,
    )
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-np.inf, np.inf, (4,)), action_space=spaces.Discrete(2)
    )
    card = check(write(tmp_path / "d.h5", [episode, episode], metadata))
    assert card.ok
    assert any("1 constant channels in 'observation': 1" in note for note in card.notes)
    assert any("1 saturated channels in 'observation': 2" in note for note in card.notes)


def test_a_dict_of_images_and_numbers(tmp_path: Path) -> None:
    card = check(record(dict_cartpole(), steps=200, out=tmp_path / "d.h5"))
    assert card.ok
    assert set(card.observations) == {"pixels", "a/b %.", "angle"}
    assert card.observations["pixels"]["channels"] == 16 * 16 * 3
    str(card)


def test_too_few_episodes(tmp_path: Path) -> None:
    card = check(write_random(tmp_path / "d.h5", [9]))
    assert not card.ok
    assert "at least 2" in card.problems[0]
    assert "fitting would refuse it" in str(card)


def test_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        check(tmp_path / "none.h5")
