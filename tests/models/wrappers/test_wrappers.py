"""Models around models: each changes what it says it changes, and nothing else, bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.errors import WorldError
from dreamgym.models import (
    Decodes,
    GoalReward,
    KnownReward,
    KnownTermination,
    Pessimistic,
    Segment,
    WorldModel,
    filter_states,
)
from dreamgym.models.spec import to_json
from tests.small_worlds import (
    GOAL,
    SPECIAL,
    random_actions,
    small_ensemble,
    small_model,
    small_pets,
    small_world,
)

ROWS = 16


def stepped(model: WorldModel, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    segment = Segment(
        observation=torch.randn(ROWS, 3, 4, generator=generator),
        action=random_actions(model.action_space, ROWS * 2, seed).unflatten(0, (ROWS, 2)),
        reward=torch.zeros(ROWS, 2),
        terminated=torch.zeros(ROWS, 2, dtype=torch.bool),
        mask=torch.ones(ROWS, 2, dtype=torch.bool),
    )
    noise = torch.rand(ROWS, 4, model.noise_dim, generator=generator)
    states = filter_states(model, segment, noise[:, :3])
    state = {key: leaf[:, -1] for key, leaf in states.items()}
    action = random_actions(model.action_space, ROWS, seed + 1)
    return state, action, *model.step(state, action, noise[:, 3])


def only_differ_in(one: WorldModel, other: WorldModel, *names: str) -> None:
    _, _, state, said = stepped(one)
    _, _, state_other, said_other = stepped(other)
    for key, leaf in state.items():
        assert torch.equal(leaf, state_other[key]), key
    assert torch.equal(one.features(state), other.features(state_other))
    for name in said._fields:
        same = torch.equal(getattr(said, name), getattr(said_other, name))
        assert same == (name not in names), name


def doubled(observation, action, following):
    return 2 * following[:, 0]


def test_pessimistic_without_weight_is_the_model_inside():
    inner = small_pets("box")
    only_differ_in(Pessimistic(inner, weight=0.0), inner)


def test_pessimistic_takes_the_uncertainty_off_the_reward():
    inner = small_pets("box")
    only_differ_in(Pessimistic(inner, weight=2.0), inner, "reward")
    _, _, _, said = stepped(inner)
    _, _, _, lowered = stepped(Pessimistic(inner, weight=2.0))
    assert torch.equal(lowered.reward, said.reward - 2.0 * said.uncertainty)
    assert (lowered.reward < said.reward).all()


@pytest.mark.parametrize("inner", [small_model("mdn-rnn"), small_pets("box")])
def test_known_reward_and_termination_replace_that_and_nothing_else(inner):
    only_differ_in(KnownReward(inner, doubled), inner, "reward")
    only_differ_in(KnownTermination(inner, lambda o, a, n: n[:, 0] > 0), inner, "termination")
    _, _, state, said = stepped(KnownReward(inner, doubled))
    assert torch.equal(said.reward, 2 * inner.decode(state)[:, 0])
    _, _, state, said = stepped(KnownTermination(inner, "CartPole-v1"))
    seen = inner.decode(state)
    assert torch.equal(
        said.termination == 1, (seen[:, 0].abs() > 2.4) | (seen[:, 2].abs() > 0.2094395)
    )


def test_a_known_function_sees_the_observation_before_the_action_and_the_one_after():
    inner = small_model("mdn-rnn", "box")
    seen = []
    model = KnownReward(inner, lambda *given: seen.append(given) or given[0][:, 0])
    state, action, following, _ = stepped(model)
    before, acted, after = seen[-1]
    assert torch.equal(before, inner.decode(state))
    assert torch.equal(acted, action)
    assert torch.equal(after, inner.decode(following))


def test_goal_reward_is_minus_the_distance_of_what_is_compared():
    inner = small_model("mdn-rnn")
    model = GoalReward(inner, GOAL, leaves=("z",))
    only_differ_in(model, inner, "reward")
    _, _, state, said = stepped(model)
    at_goal = inner.observe(
        inner.initial(1), torch.zeros(1, dtype=torch.int64), torch.tensor(GOAL)[None],
        torch.rand(1, inner.noise_dim),
    )  # fmt: skip
    wanted = (state["z"] - at_goal["z"]).square().sum(-1).sqrt()
    torch.testing.assert_close(said.reward, -wanted)
    assert torch.equal(model.distance(at_goal), torch.zeros(1))
    whole = GoalReward(inner, GOAL)
    _, _, state, said = stepped(whole)
    wanted = (inner.features(state) - inner.features(at_goal)).norm(dim=-1)
    torch.testing.assert_close(said.reward, -wanted)


def test_a_goal_reached_within_the_threshold_is_terminal():
    inner = small_model("mdn-rnn")
    near = GoalReward(inner, GOAL, leaves=("z",), threshold=2.0)
    only_differ_in(near, inner, "reward", "termination")
    _, _, _, said = stepped(near)
    _, _, _, without = stepped(inner)
    reached = -said.reward <= 2.0
    assert 0 < reached.sum() < ROWS
    assert (said.termination[reached] == 1).all()
    assert torch.equal(said.termination[~reached], without.termination[~reached])


def test_compositions_decode_where_the_model_inside_does():
    for kind in ("known-reward", "goal-reward", "pessimistic", "nested"):
        assert isinstance(SPECIAL[kind]("box"), Decodes)
    world = small_world("goal-reward")
    assert world.default_view == "observation"


@pytest.mark.parametrize("kind", ["known-reward", "nested"])
def test_a_copy_stands_on_its_own(kind):
    """A dream on another device takes a copy, and the world's own model stays where it is."""
    model = small_model(kind)
    state, _, following, _ = stepped(model)
    copied = copy.deepcopy(model)
    before = copied.decode(following)
    for leaf in [*model.parameters(), *model.buffers()]:
        leaf.fill_(1)
    assert torch.equal(copied.decode(following), before)
    assert not torch.equal(model.decode(following), before)
    assert copied.features(state).shape == model.features(state).shape


def test_a_world_of_a_composition_is_two_lines_and_dreams_from_the_same_starts(tmp_path):
    world = small_world("mdn-rnn")
    known = world.with_model(KnownReward(world.model, "CartPole-v1"))
    assert known.starts is world.starts
    assert known.family == "known-reward"
    envs = dreamgym.DreamVectorEnv(known, 8, device="cpu")
    envs.reset(seed=0)
    rewards = envs.step(np.zeros(8, np.int64))[1]
    assert torch.equal(rewards, torch.ones(8))
    written = json.loads((known.save(tmp_path / "w") / "world.json").read_text())
    assert written["config"] == {
        "inner": {"family": "mdn-rnn", "config": to_json(world.model.config)},
        "function": "CartPole-v1",
    }
    assert dreamgym.load(tmp_path / "w").model.config == known.model.config
    assert replace(world, model=known.model).family == "known-reward"


def inner(**changes) -> dict:
    return {"inner": {"family": "mdn-rnn", "config": {}, **changes}, "function": "CartPole-v1"}


SPOILT = [
    (inner() | {"function": "os.system"}, "no known function 'os.system'"),
    (inner() | {"function": 5}, "not callable"),
    (inner(family="mdn"), "did you mean 'mdn-rnn'"),
    (inner(config={"hiden": 2}), "did you mean 'hidden'"),
    (inner(config={"hidden": 10**12}), "cannot be understood"),
    (inner(config={"hidden": 8}), "does not fit the config"),
    ({"function": "CartPole-v1"}, "inner"),
    ({"inner": "mdn-rnn", "function": "CartPole-v1"}, "where a config belongs"),
]


@pytest.mark.parametrize(("config", "said"), SPOILT)
def test_a_spoilt_composition_is_refused_by_name(config, said, tmp_path):
    world = small_world("known-reward")
    path = world.save(tmp_path / "w") / "world.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    with pytest.raises(WorldError, match=said):
        dreamgym.load(tmp_path / "w")


def test_models_nested_beyond_reason_are_refused(tmp_path):
    path = small_world("known-reward").save(tmp_path / "w") / "world.json"
    text = path.read_text()
    deep = '{"inner": {"family": "known-reward", "config": ' * 20_000 + "1" + "}}" * 20_000
    at = text.index('"config": ') + len('"config": ')
    end = text.index('"observation_space"')
    path.write_text(text[:at] + deep + ", " + text[end:])
    with pytest.raises(WorldError, match="recursion"):
        dreamgym.load(tmp_path / "w")


def test_a_goal_is_saved_with_the_weights(tmp_path):
    world = small_world("goal-reward")
    loaded = dreamgym.load(world.save(tmp_path / "w"))
    assert torch.equal(loaded.model.goal, world.model.goal)
    assert loaded.model.goal.any()


def test_a_world_with_a_python_function_is_not_saved_and_says_what_to_do(tmp_path):
    world = small_world("mdn-rnn")
    with pytest.raises(WorldError, match=r"function 'doubled' cannot be written.*wrap it again"):
        world.with_model(KnownReward(world.model, doubled)).save(tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_states_or_spaces_does_not_take_the_starts():
    world = small_world("mdn-rnn")
    with pytest.raises(WorldError, match="starts of world 'small' do not fit"):
        world.with_model(small_model("pets"))
    with pytest.raises(WorldError, match="same spaces"):
        world.with_model(small_model("mdn-rnn", "box"))


REFUSED = [
    (lambda m: Pessimistic(m), TypeError, "MDNRNN has no uncertainty"),
    (lambda m: Pessimistic(small_pets("box"), weight=-1), ValueError, "weight=-1"),
    (lambda m: KnownReward(m, "CartPole-v0"), ValueError, "did you mean 'CartPole-v1'"),
    (lambda m: KnownReward(m, "Pendulum-v1"), ValueError, "reads observations of 3"),
    (lambda m: KnownReward(m, "Hopper-v5"), ValueError, "exclude_current_positions"),
    (lambda m: KnownReward(m, lambda o, a, n: n), ValueError, r"gives \(2, 4\) for 2 rows"),
    (lambda m: KnownReward(m, lambda o, a, n: 1.0), ValueError, "gives float"),
    (lambda m: GoalReward(m, GOAL[:3]), ValueError, r"shape \(3,\)"),
    (lambda m: GoalReward(m, {"x": GOAL}), ValueError, "shape None"),
    (lambda m: GoalReward(m, GOAL, leaves=("zz",)), ValueError, "did you mean 'z'"),
    (lambda m: GoalReward(m, GOAL, threshold=0.0), ValueError, "threshold=0.0"),
]


@pytest.mark.parametrize(("make", "error", "match"), REFUSED)
def test_what_cannot_be_composed_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make(small_model("mdn-rnn"))


def test_a_goal_reward_is_not_fitted():
    model = small_model("goal-reward")
    with pytest.raises(ValueError, match="fit the model inside"):
        model.set_statistics(None)


def test_uncertainty_is_asked_of_the_model_inside():
    assert KnownReward(small_ensemble("box"), "CartPole-v1").has_uncertainty
    assert not small_model("known-reward").has_uncertainty
    assert gym.spaces.Box(-3.0, 3.0, (4,), np.float32) == small_model("nested").observation_space


def test_a_world_is_no_model_and_is_told_so():
    world = small_world("pets")
    for make in (
        lambda: Pessimistic(world),
        lambda: KnownReward(world, "CartPole-v1"),
        lambda: world.with_model(world),
    ):
        with pytest.raises(TypeError, match=r"`\.model`"):
            make()


def test_a_world_says_what_it_is_in_one_line():
    assert repr(small_world("pets")).startswith("World('")
    assert "\n" not in repr(small_world("pets"))


def test_a_world_of_a_model_of_ones_own_says_what_it_is():
    class Own(type(small_world("pets").model)):
        pass

    world = small_world("pets")
    world.model.__class__ = Own
    assert "model=Own" in repr(world)
