"""A grid of spaces through all stages: each works, or is refused at the first one with advice.

What `record` takes, `check` calls ready; what `check` calls ready, `fit` takes; what `fit` takes,
`train` takes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dreamgym
from dreamgym.errors import PolicyFileError, TrainingError, UnsupportedSpaceError
from dreamgym.fitting import FitConfig
from dreamgym.models import Decodes, MDNRNNConfig, ModelSpec, PETSConfig
from dreamgym.train import TrainConfig, load_policy
from tests.small_worlds import world_of


class NarrowBox(spaces.Box):
    """A Box whose bounds say nothing about its values, as in many environments."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return self.np_random.normal(size=self.shape).astype(self.dtype)


FLOATS = spaces.Box(-1.0, 1.0, (3,), np.float32)
TWO = spaces.Discrete(2)

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "floats": FLOATS,
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "float16": spaces.Box(-1.0, 1.0, (3,), np.float16),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "one-sided": spaces.Box(0.0, np.inf, (3,), np.float32),
    "largest floats": NarrowBox(-3.4e38, 3.4e38, (2,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "int64": spaces.Box(-10, 10, (3,), np.int64),
    "int8": spaces.Box(-128, 127, (3,), np.int8),
    "uint16": spaces.Box(0, 65535, (2,), np.uint16),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "board": spaces.Box(0, 2, (3, 3), np.uint8),
    "Dict": spaces.Dict(
        {
            "a": FLOATS,
            "b/c": spaces.Box(0, 5, (2,), np.int32),
            "d": spaces.Box(0, 9, (2,), np.uint8),
        }
    ),
}
IMAGES: dict[str, spaces.Space[Any]] = {
    "HWC": spaces.Box(0, 255, (20, 24, 3), np.uint8),
    "CHW": spaces.Box(0, 255, (3, 20, 24), np.uint8),
    "stacked HWC": spaces.Box(0, 255, (20, 20, 12), np.uint8),
    "stacked CHW": spaces.Box(0, 255, (12, 20, 20), np.uint8),
    "HW1": spaces.Box(0, 255, (20, 20, 1), np.uint8),
    "1HW": spaces.Box(0, 255, (1, 20, 30), np.uint8),
    "HW": spaces.Box(0, 255, (20, 30), np.uint8),
    "SHWC": spaces.Box(0, 255, (4, 20, 24, 3), np.uint8),
    "SCHW": spaces.Box(0, 255, (2, 3, 20, 24), np.uint8),
    "small": spaces.Box(0, 10, (7, 7, 3), np.uint8),
    "Dict": spaces.Dict({"camera": spaces.Box(0, 255, (3, 20, 24), np.uint8), "arm": FLOATS}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Discrete": TWO,
    "Discrete from 5": spaces.Discrete(3, start=5),
    "Discrete from -1": spaces.Discrete(3, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiDiscrete 2-d": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "MultiDiscrete from": spaces.MultiDiscrete([2, 3], start=[1, -4]),
    "Box": spaces.Box(-2.0, 1.0, (2,), np.float32),
    "Box 2-d": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "Box float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "Box int64": spaces.Box(-10, 10, (3,), np.int64),
    "Box int8": spaces.Box(-128, 127, (2,), np.int8),
    "Box uint8": spaces.Box(0, 255, (2,), np.uint8),
    "Box with a constant": spaces.Box(np.float32([0, -1]), np.float32([0, 1])),
}
UNBOUNDED_ACTIONS: dict[str, spaces.Space[Any]] = {
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "one-sided": spaces.Box(0.0, np.inf, (2,), np.float32),
}
FLATTENED: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(6),
    "Discrete from 3": spaces.Discrete(4, start=3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(4),
    "Tuple": spaces.Tuple([spaces.Discrete(3), spaces.Discrete(4), spaces.Box(0, 1, (2,))]),
    "nested Dict": spaces.Dict({"a": spaces.Dict({"b": FLOATS, "c": spaces.Discrete(2)})}),
}
TRANSFORMED: dict[str, tuple[spaces.Space[Any], str]] = {
    "Text": (spaces.Text(4), "TransformObservation with a function that returns an array"),
    "bool": (spaces.Box(0, 1, (2,), np.bool_), "TransformObservation with a function that returns"),
    "nested image": (
        spaces.Dict({"a": spaces.Dict({"b": IMAGES["HWC"]})}),
        "TransformObservation with a function that returns a plain dict",
    ),
}


class AnySpace(gym.Env[Any, Any]):
    """Random observations; the reward and the end depend on chance."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.time += 1
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, False, self.time >= 8, {}


def small_model(family: str) -> Any:
    if family == "mdn-rnn":
        return MDNRNNConfig(hidden=8, head=8, trunk=0, latent=4, width=0.05, mixtures=2)
    return PETSConfig(hidden=8, layers=2, members=2, elites=1)


def fit_config(model: Any) -> FitConfig:
    return FitConfig(updates=2, batch_size=4, segment_length=4, starts=16, model=model)


def through_all_stages(env: gym.Env, folder: Path, *, family: str = "mdn-rnn", train: str = "PPO"):
    """Record, check, fit, dream and train in an environment, and act in it with the policy."""
    data = dreamgym.record(env, steps=64, out=folder / "d.h5")
    card = dreamgym.check(data)
    assert card.ok, card.problems
    world = dreamgym.fit(data, family=family, config=fit_config(small_model(family)))
    dream = dreamgym.DreamVectorEnv(
        world, 3, output="numpy", view="observation", autoreset_mode="SameStep"
    )
    observation, _ = dream.reset(seed=0)
    assert dream.observation_space.contains(observation)
    dream.action_space.seed(0)
    for _ in range(3):
        observation, reward, *_ = dream.step(dream.action_space.sample())
        assert dream.observation_space.contains(observation)
        assert np.isfinite(reward).all()
    config = TrainConfig(num_envs=4, n_steps=8, view="latent")
    policy = dreamgym.train_policy(world, algo=train, steps=32, config=config, out=folder / "p")
    loaded = load_policy(folder / "p.zip", world=world)
    features = np.zeros((5, world.model.feature_dim), np.float32)
    for made in (policy, loaded):
        actions, _ = made.predict(features, deterministic=False)
        assert all(env.action_space.contains(action) for action in actions)
    return card, world


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_vectors_of_any_kind(name: str, tmp_path: Path) -> None:
    through_all_stages(AnySpace(OBSERVATIONS[name], TWO), tmp_path)


@pytest.mark.parametrize("name", IMAGES)
def test_images_in_any_order_of_axes(name: str, tmp_path: Path) -> None:
    card, _ = through_all_stages(AnySpace(IMAGES[name], TWO), tmp_path)
    transposed = [note for note in card.notes if "first)" in note]
    assert bool(transposed) == (name not in ("HWC", "stacked HWC", "HW1", "HW", "small"))


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_of_any_kind(name: str, tmp_path: Path) -> None:
    through_all_stages(AnySpace(FLOATS, ACTIONS[name]), tmp_path)


@pytest.mark.parametrize("name", UNBOUNDED_ACTIONS)
def test_actions_without_bounds_are_dreamt_and_not_trained(name: str, tmp_path: Path) -> None:
    env = AnySpace(FLOATS, UNBOUNDED_ACTIONS[name])
    data = dreamgym.record(env, steps=64, out=tmp_path / "d.h5")
    card = dreamgym.check(data)
    assert card.ok
    (finding,) = (note for note in card.notes if "has an infinite bound" in note)
    assert dreamgym.check(data, algo="PPO").problems == [finding]
    world = dreamgym.fit(data, config=fit_config(small_model("mdn-rnn")))
    assert finding in world.quality["alarms"]
    dream = dreamgym.DreamVectorEnv(world, 3, output="numpy", autoreset_mode="SameStep")
    dream.reset(seed=0)
    observation, *_ = dream.step(dream.action_space.sample())
    assert dream.observation_space.contains(observation)
    with pytest.raises(TrainingError) as refusal:
        dreamgym.train_policy(world, steps=32, config=TrainConfig(num_envs=4, n_steps=8))
    assert str(refusal.value) == finding


SPACES = {f"sees {name}": (space, TWO) for name, space in OBSERVATIONS.items()}
SPACES |= {f"sees images {name}": (space, TWO) for name, space in IMAGES.items()}
SPACES |= {f"acts in {name}": (FLOATS, space) for name, space in ACTIONS.items()}


@pytest.mark.parametrize("name", SPACES)
def test_check_fit_and_train_give_one_answer(name: str, tmp_path: Path) -> None:
    """For every family and algorithm by name, before anything is fitted."""
    observation_space, action_space = SPACES[name]
    data = dreamgym.record(
        AnySpace(observation_space, action_space), steps=16, out=tmp_path / "d.h5"
    )
    for family in ("mdn-rnn", "pets"):
        card = dreamgym.check(data, family=family)
        config = fit_config(small_model(family))
        if card.ok:
            continue  # the other tests of the grid fit such datasets
        with pytest.raises(TypeError) as refusal:
            dreamgym.fit(data, family=family, config=config)
        assert card.problems == [f"the {family} family: {refusal.value}"]
    spec = ModelSpec(family="mdn-rnn", config=small_model("mdn-rnn"))
    world = world_of(spec.build(FLOATS, action_space))
    taken = tmp_path / "p.zip"
    taken.mkdir()  # a folder is refused just before the training starts
    for algo in ("PPO", "SAC", "DQN"):
        problems = dreamgym.check(data, algo=algo).problems
        run = partial(dreamgym.train_policy, world, algo=algo, steps=1, out=taken)
        with pytest.raises(TrainingError if problems else PolicyFileError) as refused:
            run()
        assert problems in ([], [str(refused.value)])


@pytest.mark.parametrize("name", ["floats", "unbounded", "int64", "bytes", "matrix", "scalar"])
def test_pets_takes_every_vector(name: str, tmp_path: Path) -> None:
    env = AnySpace(OBSERVATIONS[name], ACTIONS["Box int64"])
    through_all_stages(env, tmp_path, family="pets")


@pytest.mark.parametrize("name", FLATTENED)
def test_the_advice_to_flatten_leads_to_a_world(name: str, tmp_path: Path) -> None:
    env = AnySpace(FLATTENED[name], TWO)
    with pytest.raises(UnsupportedSpaceError, match="FlattenObservation, which makes it one"):
        dreamgym.record(env, steps=10, out=tmp_path / "refused.h5")
    through_all_stages(gym.wrappers.FlattenObservation(env), tmp_path)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_other_observations_are_refused_with_advice(name: str, tmp_path: Path) -> None:
    space, advice = TRANSFORMED[name]
    with pytest.raises(UnsupportedSpaceError, match=advice):
        dreamgym.record(AnySpace(space, TWO), steps=10, out=tmp_path / "refused.h5")


def test_the_advice_for_binary_actions_leads_to_a_world(tmp_path: Path) -> None:
    env = AnySpace(FLOATS, spaces.MultiBinary(3))
    with pytest.raises(UnsupportedSpaceError, match=r"MultiDiscrete\(numpy.full\(\(3,\), 2\)\)"):
        dreamgym.record(env, steps=10, out=tmp_path / "refused.h5")
    wrapped = gym.wrappers.TransformAction(
        env, lambda action: action.astype(np.int8), spaces.MultiDiscrete(np.full((3,), 2))
    )
    through_all_stages(wrapped, tmp_path)


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (spaces.Tuple([TWO, spaces.Discrete(3)]), "splits one MultiDiscrete into the parts"),
        (spaces.Dict({"a": FLOATS, "b": TWO}), "splits one Box into the parts"),
    ],
)
def test_composite_actions_are_refused_with_advice(space: Any, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpaceError, match=advice):
        dreamgym.record(AnySpace(FLOATS, space), steps=10, out=tmp_path / "refused.h5")


@pytest.mark.parametrize(
    ("space", "advice"), [(IMAGES["HWC"], "takes images"), (OBSERVATIONS["Dict"], "takes a Dict")]
)
def test_pets_refuses_images_and_dicts_before_the_fit(space: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        ModelSpec(family="pets").build(space, TWO)


@pytest.mark.parametrize("family", ["rssm", "jepa"])
@pytest.mark.parametrize("name", ["Dict", "int64", "bytes", "SHWC", "CHW"])
def test_other_families_give_observations_of_the_space(family: str, name: str) -> None:
    """The whole way is the same for every family; what differs is the model."""
    space = {**IMAGES, **OBSERVATIONS}[name]
    model = ModelSpec(family=family).build(space, TWO).eval()
    state, action = model.initial(2), torch.zeros(2, dtype=torch.int64)
    space.seed(0)
    sampled = [space.sample() for _ in range(2)]
    if isinstance(space, spaces.Dict):
        observed: Any = {k: torch.from_numpy(np.stack([s[k] for s in sampled])) for k in space}
    else:
        observed = torch.from_numpy(np.stack(sampled))
    with torch.no_grad():
        state = model.observe(state, action, observed, torch.full((2, model.noise_dim), 0.5))
        if not isinstance(model, Decodes):
            assert family == "jepa"  # images are decoded with probe="all" only
            return
        decoded = model.decode(state)
    row = {k: v[0].numpy() for k, v in decoded.items()} if isinstance(decoded, dict) else decoded[0]
    assert space.contains(row if isinstance(row, dict) else row.numpy())
