"""A short fit of an RSSM on a small environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import RSSM, RSSMConfig, Segment, filter_states
from dreamgym.models.statistics import measure_statistics

EPISODES, LENGTH, BURN_IN, UPDATES, RATE = 128, 6, 3, 120, 5e-3


def a_swing(seed: int = 0) -> Segment:
    """Return episodes of a linear pendulum that is pushed left or right and rewarded at rest."""
    rng = np.random.default_rng(seed)
    seen, actions = [rng.normal(size=(EPISODES, 2))], []
    for _ in range(LENGTH):
        angle, speed = seen[-1].T
        actions.append(rng.integers(0, 2, EPISODES))
        speed = speed + 0.5 * (2 * actions[-1] - 1) - 0.4 * angle
        seen.append(np.stack([angle + 0.4 * speed, speed], 1))
    observation = torch.tensor(np.stack(seen, 1), dtype=torch.float32)
    return Segment(
        observation,
        torch.tensor(np.stack(actions, 1)),
        -observation[:, 1:].square().sum(-1),
        torch.zeros(EPISODES, LENGTH, dtype=torch.bool),
        torch.ones(EPISODES, LENGTH, dtype=torch.bool),
    )


@pytest.mark.parametrize(("stoch", "classes"), [(8, 8), (4, 0)])
def test_a_short_fit_lowers_the_loss_and_predicts_one_step_ahead(stoch, classes):
    torch.manual_seed(0)
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    config = RSSMConfig(deter=48, hidden=48, stoch=stoch, classes=classes, units=48)
    model = RSSM(space, gym.spaces.Discrete(2), config)
    first, held_out = a_swing(0), a_swing(UPDATES)
    model.set_statistics(
        measure_statistics(zip(first.observation.numpy(), first.reward.numpy(), strict=True))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    shape, losses = (EPISODES, LENGTH + 1, model.noise_dim), []
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = RATE * (1 - update / UPDATES)
        loss, _ = model.loss(a_swing(update), torch.rand(shape))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.2 * losses[0]

    with torch.no_grad():
        states = filter_states(model, held_out, torch.rand(shape))
        start = {key: leaf[:, BURN_IN] for key, leaf in states.items()}
        noise = torch.rand(EPISODES, model.noise_dim)
        following, prediction = model.step(start, held_out.action[:, BURN_IN], noise)
        seen = model.decode(following)
    truth, last = held_out.observation[:, BURN_IN + 1], held_out.observation[:, BURN_IN]
    reward = held_out.reward[:, BURN_IN]
    assert rms(seen - truth) < 0.7 * rms(last - truth)
    assert rms(prediction.reward - reward) < 0.7 * float(reward.std())


def rms(error: torch.Tensor) -> float:
    return float(error.square().mean() ** 0.5)
