"""Controls: what a person presses becomes an action of the space, for every kind of space."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.data.frame_skip import FrameSkip
from dreamgym.errors import UnsupportedSpaceError
from dreamgym.play.controls import KNOWN, Axis, Choice, Controls, known_names

SPACES = [
    gym.spaces.Discrete(3),
    gym.spaces.Discrete(4, start=-2),
    gym.spaces.Discrete(1000, start=5),
    gym.spaces.MultiDiscrete([2, 3], start=[1, -1]),
    gym.spaces.MultiDiscrete([[2, 3], [4, 5]]),
    gym.spaces.MultiDiscrete([100, 2]),
    gym.spaces.Box(-2.0, 1.0, (3,), np.float32),
    gym.spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, np.inf])),
    gym.spaces.Box(0, 255, (2, 2), np.uint8),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@given(data=st.data())
def test_every_action_that_the_controls_give_is_in_the_space(space, data):
    controls = Controls(space)
    values = [
        data.draw(st.integers(0, len(item.labels) - 1))
        if isinstance(item, Choice)
        else data.draw(st.floats(-1e9, 1e9))
        for item in controls.items
    ]
    action = controls.action(values)
    assert space.contains(action)
    again = controls.action(controls.values(action))
    assert np.array_equal(again, action)


def test_every_choice_can_be_made():
    space = gym.spaces.MultiDiscrete([2, 3], start=[1, -1])
    made = {tuple(Controls(space).action([a, b]).tolist()) for a in range(2) for b in range(3)}
    assert made == {(a, b) for a in (1, 2) for b in (-1, 0, 1)}


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Box(-2.0, 2.0, (2,), np.float32), gym.spaces.Discrete(3, start=1)],
    ids=str,
)
def test_a_block_of_actions_has_the_controls_of_one_which_it_repeats(space):
    skip = FrameSkip(steps=3)
    controls = Controls(skip.space(space), skip)
    single = Controls(space)
    assert len(controls.items) == len(single.items)
    values = [1.0] * len(single.items)
    block = controls.action(values)
    assert controls.space.contains(block)
    for action in skip.split(block, space):
        assert np.array_equal(action, single.action(values))


def test_known_environments_have_names_and_keys_that_tell_actions_apart():
    for name, known in KNOWN.items():
        try:
            versions = [i for i in gym.registry if i.rpartition("-v")[0] == name]
            env = gym.make(versions[-1] if versions else f"dreamgym/{name}-v0")
        except (gym.error.Error, ImportError):
            continue  # a library that is not installed
        controls = Controls(env.action_space, known=known)
        (first, *_) = controls.items
        names = first.labels if isinstance(first, Choice) else [i.name for i in controls.items]
        assert tuple(names) == known.actions
        if known.observations:
            assert len(known.observations) == env.observation_space.shape[0]
        if isinstance(first, Choice):
            keys = [key for keys in first.keys for key in keys]
            assert len(keys) == len(set(keys))
        env.close()


def test_left_and_right_are_arrow_keys_and_coasting_needs_no_key():
    (choice,) = Controls(gym.spaces.Discrete(3), known=known_names("MountainCar-v0")).items
    assert isinstance(choice, Choice)
    assert "ArrowLeft" in choice.keys[0]
    assert "ArrowRight" in choice.keys[2]
    assert choice.rest == 1
    (two,) = Controls(gym.spaces.Discrete(2)).items
    assert isinstance(two, Choice)
    assert two.keys == (("ArrowLeft", "1"), ("ArrowRight", "2"))
    assert two.rest is None


def test_the_names_of_a_namespaced_environment_are_found():
    assert known_names("ALE/CartPole-v1") == KNOWN["CartPole"]
    assert known_names("dreamgym/CarRacing-v0").actions == ("steer", "throttle")
    assert known_names(None).actions == ()


def test_sliders_rest_at_zero_or_at_the_nearest_bound():
    space = gym.spaces.Box(np.float32([-1, 0, 2]), np.float32([1, 1, 3]))
    rests = [item.rest for item in Controls(space).items if isinstance(item, Axis)]
    assert rests == [0, 0, 2]


@pytest.mark.parametrize("values", [[], [0, 0], ["left"], [None], [3], [-1], [0.5], [float("nan")]])
def test_values_that_are_no_action_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        Controls(gym.spaces.Discrete(3)).action(values)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.MultiBinary(3), gym.spaces.Box(-1, 1, (64,)), gym.spaces.MultiDiscrete([2] * 64)],
    ids=str,
)
def test_a_space_that_cannot_be_played_is_refused_with_what_to_do(space):
    with pytest.raises(UnsupportedSpaceError, match=r"cannot be played.*(Wrap|Fit)"):
        Controls(space)
