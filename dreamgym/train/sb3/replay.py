"""A replay buffer whose batches hold real transitions beside dreamt ones, as MBPO's do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from dreamgym.data import AnyDataset
from dreamgym.train.sb3.vec_env import SB3VecEnv


class MixedReplayBuffer(ReplayBuffer):
    """A replay buffer that draws a share of every batch from a second one.

    Janner et al. 2019 (MBPO), arXiv 1906.08253: the published code trains SAC on 5% real data.

    Args:
        *arguments: see `ReplayBuffer`.
        real: buffer of real transitions.
        share: share of real transitions in a batch, in [0, 1); at least one is drawn.
        **keywords: see `ReplayBuffer`.
    """

    def __init__(self, *arguments: Any, real: ReplayBuffer, share: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._real, self._share = real, share

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw a batch."""
        count = max(1, round(self._share * batch_size))
        parts = [self._real.sample(count, env)]
        if count < batch_size:
            parts.append(super().sample(batch_size - count, env))
        fields = zip(*parts, strict=True)
        return ReplayBufferSamples(
            *(None if values[0] is None else torch.cat(values) for values in fields)  # type: ignore[arg-type]
        )


def real_transitions(data: AnyDataset, env: SB3VecEnv) -> ReplayBuffer:
    """Return all transitions of a dataset as a replay buffer.

    Args:
        data: dataset with the spaces of the environment.
        env: environment that the learner trains in: its action space and reward scale apply.
    """
    episodes = [data.episode(index) for index in range(data.num_episodes)]
    steps = sum(episode.length for episode in episodes)  # with a frame skip fewer than recorded
    buffer = ReplayBuffer(steps, env.observation_space, env.action_space, "cpu")
    space, place = env.action_space, 0
    for episode in episodes:
        rows, observations = slice(place, place + episode.length), np.asarray(episode.observations)
        buffer.observations[rows, 0], buffer.next_observations[rows, 0] = (
            observations[:-1],
            observations[1:],
        )
        buffer.actions[rows, 0] = _learner_actions(
            np.asarray(episode.actions), data.action_space, space
        )
        buffer.rewards[rows, 0] = episode.rewards * env.reward_scale
        buffer.dones[rows.stop - 1, 0] = episode.terminated
        place = rows.stop
    buffer.pos, buffer.full = 0, True
    return buffer


def _learner_actions(actions: np.ndarray, own: gym.Space[Any], space: gym.Space[Any]) -> np.ndarray:
    """Return actions (T, ...) of an environment as (T, n) of a replay buffer.

    Off-policy algorithms store Discrete actions from 0 and Box actions scaled to [-1, 1].
    """
    if isinstance(own, gym.spaces.Discrete):
        return (actions - own.start)[:, None]
    if not isinstance(space, gym.spaces.Box):
        raise TypeError(f"expected Discrete or Box actions, got {space}")
    scaled = 2.0 * (actions - space.low) / (space.high - space.low) - 1.0
    return scaled.reshape(len(actions), -1)
