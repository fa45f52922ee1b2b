"""Wrappers change what they document and nothing else, bit for bit; hooks reach the inside."""

from __future__ import annotations

import copy
import inspect
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
    Optimistic,
    Pessimistic,
    Segment,
    WorldModel,
    filter_states,
)
from dreamgym.models.base import HOOKS, forward_hooks
from dreamgym.models.spec import to_json
from dreamgym.models.wrappers import Wrapper
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


def assert_only_differ_in(one: WorldModel, other: WorldModel, *names: str) -> None:
    _, _, state, prediction = stepped(one)
    _, _, state_other, prediction_other = stepped(other)
    for key, leaf in state.items():
        assert torch.equal(leaf, state_other[key]), key
    assert torch.equal(one.features(state), other.features(state_other))
    for name in prediction._fields:
        same = torch.equal(getattr(prediction, name), getattr(prediction_other, name))
        assert same == (name not in names), name


def doubled(observation, action, following):
    return 2 * following[:, 0]


def test_pessimistic_without_weight_is_the_model_inside():
    inner = small_pets("box")
    assert_only_differ_in(Pessimistic(inner, weight=0.0), inner)


def test_pessimistic_subtracts_the_uncertainty_from_the_reward():
    inner = small_pets("box")
    assert_only_differ_in(Pessimistic(inner, weight=2.0), inner, "reward")
    _, _, _, prediction = stepped(inner)
    _, _, _, lowered = stepped(Pessimistic(inner, weight=2.0))
    assert torch.equal(lowered.reward, prediction.reward - 2.0 * prediction.uncertainty)
    assert (lowered.reward < prediction.reward).all()


def test_optimistic_adds_the_uncertainty_to_the_reward():
    inner = small_pets("box")
    assert_only_differ_in(Optimistic(inner, weight=2.0), inner, "reward")
    _, _, _, prediction = stepped(inner)
    _, _, _, raised = stepped(Optimistic(inner, weight=2.0))
    assert torch.equal(raised.reward, prediction.reward + 2.0 * prediction.uncertainty)
    assert (raised.reward > prediction.reward).all()


@pytest.mark.parametrize("inner", [small_model("mdn-rnn"), small_pets("box")])
def test_known_reward_and_termination_replace_that_and_nothing_else(inner):
    assert_only_differ_in(KnownReward(inner, doubled), inner, "reward")
    assert_only_differ_in(
        KnownTermination(inner, lambda o, a, n: n[:, 0] > 0), inner, "termination"
    )
    _, _, state, prediction = stepped(KnownReward(inner, doubled))
    assert torch.equal(prediction.reward, 2 * inner.decode(state)[:, 0])
    _, _, state, prediction = stepped(KnownTermination(inner, "CartPole-v1"))
    seen = inner.decode(state)
    assert torch.equal(
        prediction.termination == 1, (seen[:, 0].abs() > 2.4) | (seen[:, 2].abs() > 0.2094395)
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
    assert_only_differ_in(model, inner, "reward")
    _, _, state, prediction = stepped(model)
    at_goal = inner.observe(
        inner.initial(1), torch.zeros(1, dtype=torch.int64), torch.tensor(GOAL)[None],
        torch.rand(1, inner.noise_dim),
    )  # fmt: skip
    distance = (state["z"] - at_goal["z"]).square().sum(-1).sqrt()
    torch.testing.assert_close(prediction.reward, -distance)
    assert torch.equal(model.distance(at_goal), torch.zeros(1))
    whole = GoalReward(inner, GOAL)
    _, _, state, prediction = stepped(whole)
    distance = (inner.features(state) - inner.features(at_goal)).norm(dim=-1)
    torch.testing.assert_close(prediction.reward, -distance)


def test_a_goal_reached_within_the_threshold_is_terminal():
    inner = small_model("mdn-rnn")
    near = GoalReward(inner, GOAL, leaves=("z",), threshold=2.0)
    assert_only_differ_in(near, inner, "reward", "termination")
    _, _, _, prediction = stepped(near)
    _, _, _, without = stepped(inner)
    reached = -prediction.reward <= 2.0
    assert 0 < reached.sum() < ROWS
    assert (prediction.termination[reached] == 1).all()
    assert torch.equal(prediction.termination[~reached], without.termination[~reached])


def test_wrappers_decode_if_the_model_inside_does():
    for kind in ("known-reward", "goal-reward", "pessimistic", "nested"):
        assert isinstance(SPECIAL[kind]("box"), Decodes)
    world = small_world("goal-reward")
    assert world.default_view == "observation"


def probe_hook(models: list[WorldModel], name: str) -> list:
    """Replace one hook of some models; return the list to which a call or read appends."""
    calls: list = []

    def called(self, *arguments):
        calls.append(arguments)
        return "result"

    hook = property(called) if isinstance(HOOKS[name], property) else called
    for model in models:
        model.__class__ = type("Probe", (type(model),), {name: hook})
    return calls


def use_hook(model: WorldModel, name: str):
    if isinstance(HOOKS[name], property):
        return getattr(model, name), ()
    count = len(inspect.signature(HOOKS[name]).parameters) - 1
    arguments = tuple(object() for _ in range(count))
    return getattr(model, name)(*arguments), arguments


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_every_hook_of_the_contract_reaches_the_model_inside(name):
    inner = small_model("mdn-rnn")
    wrapper = KnownTermination(inner, "CartPole-v1")
    prepared = wrapper.prepare(ROWS, torch.device("cpu"), torch.float32)
    for model, inside in ((wrapper, inner), (prepared, prepared.inner)):
        calls = probe_hook([inside], name)
        result, arguments = use_hook(model, name)
        assert result == "result"
        assert calls == [arguments]


@pytest.mark.parametrize("name", ["after_fit", "after_update", "before_fit"])
def test_hooks_of_an_ensemble_reach_every_member(name):
    ensemble = small_ensemble("box")
    calls = probe_hook(list(ensemble.members), name)
    use_hook(ensemble, name)
    assert len(calls) == len(ensemble.members)


def test_a_hook_that_is_added_to_the_contract_needs_no_line_in_a_wrapper(monkeypatch):
    monkeypatch.setitem(HOOKS, "warm_up", lambda self, rows: 0)

    @forward_hooks(lambda wrapper: [wrapper.inner])
    class Around(Wrapper):
        pass

    inner = small_model("mdn-rnn")
    inner.warm_up = lambda rows: rows + 1
    assert Around(inner, None).warm_up(2) == 3


@pytest.mark.parametrize("kind", ["known-reward", "nested"])
def test_a_copy_is_independent(kind):
    """A dream on another device copies the model; the world's own model stays where it is."""
    model = small_model(kind)
    state, _, following, _ = stepped(model)
    copied = copy.deepcopy(model)
    before = copied.decode(following)
    for leaf in [*model.parameters(), *model.buffers()]:
        leaf.fill_(1)
    assert torch.equal(copied.decode(following), before)
    assert not torch.equal(model.decode(following), before)
    assert copied.features(state).shape == model.features(state).shape


def test_a_world_of_a_wrapped_model_dreams_from_the_same_start_states(tmp_path):
    world = small_world("mdn-rnn")
    known = world.with_model(KnownReward(world.model, "CartPole-v1"))
    assert known.starts is world.starts
    assert known.family == "known-reward"
    envs = dreamgym.DreamVectorEnv(
        known, 8, device="cpu", output="torch", autoreset_mode="SameStep"
    )
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


INVALID = [
    (inner() | {"function": "os.system"}, "no known function 'os.system'"),
    (inner() | {"function": 5}, "not callable"),
    (inner(family="mdn"), "did you mean 'mdn-rnn'"),
    (inner(config={"hiden": 2}), "did you mean 'hidden'"),
    (inner(config={"hidden": 10**12}), "does not fit the config"),
    (inner(config={"hidden": 8}), "does not fit the config"),
    ({"function": "CartPole-v1"}, "inner"),
    ({"inner": "mdn-rnn", "function": "CartPole-v1"}, "expected a config"),
]


@pytest.mark.parametrize(("config", "message"), INVALID)
def test_an_invalid_config_of_a_wrapper_is_refused_by_name(config, message, tmp_path):
    world = small_world("known-reward")
    path = world.save(tmp_path / "w") / "world.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    with pytest.raises(WorldError, match=message):
        dreamgym.load(tmp_path / "w")


def test_too_deeply_nested_models_are_refused(tmp_path):
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


def test_a_world_with_a_python_function_is_not_saved_and_the_error_says_what_to_do(tmp_path):
    world = small_world("mdn-rnn")
    with pytest.raises(WorldError, match=r"function 'doubled' cannot be written.*wrap it again"):
        world.with_model(KnownReward(world.model, doubled)).save(tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_a_model_with_other_states_or_spaces_cannot_take_the_start_states():
    world = small_world("mdn-rnn")
    with pytest.raises(WorldError, match="start states of world 'small' do not fit"):
        world.with_model(small_model("pets"))
    with pytest.raises(WorldError, match="same spaces"):
        world.with_model(small_model("mdn-rnn", "box"))


REFUSED = [
    (lambda m: Pessimistic(m), TypeError, "MDNRNN has no uncertainty"),
    (lambda m: Pessimistic(small_pets("box"), weight=-1), ValueError, "weight=-1"),
    (lambda m: Optimistic(m), TypeError, "MDNRNN has no uncertainty"),
    (lambda m: Optimistic(small_pets("box"), weight=-1), ValueError, "weight=-1"),
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
def test_models_that_cannot_be_wrapped_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make(small_model("mdn-rnn"))


def test_a_goal_reward_cannot_be_fitted():
    model = small_model("goal-reward")
    with pytest.raises(ValueError, match="fit the model inside"):
        model.set_statistics(None)


def test_a_wrapper_has_uncertainty_if_the_model_inside_does():
    assert KnownReward(small_ensemble("box"), "CartPole-v1").has_uncertainty
    assert not small_model("known-reward").has_uncertainty
    assert gym.spaces.Box(-3.0, 3.0, (4,), np.float32) == small_model("nested").observation_space


def test_a_world_in_place_of_a_model_is_refused():
    world = small_world("pets")
    for make in (
        lambda: Pessimistic(world),
        lambda: KnownReward(world, "CartPole-v1"),
        lambda: world.with_model(world),
    ):
        with pytest.raises(TypeError, match=r"`world\.model`"):
            make()


def test_the_repr_of_a_world_is_one_line():
    assert repr(small_world("pets")).startswith("World('")
    assert "\n" not in repr(small_world("pets"))


def test_the_repr_of_a_world_with_an_unregistered_model_names_its_class():
    class Own(type(small_world("pets").model)):
        pass

    world = small_world("pets")
    world.model.__class__ = Own
    assert "model=Own" in repr(world)
