"""The contract of planners, over all of them, all families, and worlds with a known optimum."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import FAMILIES, Acts, GoalReward, Values
from dreamgym.train import TrainingError
from dreamgym.train.planners import (
    PLANNER_PRESETS,
    PLANNERS,
    CategoricalCEMConfig,
    CEMConfig,
    GradientConfig,
    ICEMConfig,
    MPPIConfig,
    make_planner,
)
from dreamgym.train.planners.noise import coloured_normals, normals
from tests.small_worlds import KINDS, ONE_EACH, observed_state, small_model
from tests.train.planners.point_world import BOX, DISCRETE, MULTI, OBSERVATION, PointConfig
from tests.train.planners.point_world import PointWorld as Point

SMALL = {
    "cem": CEMConfig(horizon=3, candidates=24, iterations=2, elites=6),
    "icem": ICEMConfig(horizon=3, candidates=24, iterations=2, elites=6),
    "mppi": MPPIConfig(horizon=3, candidates=24, iterations=2, elites=6),
    "gradient": GradientConfig(horizon=3, candidates=4, iterations=2),
    "categorical-cem": CategoricalCEMConfig(horizon=3, candidates=24, iterations=2, elites=6),
}
GOOD = {
    "cem": CEMConfig(horizon=3, candidates=200, iterations=12, elites=20),
    "icem": ICEMConfig(horizon=3, candidates=100, iterations=12, elites=10, beta=0.0),
    "mppi": MPPIConfig(horizon=3, candidates=300, iterations=20, elites=60, temperature=0.5),
    "gradient": GradientConfig(horizon=3, candidates=8, iterations=100),
    "categorical-cem": CategoricalCEMConfig(horizon=3, candidates=200, iterations=8, elites=20),
}
CONTINUOUS = sorted({*PLANNERS} - {"categorical-cem"})


def keys(count, seed=0):
    return torch.arange(count) + 1000 * seed


def fits(planner, space):
    return isinstance(space, gym.spaces.Box) != (planner == "categorical-cem")


@pytest.fixture(params=sorted({*ONE_EACH, *KINDS[:3]}), ids="-".join)
def model(request):
    return small_model(*request.param)


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_a_plan_is_within_the_space_reproducible_and_independent_of_the_batch(name, model):
    if not fits(name, model.action_space):
        with pytest.raises(TypeError, match="action space is"):
            make_planner(model, name)
        return
    planner = make_planner(model, replace(SMALL[name], particles=2))
    state = observed_state(model, 3)
    plan = planner.plan(state, keys(3))
    again = planner.plan(state, keys(3))
    assert torch.equal(plan.actions, again.actions)
    assert plan.actions.shape == (3, 3, *model.action_space.shape)
    for action in plan.actions.flatten(0, 1).numpy():
        assert model.action_space.contains(action.astype(model.action_space.dtype)[()])
    following = planner.plan(state, keys(3, 1), plan.memory)
    for row in range(3):
        own = slice(row, row + 1)
        alone_state = {key: leaf[own] for key, leaf in state.items()}
        memory = {key: leaf[own] for key, leaf in plan.memory.items()}
        alone = planner.plan(alone_state, keys(3, 1)[own], memory)
        torch.testing.assert_close(alone.actions, following.actions[own], atol=1e-3, rtol=1e-3)
    other = planner.plan(state, keys(3, 2))
    name = next(iter(plan.memory))
    assert not torch.equal(other.memory[name], plan.memory[name])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_optimum_of_a_quadratic_world_is_found(name):
    model = Point(OBSERVATION, BOX)
    state = {"x": torch.tensor([[0.0, 0.0], [0.2, 3.0]])}
    plan = make_planner(model, GOOD[name]).plan(state, keys(2))
    reached = state["x"].unsqueeze(1) + plan.actions.cumsum(1)
    expected = model.target.expand(2, 3, 2).clone()
    expected[1, 0, 1] = -1.0  # the bounds allow no more in one step
    torch.testing.assert_close(reached, expected, atol=0.15, rtol=0.0)
    best = -(expected - model.target).square().sum((1, 2))
    torch.testing.assert_close(plan.value, best, atol=0.1, rtol=0.0)


@pytest.mark.parametrize("space", [DISCRETE, MULTI], ids=["discrete", "multi-discrete"])
def test_the_optimum_is_found_with_discrete_actions(space):
    model = Point(OBSERVATION, space, PointConfig(target=(1.0, -2.0)))
    plan = make_planner(model, GOOD["categorical-cem"]).plan({"x": torch.zeros(2, 2)}, keys(2))
    if isinstance(space, gym.spaces.Discrete):
        assert torch.equal(plan.value, torch.tensor([-3.0, -3.0]))  # two steps off, one, there
        assert all(sorted(row.tolist()) == [4, 5, 5] for row in plan.actions)
    else:
        assert plan.actions.tolist() == [[[1, -2], [0, 0], [0, 0]]] * 2


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_a_plan_starts_from_the_previous_one_shifted(name):
    space = MULTI if name == "categorical-cem" else BOX
    model = Point(OBSERVATION, space)
    still = {"std": 0.0} if name != "categorical-cem" else {}
    still |= {"min_std": 0.0} if name == "mppi" else {}
    still |= {"keep": 1.0} if name == "icem" else {}
    still |= {"learning_rate": 0.0} if name == "gradient" else {"elites": 1}
    config = replace(SMALL[name], iterations=1, candidates=1, execute=2, **still)
    planner = make_planner(model, config)
    start, state = planner.initial(1), {"x": torch.zeros(1, 2)}
    if name == "categorical-cem":
        start["probabilities"] = torch.zeros_like(start["probabilities"])
        start["probabilities"][..., 1] = 1.0
        expected = torch.tensor([[[0, -1]] * 3])
    else:
        expected = torch.tensor([[[0.25, 1.0], [0.5, 1.0], [1.0, 2.0]]])
        start["mean"][:] = planner.box.units(expected)
        if "elites" in start:
            start["elites"][:] = start["mean"].unsqueeze(1)
    plan = planner.plan(state, keys(1), start)
    torch.testing.assert_close(plan.actions, expected)
    following = planner.plan(state, keys(1), plan.memory)
    torch.testing.assert_close(following.actions[:, 0], expected[:, 2])
    cold = make_planner(model, replace(config, warm_start=False))
    assert not torch.equal(cold.plan(state, keys(1), start).actions, plan.actions)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_each_row_has_its_own_goal(name, monkeypatch):
    monkeypatch.setitem(FAMILIES, "point", Point)
    model = GoalReward(Point(OBSERVATION, BOX), np.zeros(2, np.float32))
    goals = torch.tensor([[0.5, 1.0], [-0.5, -3.0]])
    state = model.with_goals({"x": torch.zeros(2, 2)}, goals)
    config = replace(GOOD[name], horizon=2, terminal_only=True)
    planner = make_planner(model, config, value=model)
    plan = planner.plan(state, keys(2))
    torch.testing.assert_close(plan.actions.sum(1), goals, atol=0.3, rtol=0.0)
    assert torch.all(plan.value > -0.3)
    own = make_planner(model, config, value=model).plan({"x": torch.zeros(2, 2)}, keys(2))
    assert torch.all(own.actions.sum(1).abs() < 0.3)


class Right:
    """Values the right side, and proposes to go there."""

    def value(self, state):
        return 100.0 * state["x"][:, 0]

    def policy(self, state, noise):
        return torch.tensor([1.0, 0.0]).expand(len(noise), 2)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_value_of_the_last_state_counts_unless_the_episode_has_ended(name):
    assert isinstance(Right(), Values)
    assert isinstance(Right(), Acts)
    state = {"x": torch.zeros(1, 2)}
    model = Point(OBSERVATION, BOX)
    plan = make_planner(model, GOOD[name], value=Right()).plan(state, keys(1))
    assert plan.actions[..., 0].sum() > 2.5
    deadly = Point(OBSERVATION, BOX, PointConfig(deadly=0.9, target=(2.0, 0.0)))
    if name != "gradient":  # a gradient does not see a step function
        plan = make_planner(deadly, GOOD[name], value=Right()).plan(state, keys(1))
        assert 0.5 < plan.actions[..., 0].sum() < 0.95


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient"])
def test_candidates_of_a_proposal_join(name):
    still = {} if name != "mppi" else {"min_std": 0.0}
    still |= {"elites": 1} if name != "gradient" else {"learning_rate": 0.0}
    config = replace(SMALL[name], candidates=1, std=0.0, iterations=1, proposals=2, **still)
    model = Point(OBSERVATION, BOX, PointConfig(target=(3.0, -1.0)))
    state = {"x": torch.zeros(2, 2)}
    plan = make_planner(model, config, proposal=Right()).plan(state, keys(2))
    expected = torch.tensor([1.0, 0.0]).expand(2, 3, 2)
    torch.testing.assert_close(plan.actions, expected)


def test_mppi_explores_around_its_best_candidates():
    model, rows = Point(OBSERVATION, BOX), 256
    config = replace(GOOD["mppi"], temperature=0.1, min_std=0.05)
    planners = [make_planner(model, each) for each in (config, config.exploring())]
    state = {"x": torch.zeros(rows, 2)}
    mean, drawn = (planner.plan(state, keys(rows)) for planner in planners)
    torch.testing.assert_close(drawn.memory, mean.memory)
    away = planners[0].box.units(drawn.actions) - planners[0].box.units(mean.actions)
    assert 0.04 < away[:, 0].std() < 0.3
    assert away[:, 0].mean().abs() < 0.05
    again = planners[1].plan({"x": torch.zeros(1, 2)}, keys(rows)[5:6])
    torch.testing.assert_close(again.actions[0], drawn.actions[5])
    low, high = torch.as_tensor(BOX.low), torch.as_tensor(BOX.high)
    assert torch.all((drawn.actions >= low) & (drawn.actions <= high))


def test_a_batch_that_does_not_fit_is_planned_in_parts(monkeypatch):
    model = Point(OBSERVATION, BOX)
    planner, state = make_planner(model, SMALL["cem"]), {"x": torch.randn(5, 2)}
    whole = planner.plan(state, keys(5))
    monkeypatch.setattr("dreamgym.train.planners.base.MAX_ROWS", 48)
    parts = planner.plan(state, keys(5))
    torch.testing.assert_close(parts.actions, whole.actions)
    torch.testing.assert_close(parts.memory, whole.memory)


def test_predictions_that_are_not_a_number_are_never_chosen():
    model = Point(OBSERVATION, BOX)
    model.target.data[:] = torch.nan
    for name in CONTINUOUS:
        plan = make_planner(model, SMALL[name]).plan({"x": torch.zeros(1, 2)}, keys(1))
        assert plan.actions.isfinite().all()


def test_a_planner_pickles_without_its_prepared_model():
    model = small_model("mdn-rnn", "box")
    planner, state = make_planner(model, SMALL["icem"]), observed_state(model, 2)
    expected = planner.plan(state, keys(2))
    copied = pickle.loads(pickle.dumps(planner))  # noqa: S301 - made in this test
    torch.testing.assert_close(copied.plan(state, keys(2)).actions, expected.actions)


PUBLISHED = {
    # Hafner et al. 2019, arXiv 1811.04551, appendix A
    "planet": {"horizon": 12, "candidates": 1000, "iterations": 10, "elites": 100, "std": 1.0},
    # mbrl-lib's PETS on CartPole; a tenth of the candidates are elites
    "pets": {"horizon": 15, "candidates": 350, "iterations": 5, "elites": 35, "particles": 20},
    # Pinneri et al. 2020, arXiv 2008.06389
    "icem-paper": {
        "horizon": 30,
        "candidates": 40,
        "iterations": 3,
        "elites": 10,
        "decay": 1.25,
        "keep": 0.3,
        "std": 0.5,
        "smoothing": 0.1,
    },
    # LeWM, arXiv 2603.19312: 5 blocks of 5 actions, all of which are taken
    "lewm": {"horizon": 5, "candidates": 300, "iterations": 30, "elites": 30, "execute": 5},
    # TD-MPC2, arXiv 2310.16828: 512 samples, of which 24 are the policy's
    "td-mpc2": {
        "horizon": 3,
        "discount": 0.99,
        "candidates": 512 - 24,
        "iterations": 6,
        "elites": 64,
        "std": 2.0,
        "min_std": 0.05,
        "temperature": 1 / 0.5,
    },
}


@pytest.mark.parametrize("name", sorted(PLANNER_PRESETS))
def test_presets_have_the_published_numbers_and_make_planners(name):
    planner = make_planner(Point(OBSERVATION, BOX), name, value=Right())
    for key, value in PUBLISHED[name].items():
        assert getattr(planner.config, key) == value, key


def test_icem_draws_as_many_candidates_as_its_paper_says(monkeypatch):
    """2,910 model steps a decision, besides those of elites that are kept."""
    counts = []

    def counted(keys, count, shape, beta):
        counts.append(count)
        return coloured_normals(keys, count, shape, beta)

    monkeypatch.setattr("dreamgym.train.planners.icem.coloured_normals", counted)
    planner = make_planner(Point(OBSERVATION, BOX), "icem-paper")
    planner.plan({"x": torch.zeros(1, 2)}, keys(1))
    assert counts == [40, 32, 25]
    assert sum(counts) * planner.config.horizon == 2910


def test_a_planner_refuses_what_it_cannot_do():
    box, discrete = Point(OBSERVATION, BOX), Point(OBSERVATION, DISCRETE)
    with pytest.raises(TrainingError, match="did you mean 'cem'"):
        make_planner(box, "cen")
    with pytest.raises(TrainingError, match="not the config of a planner"):
        make_planner(box, 3)
    with pytest.raises(TypeError, match="use 'categorical-cem'"):
        make_planner(discrete, "cem")
    with pytest.raises(TypeError, match="use 'cem'"):
        make_planner(box, "categorical-cem")
    with pytest.raises(ValueError, match="terminal_only=True needs a value"):
        make_planner(box, "lewm")
    whole = gym.spaces.Box(0, 5, (2,), np.int64)
    with pytest.raises(TypeError, match="whole numbers"):
        make_planner(Point(OBSERVATION, whole), "gradient")
    for wrong in ({"horizon": 0}, {"execute": 9, "horizon": 3}, {"discount": 0.0}, {"elites": 301}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CEMConfig(**wrong)


def test_numbers_without_bounds_keep_their_unit():
    unbounded = gym.spaces.Box(np.float32([-np.inf, -1]), np.float32([np.inf, 1]))
    model = Point(OBSERVATION, unbounded, PointConfig(target=(4.0, 0.5)))
    config = replace(GOOD["cem"], std=2.0)
    plan = make_planner(model, config).plan({"x": torch.zeros(1, 2)}, keys(1))
    torch.testing.assert_close(plan.actions[0, 0], torch.tensor([4.0, 0.5]), atol=0.3, rtol=0.0)


def test_whole_numbers_of_a_box_are_planned():
    whole = gym.spaces.Box(-3, 3, (2,), np.int64)
    model = Point(OBSERVATION, whole, PointConfig(target=(2.0, -3.0)))
    plan = make_planner(model, GOOD["cem"]).plan({"x": torch.zeros(1, 2)}, keys(1))
    assert plan.actions.tolist() == [[[2, -3], [0, 0], [0, 0]]]


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("steps", [7, 8])
def test_coloured_noise_has_unit_variance_and_its_spectrum(beta, steps):
    noise = coloured_normals(keys(4), 4000, (steps, 2), beta).double()
    variance = noise.square().mean((0, 1, 3))
    torch.testing.assert_close(variance, torch.ones(steps).double(), atol=0.06, rtol=0.0)
    power = torch.fft.rfft(noise, dim=-2).abs().square().mean((0, 1, 3))
    expected = (torch.arange(1, len(power)) / 1.0) ** -beta
    measured = power[1:] / power[1]
    torch.testing.assert_close(measured, expected.double(), rtol=0.1, atol=0.0)


def test_truncated_normals_stay_within_two_deviations():
    noise = normals(keys(4), 2000, (3, 2), truncated=True)
    assert noise.abs().max() <= 2.001
    assert abs(float(noise.std()) - 0.88) < 0.01  # of a normal truncated at two
