"""Dyna-Q on a table: planning in the model takes the place of real steps.

Sutton and Barto 2018, "Reinforcement Learning: An Introduction", example 8.1 and figure 8.2: a maze
of 6 x 9 cells in which a way of 14 steps is the shortest. Without planning an agent needs about 25
episodes to be near it, with 5 planning steps after each real one about 5, and with 50 about 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import Prediction, WorldModel

ROWS, COLUMNS = 6, 9
WALLS = {(1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7)}
START, GOAL = (2, 0), (0, 8)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
SHORTEST = 14
GAMMA, ALPHA, EPSILON = 0.95, 0.1, 0.1
EPISODES, RUNS = 50, 3


class DynaMaze(gym.Env):
    """The maze; a move into a wall stays where it is, and the goal pays 1."""

    observation_space = gym.spaces.Box(0.0, ROWS * COLUMNS - 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(len(MOVES))

    def reset(self, *, seed=None, options=None):
        self.place = START
        return self._observed(), {}

    def step(self, action):
        row, column = np.add(self.place, MOVES[action]).tolist()
        if 0 <= row < ROWS and 0 <= column < COLUMNS and (row, column) not in WALLS:
            self.place = (row, column)
        ended = self.place == GOAL
        return self._observed(), float(ended), ended, False, {}

    def _observed(self):
        return np.float32([self.place[0] * COLUMNS + self.place[1]])


@dataclass(frozen=True)
class TableConfig:
    """A table has no sizes of its own."""


class TableModel(WorldModel):
    """The last outcome of every action in every cell. State: `cell` (B,)."""

    config_type = TableConfig
    feature_dim, noise_dim = 1, 1

    def __init__(self, observation_space, action_space, config):
        super().__init__(observation_space, action_space, config)
        shape = (ROWS * COLUMNS, len(MOVES))
        self.register_buffer("following", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("reward", torch.zeros(shape))
        self.register_buffer("ended", torch.zeros(shape))

    def learn(self, cell, action, following, reward, ended):
        self.following[cell, action] = following
        self.reward[cell, action], self.ended[cell, action] = reward, ended

    def initial(self, batch_size):
        return {"cell": torch.zeros(batch_size, dtype=torch.int64)}

    def observe(self, state, action, observation, noise):
        return {"cell": observation[:, 0].long()}

    def step(self, state, action, noise, temperature=1.0):
        at = (state["cell"], action)
        reward = self.reward[at]
        prediction = Prediction(reward, self.ended[at], torch.zeros_like(reward))
        return {"cell": self.following[at]}, prediction

    def features(self, state):
        return state["cell"].float().unsqueeze(-1)

    def loss(self, segment, noise):
        raise NotImplementedError  # it learns by counting


def steps_of_episodes(planning: int, seed: int) -> list[int]:
    """Return the real steps of every episode of Dyna-Q with some planning steps a real step."""
    rng, env = np.random.default_rng(seed), DynaMaze()
    model = TableModel(env.observation_space, env.action_space, TableConfig())
    q = np.zeros((ROWS * COLUMNS, len(MOVES)))
    visited: dict[tuple[int, int], None] = {}
    noise = torch.zeros(planning, 1)

    def update(cell, action, reward, following, ended):
        target = reward + GAMMA * (0.0 if ended else q[following].max())
        q[cell, action] += ALPHA * (target - q[cell, action])

    lengths = []
    for _ in range(EPISODES):
        observation, _ = env.reset()
        cell, ended, steps = int(observation[0]), False, 0
        while not ended:
            greedy = np.flatnonzero(q[cell] == q[cell].max())
            action = int(
                rng.integers(4) if rng.random() < EPSILON else greedy[rng.integers(len(greedy))]
            )
            observation, reward, ended, _, _ = env.step(action)
            following = int(observation[0])
            update(cell, action, reward, following, ended)
            model.learn(cell, action, following, reward, ended)
            visited[cell, action] = None
            if planning:
                pairs = list(visited)
                chosen = np.array([pairs[i] for i in rng.integers(len(pairs), size=planning)])
                cells, actions = torch.from_numpy(chosen).unbind(1)
                state, prediction = model.step({"cell": cells}, actions, noise)
                outcomes = (
                    cells,
                    actions,
                    prediction.reward,
                    state["cell"],
                    prediction.termination,
                )
                for each in zip(*(leaf.tolist() for leaf in outcomes), strict=True):
                    update(*each)
            cell, steps = following, steps + 1
        lengths.append(steps)
    return lengths


@pytest.fixture(scope="module")
def curves():
    """Mean steps of each episode over all runs, by planning steps."""
    return {
        planning: np.mean([steps_of_episodes(planning, seed) for seed in range(RUNS)], 0)
        for planning in (0, 5, 50)
    }


def episodes_until_near(curve):
    """Return the first episode, from 1, that takes at most 1.5 times the shortest way."""
    return 1 + int(np.argmax(curve <= 1.5 * SHORTEST))


def test_episodes_until_a_short_way_is_found_are_those_of_figure_8_2(curves):
    found = {planning: episodes_until_near(curve) for planning, curve in curves.items()}
    assert 15 <= found[0] <= 35
    assert 3 <= found[5] <= 8
    assert 2 <= found[50] <= 4


def test_planning_steps_cut_the_real_steps(curves):
    # the first episode is a random walk in each case: there is nothing to plan with
    excess = {planning: float((curve[1:] - SHORTEST).sum()) for planning, curve in curves.items()}
    assert excess[0] > 4 * excess[5]
    assert excess[5] > 1.5 * excess[50]
    assert (curves[50][5:] < 1.5 * SHORTEST).all()
