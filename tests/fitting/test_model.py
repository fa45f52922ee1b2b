"""Fits that continue from the weights of a fitted model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import FitConfig
from dreamgym.data import Dataset, DatasetMetadata, FrameSkip, MixedDataset, SkippedDataset
from dreamgym.errors import CheckpointError
from dreamgym.fitting.build import build_model
from dreamgym.models import PETSConfig
from tests.data.samples import random_episode, write

SHORT = FitConfig(updates=40, evaluate_every=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("again") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=1500, out=path, seed=0)


@pytest.fixture(scope="module")
def world(data):
    return dreamgym.fit(data, config=replace(SHORT, updates=200))


def test_it_starts_where_the_other_fit_ended_and_does_not_change_that_model(data, world):
    before = {name: leaf.clone() for name, leaf in world.model.state_dict().items()}
    fresh = dreamgym.fit(data, config=SHORT)
    further = dreamgym.fit(data, config=replace(SHORT, model=world.model))
    best = [w.provenance["best_held_out_loss"] for w in (fresh, world, further)]
    assert best[2] < best[0]
    assert best[2] < best[1] + 0.1 * abs(best[1])
    after = world.model.state_dict()
    assert all(torch.equal(leaf, after[name]) for name, leaf in before.items())
    assert not any(p.requires_grad for p in world.model.parameters())
    changed = dict(further.model.named_parameters())
    assert any(not torch.equal(changed[k], p) for k, p in world.model.named_parameters())


def test_the_normalisers_stay_those_of_the_weights(data, world, tmp_path):
    other = dreamgym.record("CartPole-v1", steps=600, out=tmp_path / "b.h5", seed=9)
    further = dreamgym.fit(other, config=replace(SHORT, model=world.model))
    assert torch.equal(further.model.vision.std, world.model.vision.std)
    assert not torch.equal(
        dreamgym.fit(other, config=SHORT).model.vision.std, further.model.vision.std
    )


def test_ends_are_bounded_by_those_of_the_training_episodes(tmp_path):
    """Of every dataset of a mixture, and of whole steps of a frame skip."""
    spaces = gym.spaces.Box(-9, 9, (3,)), gym.spaces.Discrete(2)
    metadata = DatasetMetadata(observation_space=spaces[0], action_space=spaces[1])
    rng, parts = np.random.default_rng(0), []
    for name, lengths in {"a": (1, 5, 6, 9), "b": (7, 2, 1, 8, 5)}.items():
        episodes = [
            random_episode(*spaces, length, rng, terminated=k % 2 == 1, truncated=k % 2 == 0)
            for k, length in enumerate(lengths)
        ]
        dataset = Dataset(write(tmp_path / f"{name}.h5", episodes, metadata))
        parts.append(SkippedDataset(dataset, FrameSkip(steps=2)))
    data = MixedDataset([(part, 1.0) for part in parts])
    for training in (np.array([0, 1, 3, 4, 6]), np.array([1, 5]), np.array([1, 3])):
        episodes = [data.episode(index) for index in training]
        ends = [each.rewards[-1] for each in episodes if each.terminated]
        model = build_model(FitConfig(), "mdn-rnn", 0, data, training)
        assert model.terminal_reward_low == min(ends, default=-np.inf)
        assert model.terminal_reward_high == max(ends, default=np.inf)


def test_a_checkpoint_of_a_fit_from_other_weights_is_refused(data, world, tmp_path):
    def interrupt(done, total, figures):
        if done >= 25:
            raise KeyboardInterrupt

    out = tmp_path / "further"
    config = replace(SHORT, model=world.model)
    with pytest.raises(KeyboardInterrupt):
        dreamgym.fit(data, out, config=config, progress=interrupt)
    other = dreamgym.fit(data, config=SHORT).model
    with pytest.raises(CheckpointError, match="begun_from"):
        dreamgym.fit(data, out, config=replace(SHORT, model=other))
    assert "begun_from" in dreamgym.fit(data, out, config=config).provenance["fit"]


def test_a_model_that_does_not_fit_is_refused(data, world, tmp_path):
    config = replace(SHORT, model=world.model)
    with pytest.raises(ValueError, match="family 'mdn-rnn', the fit of 'rssm'"):
        dreamgym.fit(data, family="rssm", config=config)
    pendulum = dreamgym.record("Pendulum-v1", steps=600, out=tmp_path / "p.h5")
    with pytest.raises(ValueError, match="observation_space of the model to continue from"):
        dreamgym.fit(pendulum, config=config)
    assert isinstance(world.action_space, gym.spaces.Discrete)


def test_the_config_of_another_family_is_refused(data):
    with pytest.raises(TypeError, match="takes a RSSMConfig"):
        dreamgym.fit(data, family="rssm", config=replace(SHORT, model=PETSConfig()))
