"""The table of learners: one entry and one module make a learner."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import dreamgym
from dreamgym.train import (
    LEARNERS,
    Learner,
    TrainConfig,
    TrainingError,
    find_learner,
    load_policy,
    train_policy,
)
from dreamgym.train.policy import PolicyCard, TrainedPolicy
from dreamgym.train.registry import format_owner
from dreamgym.train.sb3 import ALGORITHMS
from dreamgym.world.world import World


def installed() -> list[Learner]:
    """Return the learners whose library is installed."""
    return [each for each in LEARNERS.values() if importlib.util.find_spec(each.requires)]


class Still:
    """A network that always takes action 0."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros(len(observation), int), state

    def state_dict(self):
        return {}


@pytest.fixture
def toy(monkeypatch):
    """Register a learner whose module lives in memory only."""
    module = types.ModuleType("toy_learner")

    def train(run):
        dream = run.make_dream(2)
        card = run.card(dream, settings={}, steps=2, policy={})
        return TrainedPolicy(network=Still(), card=card, algorithm="toy"), True

    def check(run):
        if run.steps == 13:
            raise TrainingError("not 13")

    def load(path, *, algo, env):
        return TrainedPolicy(
            network=Still(), card=PolicyCard.from_dict(json.loads(path.read_text()))
        )

    def unsupported(algo, space):
        return None if space.shape == () else f"{algo} takes no {space}"

    module.train, module.check, module.load = train, check, load
    module.unsupported = unsupported
    module.save = lambda policy, path: path.write_text(json.dumps(policy.card.as_dict()))
    monkeypatch.setitem(sys.modules, "toy_learner", module)
    learner = Learner(
        name="toy",
        title="Toy",
        requires="numpy",
        extra="toys",
        module="toy_learner",
        algorithms=("REINFORCE", "PPO"),
        suffix=".toy",
    )
    monkeypatch.setitem(LEARNERS, "toy", learner)
    return learner


def test_an_entry_and_a_module_make_a_learner(toy, discrete_world, tmp_path):
    policy = train_policy(discrete_world, algo="REINFORCE", out=tmp_path / "policy")
    path = tmp_path / "policy.toy"
    assert path.is_file()
    assert policy.card.learner == "toy"
    assert policy.card.versions["numpy"] == np.__version__
    for name in (path, path.with_suffix("")):
        assert load_policy(name, world=discrete_world).card == policy.card
    with pytest.raises(TrainingError, match="not 13"):
        train_policy(discrete_world, algo="REINFORCE", steps=13)
    assert train_policy(discrete_world, learner="toy").card.algo == "REINFORCE"


def test_a_learner_answers_for_an_action_space_before_a_training_and_in_check(
    toy, box_world, tmp_path
):
    with pytest.raises(TrainingError, match="REINFORCE takes no Box"):
        train_policy(box_world, algo="REINFORCE")
    data = dreamgym.record("Pendulum-v1", steps=10, out=tmp_path / "data.h5")
    problems = dreamgym.check(data, algo="PPO", learner="toy").problems
    assert any("PPO takes no Box" in problem for problem in problems)
    problems = dreamgym.check(data, learner="toy").problems
    assert any("REINFORCE takes no Box" in problem for problem in problems)
    with pytest.raises(TrainingError, match="no algorithm 'POP'"):
        dreamgym.check(data, algo="POP")
    with pytest.raises(ValueError, match=r"unknown family 'petz'.*'pets'"):
        dreamgym.check(data, family="petz")


def test_the_first_learner_of_an_algorithm_is_the_default(toy):
    assert find_learner("PPO").name == "sb3"
    assert find_learner("PPO", "toy") is toy
    assert find_learner("REINFORCE") is toy
    assert find_learner(None).name == "sb3"
    assert find_learner(None, "toy") is toy
    with pytest.raises(TrainingError, match=r"no algorithm 'SAC' of Toy"):
        find_learner("SAC", "toy")
    with pytest.raises(TrainingError, match=r"no learner 'toi'; did you mean 'toy'"):
        find_learner("PPO", "toi")


def test_a_learner_that_is_not_installed_names_its_extra(toy):
    missing = replace(toy, requires="not_there")
    with pytest.raises(
        ModuleNotFoundError, match=r"'toy' needs not_there.*pip install 'dreamgym\[toys\]'"
    ):
        missing.library()


def test_the_table_is_consistent():
    loaders = {(each.suffix, each.library().load) for each in installed()}
    assert len(loaders) == len({suffix for suffix, _ in loaders}), "a suffix has one format"
    assert LEARNERS["sb3"].algorithms == tuple(ALGORITHMS)[: len(LEARNERS["sb3"].algorithms)]
    for learner in installed():
        library = learner.library()
        for name in ("adapter", "check", "train", "save", "load"):
            assert callable(getattr(library, name))
        assert callable(format_owner(learner.name).library().actor)


def test_alarms_cannot_truncate_where_the_library_resets_rows(box_world: World) -> None:
    pytest.importorskip("torchrl")
    with pytest.raises(TrainingError, match="alarms='truncate' does not work with TorchRL"):
        train_policy(box_world, learner="torchrl", config=TrainConfig(alarms="truncate"))
