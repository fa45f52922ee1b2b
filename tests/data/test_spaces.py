"""Spaces as JSON and back, and which of them are supported."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamgym.data import DatasetError, UnsupportedSpaceError
from dreamgym.data.spaces import check_supported, space_from_json, space_to_json

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64")


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = np.dtype(draw(st.sampled_from(FLOATS + INTEGERS)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
    options = {"allow_nan": False} if dtype.kind == "f" else {}
    a = draw(hnp.arrays(dtype, shape, elements=options))
    b = draw(hnp.arrays(dtype, shape, elements=options))
    return spaces.Box(np.minimum(a, b), np.maximum(a, b), shape=shape, dtype=dtype.type)


DISCRETES = st.builds(
    lambda n, start: spaces.Discrete(n, start=start),
    st.integers(1, 10**6),
    st.integers(-(10**9), 10**9),
)
MULTI_DISCRETES = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=1, max_dims=2, max_side=4),
    elements=st.integers(1, 100),
).map(spaces.MultiDiscrete)
DICTS = st.dictionaries(st.text(min_size=1, max_size=8), boxes(), min_size=1, max_size=4).map(
    spaces.Dict
)


def through_json(space: gym.Space) -> gym.Space:
    text = json.dumps(space_to_json(space), allow_nan=False)
    return space_from_json(json.loads(text))


@given(boxes() | DISCRETES | MULTI_DISCRETES | DICTS)
def test_a_space_survives_json(space: gym.Space) -> None:
    assert through_json(space) == space


@given(boxes())
def test_bounds_survive_json_bit_for_bit(space: spaces.Box) -> None:
    again = through_json(space)
    assert again.low.tobytes() == space.low.tobytes()
    assert again.high.tobytes() == space.high.tobytes()
    assert again.dtype == space.dtype


def test_the_order_of_keys_is_kept() -> None:
    space = spaces.Dict([("z", spaces.Box(0, 1)), ("a", spaces.Box(0, 1))])
    assert list(through_json(space).spaces) == ["z", "a"]


def test_the_description_of_an_image_space_is_short() -> None:
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (64, 64, 3), np.uint8)))) < 120


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_spaces_of_real_environments(env_id: str) -> None:
    env = gym.make(env_id)
    assert through_json(env.observation_space) == env.observation_space
    assert through_json(env.action_space) == env.action_space


@pytest.mark.parametrize(
    ("space", "role", "named"),
    [
        (spaces.MultiBinary(3), "observation", "MultiBinary"),
        (spaces.Text(3), "action", "Text"),
        (spaces.Tuple([spaces.Discrete(2)]), "action", "Tuple"),
        (spaces.Discrete(2), "observation", "Discrete"),
        (spaces.Dict(a=spaces.Box(0, 1)), "action", "Dict"),
        (
            spaces.Dict(a=spaces.Box(0, 1), deep=spaces.Dict(b=spaces.Box(0, 1))),
            "observation",
            "deep",
        ),
        (spaces.Dict(camera=spaces.Discrete(3)), "observation", "'camera'"),
        (spaces.Dict({}), "observation", "no keys"),
        (spaces.Box(0, 1, (0, 3)), "observation", "no elements"),
    ],
)
def test_unsupported_spaces_are_named(space: gym.Space, role: str, named: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=named) as caught:
        check_supported(space, role)
    assert "supported for an" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["Box", "Discrete", "MultiDiscrete", "Dict"]) | JSON},
        optional={
            name: st.sampled_from(["float32", "uint8", "int64", "object", "O", "U4"]) | JSON
            for name in ("dtype", "shape", "low", "high", "n", "start", "nvec", "spaces")
        },
    )
    | JSON
)
@settings(max_examples=300)
def test_an_arbitrary_description_is_a_space_or_a_clear_error(description: object) -> None:
    try:
        space = space_from_json(description)
    except (DatasetError, UnsupportedSpaceError):
        return
    assert through_json(space) == space


@pytest.mark.parametrize(
    "description",
    [
        {"type": "Box", "dtype": "float32", "shape": [10**9, 10**9], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0, 0], "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": 1e300, "high": "inf"},
        {"type": "Box", "dtype": "uint8", "shape": [2], "low": -1, "high": 255},
        {"type": "Box", "dtype": "float32", "shape": [1], "low": 2, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [True], "low": 0, "high": 1},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": 2, "start": 2**63 - 1},
        {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 0], "start": [0, 0]},
        {"type": "MultiDiscrete", "dtype": "int64", "nvec": [[2], [1, 2]], "start": [0, 0]},
        {"type": "Dict", "spaces": [["a", {"type": "Box"}], ["a", {"type": "Box"}]]},
    ],
)
def test_malformed_descriptions_are_refused(description: dict) -> None:
    with pytest.raises(DatasetError):
        space_from_json(description)
