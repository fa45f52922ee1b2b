"""The goal value: its loss, the steps that it learns, and goals that are compared by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from dreamgym.models import Ensemble, GoalReward, ModelSpec, WorldModel
from dreamgym.models.jepa import JEPAConfig
from dreamgym.models.jepa.config import JEPAObjective
from dreamgym.models.jepa.goal_value import GoalValue
from dreamgym.models.wrappers import EnsembleConfig
from tests.models.jepa.test_model import SMALL, a_model, a_segment, noise_for

CONFIG = replace(SMALL, goal_value=5)


def small_value(width: int = 4) -> GoalValue:
    torch.manual_seed(0)
    return GoalValue(width, CONFIG)


def test_the_loss_is_the_expectile_of_one_step_errors():
    value = small_value().double()
    batch, times = 3, 6
    embeddings = torch.randn(batch, times, 4, dtype=torch.float64)
    observed = torch.ones(batch, times, dtype=torch.bool)
    observed[1, 4:] = False
    noise = torch.rand(batch, times, 7, dtype=torch.float64)
    expected = []
    for kind in ("later", "other"):
        losses = []
        for b in range(batch):
            for t in range(times - 1):
                first, last = noise[b, t, 0].item(), noise[b, t, -1].item()
                row, time = b, t + 1 + int(first * (times - 1 - t))
                if kind == "other":
                    row, time = (b + 1 + int(last * (batch - 1))) % batch, int(first * times)
                if not (observed[b, t + 1] and observed[row, time]):
                    continue
                goal = embeddings[row, time]
                now = -(value(embeddings[b, t]) - value(goal)).norm()
                after = -(value(embeddings[b, t + 1]) - value(goal)).norm()
                difference = -1 + 0.98 * after - now
                losses.append((0.9 if difference > 0 else 0.1) * difference**2)
        expected.append(sum(losses) / len(losses))
    torch.testing.assert_close(value.error(embeddings, observed, noise), sum(expected) / 2)


def test_the_value_counts_steps_where_the_embedding_counts_distance():
    """Three quarters of a ring: who stands at one end sees the other end, 60 steps away."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 1.5 * torch.pi, 61)
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    config = replace(JEPAConfig(goal_value=16, width=64), objective=JEPAObjective(expectile=0.95))
    torch.manual_seed(0)
    value = GoalValue(2, config)
    optimizer = torch.optim.Adam(value.parameters(), 5e-3)
    observed = torch.ones(128, 9, dtype=torch.bool)
    for _ in range(400):
        moves = torch.randint(-1, 2, (128, 8), generator=generator).cumsum(1)
        starts = torch.randint(61, (128, 1), generator=generator)
        places = torch.cat([starts, starts + moves], 1).clamp(0, 60)
        noise = torch.rand(128, 9, 2, generator=generator)
        optimizer.zero_grad()
        value.error(ring[places], observed, noise).backward()
        optimizer.step()
    with torch.no_grad():
        learned = (value(ring) - value(ring[:1])).norm(dim=-1).numpy()
    steps = np.arange(61)
    assert spearmanr(learned, steps).statistic > 0.95
    assert spearmanr((ring - ring[0]).norm(dim=-1), steps).statistic < 0.8
    discounted = (1 - 0.98**steps) / 0.02
    assert np.abs(learned - discounted)[:40].max() < 4


def test_only_the_value_changes_with_the_value():
    """Loss terms and gradients of everything else are those of the model without it."""
    with_value, without = a_model(CONFIG).train(), a_model().train()
    without.load_state_dict(with_value.state_dict(), strict=False)
    segment = a_segment()
    terms = []
    for model in (with_value, without):
        total, named = model.loss(segment, noise_for(model, segment))
        total.backward()
        terms.append(named)
    shared = dict(without.named_parameters())
    assert set(terms[0]) - set(terms[1]) == {"goal_value"}
    for name, parameter in with_value.named_parameters():
        if name.startswith("goal_value.network"):
            assert parameter.grad is not None
        elif name in shared:
            torch.testing.assert_close(parameter.grad, shared[name].grad)
    assert not with_value.selects_by_loss
    assert without.selects_by_loss


@pytest.mark.parametrize("members", [0, 2])
def test_goals_are_compared_by_the_value_in_every_form(members):
    model = a_model(CONFIG)
    place, goal = np.float32([1, 0, 0, 0]), np.float32([0, 1, 0, 2])
    inner: WorldModel = model
    if members:
        spec = EnsembleConfig(member=ModelSpec.of(model), members=members, elites=members)
        inner = Ensemble(model.observation_space, model.action_space, spec)
        for member in inner.members:
            member.load_state_dict(model.state_dict())
        inner.eval()
    goals = GoalReward(inner, goal)
    embedded = model.goal_value(model.embed(torch.tensor(np.stack([place, goal]))))
    expected = (embedded[0] - embedded[1]).norm()
    for form in (goals, goals.prepare(1, torch.device("cpu"), torch.float32)):
        state = form.observe(
            form.initial(1),
            torch.zeros(1, 2),
            torch.tensor(place)[None],
            torch.full((1, form.noise_dim), 0.5),
        )
        torch.testing.assert_close(form.distance(state), expected[None])


@pytest.mark.parametrize("setting", ["expectile", "value_discount"])
def test_settings_that_make_no_value_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=1.0: expected a number above 0 and below 1"):
        JEPAObjective(**{setting: 1.0})


def test_a_model_without_a_value_compares_embeddings():
    model = a_model()
    state = model.initial(3)
    torch.testing.assert_close(model.goal_features(state), model.features(state))
