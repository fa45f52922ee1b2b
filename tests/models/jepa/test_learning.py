"""A JEPA learns a known world: its embeddings contain the state, and do not collapse."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import GoalReward, Segment, filter_states, imagine
from dreamgym.models.jepa.config import JEPAConfig, JEPAObjective
from dreamgym.models.jepa.model import JEPA

CONFIG = JEPAConfig(embedding=8, width=64, blocks=1, heads=2, head_width=8, mlp=64)
BATCH, LENGTH = 64, 6
UPDATES = 150
EMA_UPDATES = 250  # predictions of a slow target need more


def clocks(batch: int, length: int, seed: int) -> Segment:
    """Clocks whose hand the action turns, with the height of its tip as the reward."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(batch, length, 1, generator=generator) * 2 - 1
    start = torch.rand(batch, 1, generator=generator) * 2 * torch.pi
    angle = torch.cat([start, start + (0.2 + 0.5 * action.squeeze(-1)).cumsum(1)], 1)
    observation = torch.stack([angle.cos(), angle.sin()], -1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    return Segment(observation, action, observation[:, 1:, 1], ~mask, mask)


@cache
def fitted(objective: JEPAObjective) -> JEPA:
    torch.manual_seed(0)
    space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    model = JEPA(space, action, replace(CONFIG, objective=objective)).train()
    for codec in model.senses.vectors:
        codec.low.fill_(-1.0)  # the data's range, which `set_statistics` would set
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for update in range(EMA_UPDATES if objective.momentum else UPDATES):
        noise = torch.rand(BATCH, LENGTH + 1, 8, generator=torch.Generator().manual_seed(update))
        loss, _ = model.loss(clocks(BATCH, LENGTH, update), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
    return model.eval().requires_grad_(False)


def linear_r2(model: JEPA, embeddings: torch.Tensor, truth: torch.Tensor) -> float:
    """R2 of a linear regression of the true state on embeddings, fitted on other clocks."""
    other = clocks(512, 1, seed=9_999).observation.flatten(0, 1)
    inputs = torch.nn.functional.pad(model.embed(other), (0, 1), value=1.0)
    weights = torch.linalg.lstsq(inputs, other).solution
    estimate = torch.nn.functional.pad(embeddings, (0, 1), value=1.0) @ weights
    return float(1 - (estimate - truth).square().mean() / truth.var(unbiased=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        JEPAObjective(sigreg=0.02, rollout=3),
        JEPAObjective(std=1.0, cov=1.0, rollout=3),
        JEPAObjective(momentum=0.99, momentum_updates=EMA_UPDATES, rollout=3),
    ],
    ids=["sigreg", "vicreg", "ema"],
)
def test_embeddings_and_dreams_contain_the_state(objective):
    model = fitted(objective)
    segment = clocks(256, 12, seed=10_000)
    noise = torch.rand(256, 13, 8, generator=torch.Generator().manual_seed(0))
    states = filter_states(model, segment, noise)
    now = {key: leaf[:, 2] for key, leaf in states.items()}
    assert linear_r2(model, model.features(now), segment.observation[:, 2]) > 0.95
    dreamt, prediction = imagine(model, now, segment.action[:, 2:], noise[:, 3:])
    last = {key: leaf[:, -1] for key, leaf in dreamt.items()}
    truth = segment.observation[:, -1]
    start = segment.observation[:, 2]
    error = (model.decode(last) - truth).square().mean()
    assert error < 0.2 * (start - truth).square().mean()
    assert (prediction.reward - segment.reward[:, 2:]).square().mean() < 0.25 * segment.reward.var()
    assert (prediction.termination < 0.05).all()


@pytest.mark.slow
def test_without_a_regulariser_embeddings_collapse_and_the_metrics_show_it():
    free = fitted(JEPAObjective(rollout=3))
    regularised = fitted(JEPAObjective(sigreg=0.02, rollout=3))
    segment, noise = clocks(256, LENGTH, seed=7), torch.rand(256, LENGTH + 1, 8)
    _, without = free.loss(segment, noise)
    _, with_it = regularised.loss(segment, noise)
    assert without["embedding_std"] < 0.3 * with_it["embedding_std"]
    assert with_it["embedding_std"] > 0.6


def test_a_goal_reward_is_a_distance_of_embeddings():
    torch.manual_seed(0)
    space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    model = JEPA(space, action, replace(CONFIG, objective=JEPAObjective(sigreg=1.0))).eval()
    goal = np.float32([0.0, 1.0])
    wrapped = GoalReward(model, goal)
    segment, noise = clocks(4, 1, seed=0), torch.rand(4, 8)
    state = model.observe(model.initial(4), torch.zeros(4, 1), segment.observation[:, 0], noise)
    after, prediction = wrapped.step(state, segment.action[:, 0], noise)
    distance = (model.features(after) - model.embed(torch.from_numpy(goal))).norm(dim=-1)
    torch.testing.assert_close(prediction.reward, -distance)
