"""A session: time goes both ways, branches part, edits stay, and reality takes the same actions."""

from __future__ import annotations

import io
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import dreamgym
from dreamgym.data.layout import index_rows
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PolicyError, TransferError, UnsupportedSpaceError
from dreamgym.models import JEPAConfig, ModelSpec
from dreamgym.play import PlaySession
from dreamgym.play import session as session_module
from dreamgym.transfer import TensorPolicy
from dreamgym.world.world import World
from tests.dream.test_rendering import build_world, world_on
from tests.play.conftest import CARTPOLE
from tests.small_worlds import KINDS, built, small_model, small_world, world_of


def same(first, second) -> bool:
    """Whether two moments have the same state and the same real environment."""
    leaves = zip(first.dreams.model.values(), second.dreams.model.values(), strict=True)
    real = [None if each.real is None else each.real.observation for each in (first, second)]
    return all(torch.equal(a, b) for a, b in leaves) and np.array_equal(*real)


def walk(session: PlaySession, actions) -> list:
    return [session.step(np.int64(action)) for action in actions]


def test_a_step_is_the_step_of_the_dream(cartpole):
    env = DreamVectorEnv(CARTPOLE, 1, device="cpu", autoreset_mode="Disabled")
    env.reset(seed=0)
    cartpole.reset(seed=7)
    for action in (0, 1, 1, 0, 1):
        env.set_state(cartpole.now.dreams)
        observation, reward, terminated, truncated, _ = env.step(np.array([action]))
        moment = cartpole.step(np.int64(action))
        assert np.array_equal(moment.observation, observation[0])
        assert (moment.reward, moment.terminated) == (reward[0], terminated[0])
        assert moment.truncated == truncated[0]
        assert 0 <= moment.termination <= 1


def test_the_dream_begins_with_what_the_real_environment_shows(cartpole):
    start = cartpole.reset(seed=3, start="real")
    expected, _ = gym.make("CartPole-v1").reset(seed=3)
    assert np.array_equal(start.real.observation, expected)
    assert np.allclose(start.observation, expected, atol=1e-4)


def test_the_real_environment_takes_the_same_actions(cartpole):
    cartpole.reset(seed=3)
    env = gym.make("CartPole-v1")
    env.reset(seed=3)
    for moment, action in zip(walk(cartpole, [1, 0, 0, 1]), [1, 0, 0, 1], strict=True):
        expected, reward, *_ = env.step(action)
        assert np.array_equal(moment.real.observation, expected)
        assert moment.real.reward == reward
    assert moment.real.episode_return == 4


def test_a_seed_fixes_the_course(cartpole):
    courses = []
    for _ in range(2):
        cartpole.reset(seed=5, start="anywhere")
        courses.append(walk(cartpole, [1, 0, 1]))
    assert all(same(a, b) for a, b in zip(*courses, strict=True))
    cartpole.reset(seed=6, start="anywhere")
    assert not same(walk(cartpole, [1, 0, 1])[-1], courses[0][-1])


def test_back_and_the_same_actions_lead_to_the_same_future(cartpole):
    walk(cartpole, [1, 0, 1, 1, 0])
    before = cartpole.moments[4]
    cartpole.go_to(2)
    assert cartpole.now.step == 2
    assert same(cartpole.go_to(4), before)  # and forth again
    cartpole.go_to(2)
    again = walk(cartpole, [1, 1])[-1]
    assert same(again, before)
    assert cartpole.moments[-1] is again, "the old future is gone"
    assert cartpole.moments[-1].step == 4


def test_another_action_leads_elsewhere_in_the_dream_and_in_reality(cartpole):
    before = walk(cartpole, [1, 0, 1])[-1]
    cartpole.go_to(2)
    other = cartpole.step(np.int64(0))
    assert not same(other, before)
    assert not np.array_equal(other.real.observation, before.real.observation)


@pytest.mark.parametrize("step", [-1, 4, 100])
def test_there_is_no_going_where_nothing_was(cartpole, step):
    walk(cartpole, [1, 0, 1])
    with pytest.raises(ValueError, match="kept are 0 to 3"):
        cartpole.go_to(step)


def test_branches_of_one_moment_part_unless_they_keep_its_noise(cartpole):
    walk(cartpole, [1, 0])
    number = cartpole.branch()
    first = walk(cartpole, [1, 1])[-1]
    cartpole.reset(seed=9)
    assert cartpole.return_to(number, same_noise=True).origin.seed == 0
    assert same(walk(cartpole, [1, 1])[-1], first)
    futures = []
    for _ in range(2):
        cartpole.return_to(number)
        futures.append(walk(cartpole, [1, 1])[-1])
        assert np.array_equal(futures[-1].real.observation, first.real.observation)
        assert not same(futures[-1], first)
        cartpole.reset(seed=9)
    assert not same(*futures)
    cartpole.return_to(number)
    assert cartpole.go_to(1).step == 1  # the past of a branch comes with it
    cartpole.drop(number)
    with pytest.raises(ValueError, match="no branch 0"):
        cartpole.return_to(number)


def test_the_past_is_bounded(cartpole, monkeypatch):
    monkeypatch.setattr(session_module, "MOST_MOMENTS", 3)
    session = PlaySession(small_world(horizon=100), device="cpu")
    for _ in range(4):
        session.step(np.int64(0))
        session._edited(session.now.dreams)  # so that no end stops it
    assert [moment.step for moment in session.moments] == [2, 3, 4]
    with pytest.raises(ValueError, match="kept are 2 to 4"):
        session.go_to(1)
    session.close()


def test_temperature_and_horizon_hold_from_the_next_step_on(cartpole):
    walk(cartpole, [1, 0])
    cartpole.temperature = 5.0
    hot = cartpole.step(np.int64(1))
    cartpole.go_to(2)
    cartpole.temperature = 1.0
    assert not same(cartpole.step(np.int64(1)), hot)
    cartpole.horizon = 4
    assert walk(cartpole, [1])[-1].truncated
    with pytest.raises(ValueError, match="has ended"):
        cartpole.step(np.int64(0))
    cartpole.go_to(2)
    cartpole.horizon = 200
    assert not walk(cartpole, [1, 0])[-1].done


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", -1.0), ("temperature", float("nan")), ("horizon", 0)],
)
def test_settings_out_of_range_are_refused(cartpole, name, value):
    with pytest.raises(ValueError, match=name):
        setattr(cartpole, name, value)


def test_an_edited_latent_changes_what_is_decoded_and_what_follows(cartpole):
    before = walk(cartpole, [1, 0])[-1]
    unedited = cartpole.step(np.int64(1))
    cartpole.go_to(2)
    values = cartpole.latent("z")
    edited = cartpole.edit_latent("z", 0, float(values[0]) + 1.0)
    assert edited.edited
    assert edited.observation[0] != before.observation[0]
    assert np.array_equal(edited.observation[1:], before.observation[1:])
    assert edited.frame != before.frame
    assert not same(cartpole.step(np.int64(1)), unedited)
    assert np.array_equal(cartpole.now.real.observation, unedited.real.observation)


def test_an_edited_observation_is_what_the_world_then_believes(cartpole):
    walk(cartpole, [1, 0])
    edited = cartpole.edit_observation(2, 0.15)
    assert edited.observation[2] == pytest.approx(0.15, abs=1e-3)
    for _ in range(3):
        assert not cartpole.step(np.int64(1)).edited
    assert abs(cartpole.now.observation[2] - 0.15) < 0.1  # the pole goes on from there


def test_an_edit_of_the_end_lets_the_dream_go_on(cartpole):
    cartpole.horizon = 2
    assert walk(cartpole, [1, 0])[-1].truncated
    cartpole.horizon = 50
    assert not cartpole.edit_observation(2, 0.0).done
    assert cartpole.step(np.int64(1)).step == 3


@pytest.mark.parametrize(
    ("leaf", "index", "value"),
    [("y", 0, 0.0), ("z", 4, 0.0), ("z", -1, 0.0), ("z", 0, float("inf"))],
)
def test_a_latent_that_does_not_exist_is_refused(cartpole, leaf, index, value):
    with pytest.raises(ValueError, match=r"leaf|numbers|finite"):
        cartpole.edit_latent(leaf, index, value)


def test_the_real_environment_is_put_where_the_dream_is(cartpole):
    cartpole.reset(seed=1, start="anywhere", row=6)
    assert np.allclose(cartpole.now.real.observation, cartpole.now.observation, atol=1e-6)
    walk(cartpole, [1, 0, 1])
    placed = cartpole.place_reality()
    assert np.array_equal(placed.real.observation, placed.observation)
    step = cartpole.step(np.int64(1))
    cartpole.go_to(3)
    assert same(cartpole.step(np.int64(1)), step), "coming back puts it there again"


def test_the_real_episode_ends_by_itself_and_stays_ended(cartpole):
    cartpole.horizon = 1000
    cartpole.reset(seed=0)
    while not cartpole.now.done and not cartpole.now.real.done:
        cartpole.step(np.int64(1))
    ended = next(moment for moment in cartpole.moments if moment.done or moment.real.done)
    if not ended.done:
        later = cartpole.step(np.int64(1))
        assert later.real is ended.real


def test_pictures_are_of_the_size_that_the_environment_draws(cartpole):
    for data in (cartpole.now.frame, cartpole.now.real.frame):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (600, 400)


@pytest.mark.parametrize("player", ["random", "plan:categorical-cem"])
def test_who_plays_acts_without_being_told(cartpole, player):
    cartpole.player = player
    cartpole.reset(seed=2)
    first = [cartpole.step() for _ in range(2)]
    cartpole.reset(seed=2)
    again = [cartpole.step() for _ in range(2)]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_a_person_has_to_act(cartpole):
    with pytest.raises(ValueError, match="no action was given"):
        cartpole.step()


def test_a_policy_sees_its_view():
    world = dreamgym.load(CARTPOLE)
    seen = {}

    def network(view):
        def act(observation):
            seen[view] = tuple(observation.shape)
            return torch.ones(len(observation), dtype=torch.int64)

        return act

    policies = {v: TensorPolicy(network(v), view=v) for v in ("observation", "latent")}
    session = PlaySession(world, policies=policies, device="cpu")
    for view in policies:
        session.player = view
        session.step()
        assert session.now.action == 1
    assert seen == {"observation": (1, 4), "latent": (1, world.model.feature_dim)}
    session.close()


def world_without_a_decoder() -> World:
    spec = ModelSpec(family="jepa", config=JEPAConfig(probe="none"))
    return world_of(built(spec, "discrete").eval().requires_grad_(False), horizon=50)


def test_a_world_without_a_decoder_is_played_by_its_features():
    policy = TensorPolicy(lambda seen: torch.ones(len(seen), dtype=torch.int64), view="latent")
    session = PlaySession(world_without_a_decoder(), policies={"p": policy}, device="cpu")
    session.player = "p"
    moment = session.step()
    assert (moment.observation, moment.frame, session.plotted) == (None, None, 0)
    session.close()


def test_a_policy_that_needs_observations_is_refused_where_there_are_none():
    with pytest.raises(PolicyError, match="does not decode"):
        PlaySession(world_without_a_decoder(), policies={"p": TensorPolicy(torch.nn.Identity())})


def test_an_action_outside_the_space_is_refused(cartpole):
    with pytest.raises(ValueError, match="outside"):
        cartpole.step(np.int64(2))


@pytest.mark.parametrize(("kind", "action"), KINDS)
def test_every_kind_of_world_can_be_played(kind, action):
    session = PlaySession(small_world(kind, action, horizon=1000), device="cpu")
    assert session.without_reality
    for leaf in session.leaves:
        session.edit_latent(leaf, 0, float(session.latent(leaf)[0]))
    session.player = "random"
    for _ in range(3):
        if session.now.done:
            session.reset(seed=session.now.origin.seed + 1)
        moment = session.step()
    assert np.isfinite([moment.reward, moment.termination, moment.uncertainty]).all()
    assert (moment.observation is None) == (session.renderer is None)
    session.go_to(0)
    session.close()


def test_images_are_shown_as_they_are():
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    session = PlaySession(world_on(space, gym.spaces.Discrete(2)), device="cpu")
    with Image.open(io.BytesIO(session.now.frame)) as image:
        assert np.array_equal(np.asarray(image), session.now.observation)
    with pytest.raises(ValueError, match="not a vector"):
        session.edit_observation(0, 1.0)
    session.close()


class Walk(gym.Env):
    """A walk on a line, which draws itself."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode, self.place = render_mode, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        return self._seen(), {}

    def step(self, action):
        self.place += float(action) - 1
        return self._seen(), self.place, abs(self.place) > 8, False, {}

    def render(self):
        return np.full((40, 60, 3), int(self.place) + 100, np.uint8)

    def _seen(self):
        return np.float32([self.place, 0])


def test_an_unknown_scene_is_plotted_and_the_real_environment_draws_itself():
    gym.register("PlayedWalk-v0", f"{__name__}:Walk")
    try:
        world = build_world(gym.make("PlayedWalk-v0"))
        session = PlaySession(world, device="cpu")
        assert session.now.frame is None
        with Image.open(io.BytesIO(session.now.real.frame)) as image:
            assert image.size == (60, 40)
        assert not session.reality.can_be_placed
        with pytest.raises(ValueError, match="STATE_SETTERS"):
            session.place_reality()
        assert session.reset(start="episode_starts").real is None
        session.close()
    finally:
        gym.registry.pop("PlayedWalk-v0")


def test_a_dataset_gives_starts(tmp_path):
    path = dreamgym.record("CartPole-v1", steps=60, out=tmp_path / "log.h5", seed=0)
    session = PlaySession(CARTPOLE, data=path, device="cpu")
    assert session.reset(seed=0, start="log.h5", row=3).step == 0
    session.close()


def test_starts_are_chosen_by_name_and_number(cartpole):
    bank = cartpole.world.starts
    moment = cartpole.reset(start="anywhere", row=2)
    expected = {k: v[bank.num_episode_starts + 2] for k, v in bank.states.items()}
    assert all(torch.equal(moment.dreams.model[k][0], v) for k, v in expected.items())
    with pytest.raises(ValueError, match="no start 512"):
        cartpole.reset(start="anywhere", row=512)
    with pytest.raises(ValueError, match="known:"):
        cartpole.reset(start="elsewhere")
    with pytest.raises(ValueError, match="seed"):
        cartpole.reset(seed=-1)


def test_another_environment_is_refused():
    with pytest.raises(TransferError, match="observation space"):
        PlaySession(CARTPOLE, env="Acrobot-v1", device="cpu")


def test_a_world_whose_environment_is_not_there_is_played_alone():
    world = world_of(small_model("mdn-rnn"))
    named = replace(world, env_spec=build_world(gym.make("CartPole-v1")).env_spec)
    spec = named.env_spec.replace("CartPole-v1", "NobodyHasThis-v0")
    session = PlaySession(replace(world, env_spec=spec), device="cpu")
    assert session.reality is None
    assert "not registered" in session.without_reality
    session.close()


def test_a_space_of_too_many_numbers_is_refused():
    actions = gym.spaces.Box(-1, 1, (40,), np.float32)
    with pytest.raises(UnsupportedSpaceError, match="40"):
        PlaySession(world_on(gym.spaces.Box(-1, 1, (3,), np.float32), actions), device="cpu")


def test_the_callers_modes_make_no_difference(cartpole):
    with torch.inference_mode():
        moment = walk(cartpole, [1])[-1]
    cartpole.go_to(0)
    assert same(walk(cartpole, [1])[-1], moment)
    assert index_rows(moment.observation, 0).dtype == np.float32


def test_an_environment_that_breaks_when_it_is_made_leaves_the_dream_to_play(monkeypatch):
    def breaks(*_: object, **__: object) -> None:
        raise TypeError("unexpected keyword argument 'gravity'")

    monkeypatch.setattr(session_module, "Reality", breaks)
    session = PlaySession("CartPole-MDNRNN-v0", device="cpu")
    assert "gravity" in session.without_reality
    session.step(np.int64(1))
    session.close()
    with pytest.raises(TypeError, match="gravity"):
        PlaySession("CartPole-MDNRNN-v0", env="CartPole-v1", device="cpu")
