"""A small sound world, and faults that are planted in it."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.models import MDNRNN, MDNRNNConfig, WorldModel
from dreamgym.models.wrappers.base import Wrapper
from dreamgym.world.start_states import burn_in
from dreamgym.world.world import World
from tests.metrics.small_fits import LIMIT, Swing, fitted

HELD_OUT, SEED = 0.2, 0


class Swings(Swing):
    """The linear pendulum with two pushes; a third number of the actions does nothing."""

    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def step(self, action):
        angle, speed = self.state
        speed = 0.98 * speed + 0.5 * float(action[0]) - 0.4 * angle
        self.state = np.array([angle + 0.4 * speed + 0.5 * float(action[1]), speed])
        self.age += 1
        ended = bool(self.np_random.random() < 0.06)
        return self.state.astype(np.float32), -float(angle**2), ended, self.age >= LIMIT, {}


class Upside(Swing):
    """The same spaces, and a pendulum that falls over: another environment."""

    def step(self, action):
        angle, speed = self.state
        speed = 0.9 * speed + 0.5 * (2 * action - 1) + 0.1 * angle
        self.state = np.array([angle + 0.4 * speed, -speed])
        self.age += 1
        ended = bool(self.np_random.random() < 0.06)
        return self.state.astype(np.float32), -float(angle**2), ended, self.age >= LIMIT, {}


def record(env: gym.Env, out: Path, policy="random", seed: int = 0, steps: int = 4000) -> Path:
    return dreamgym.record(env, steps=steps, out=out, policy=policy, seed=seed)


def sound_world(path: Path, env: gym.Env, name: str = "sound") -> World:
    """Fit a small MDN-RNN in seconds."""
    torch.manual_seed(0)
    model = MDNRNN(
        env.observation_space, env.action_space, MDNRNNConfig(hidden=24, trunk=24, head=24)
    )
    with Dataset(path) as dataset:
        fitted(model, dataset, updates=400)
        training, _ = dataset.split(HELD_OUT, SEED)
        starts = burn_in(model, dataset, training, count=512)
        provenance = {
            "dataset": path.name,
            "dataset_checksum": dataset.checksum,
            "dataset_policy": dataset.policy,
            "fit": {"dataset": dataset.checksum, "held_out": HELD_OUT, "seed": SEED},
        }
    return World(
        model=model,
        starts=starts,
        env_spec=None,
        horizon=LIMIT,
        provenance=provenance,
        name=name,
    )


class Planted(Wrapper):
    """A wrapper that has no config and cannot be saved."""

    def __init__(self, inner: WorldModel) -> None:
        super().__init__(inner, None)


class WrongSign(Planted):
    """What is good is bad."""

    def predict(self, state, action, following, prediction):
        return prediction._replace(reward=-prediction.reward)


class NeverEnds(Planted):
    """The termination head never fires."""

    def predict(self, state, action, following, prediction):
        return prediction._replace(termination=torch.zeros_like(prediction.termination))


class Deaf(Planted):
    """Dreams follow other actions than the given ones."""

    def step(self, state, action, noise, temperature=1.0):
        return self.inner.step(state, action.flip(0), noise, temperature)


class DeafToOne(Planted):
    """Dreams ignore the second number of the actions."""

    def step(self, state, action, noise, temperature=1.0):
        action = torch.stack([action[:, 0], torch.zeros_like(action[:, 1])], 1)
        return self.inner.step(state, action, noise, temperature)


class Overconfident(Planted):
    """The noise of a dream is a tenth of the model's."""

    def step(self, state, action, noise, temperature=1.0):
        return self.inner.step(state, action, 0.5 + 0.02 * (noise - 0.5), temperature)


class Spike(Planted):
    """A reward that no data has shown, where the angle is large."""

    def predict(self, state, action, following, prediction):
        far = self.decode(following)[:, 0] > 1.5
        return prediction._replace(reward=torch.where(far, 100.0, prediction.reward))


class Blind(Planted):
    """The second number of the observation never changes in a dream."""

    def decode(self, state):
        decoded = self.inner.decode(state).clone()
        decoded[:, 1] = 0.1
        return decoded


def push(observation: np.ndarray) -> int:
    """Push to the right, always."""
    return 1


def brake(observation: np.ndarray) -> int:
    """Push against the speed."""
    return int(observation[1] < 0)
