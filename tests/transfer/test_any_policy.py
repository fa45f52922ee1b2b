"""Whatever is a policy acts in the real environment, is compared, and transferred."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.errors import PolicyFileError
from dreamgym.train import LEARNERS, TrainConfig, load_policy
from dreamgym.train.planners import CategoricalCEMConfig, PlannedPolicy
from dreamgym.transfer import (
    EpisodePlan,
    ExportedPolicy,
    LatentAgent,
    TensorPolicy,
    compare_policies,
    evaluate,
    export_policy,
    transfer_policy,
)


class Network(torch.nn.Module):
    """Balances CartPole for a while."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, 2] + 0.5 * x[:, 3] + 0.1 * x[:, 1] > 0).long()


def by_numpy(observation):
    return int(observation[2] + 0.5 * observation[3] + 0.1 * observation[1] > 0)


EXPECTED = 8, 100  # episodes, and the least mean return of this rule

LATENT = (("sb3", "PPO"), ("ppo", "PPO"))
OFF_POLICY = ("SAC", "TD3", "DDPG", "DQN", "TQC", "CrossQ", "QRDQN")
EVERY = [(name, algo) for name, each in LEARNERS.items() for algo in each.algorithms]


def settings_of(algo):
    """Return settings that make a training short."""
    if algo == "CMA-ES":
        return TrainConfig(learner={"popsize": 4, "rollouts": 2})
    if algo in OFF_POLICY:
        few = {"learning_starts": 32, "gradient_steps": 1, "buffer_size": 200}
        return TrainConfig(num_envs=8, batch_size=8, learner=few)
    return TrainConfig(num_envs=8, n_steps=16)


def trained(learner, algo, worlds, out, view="observation"):
    """Train for a moment in the first world that the algorithm can act in; return both."""
    entry = LEARNERS[learner]
    pytest.importorskip(entry.requires)
    library = entry.library()
    world = next(each for each in worlds if not library.unsupported(algo, each.action_space))
    config = replace(settings_of(algo), view=view)
    return world, dreamgym.train_policy(
        world, algo=algo, learner=learner, steps=128, config=config, out=out
    )


@pytest.mark.parametrize(("learner", "algo"), EVERY)
def test_every_algorithms_policy_is_saved_read_transferred_and_recorded(
    learner, algo, cartpole_world, pendulum_world, tmp_path
):
    view = "latent" if (learner, algo) in LATENT else "observation"
    worlds = cartpole_world, pendulum_world
    world, policy = trained(learner, algo, worlds, tmp_path / "p", view)
    path = LEARNERS[learner].policy_path(tmp_path / "p")
    loaded = load_policy(path, world=world)
    assert loaded.card == policy.card
    assert (loaded.card.learner, loaded.card.algo) == (learner, algo)
    acting = [policy, loaded]
    if view == "latent":
        acting = [LatentAgent(each, world, deterministic=True) for each in acting]
    returns = [evaluate(each, world.env_id, episodes=3).returns for each in acting]
    np.testing.assert_array_equal(*returns)
    result = transfer_policy(path, world, episodes=3, baselines=False)
    assert result.view == view
    dreamgym.record(world.env_id, steps=20, out=tmp_path / "d.h5", policy=acting[1])
    with Dataset(tmp_path / "d.h5") as data:
        assert data.num_steps == 20
        assert policy.name in data.policy
    # What is exported is the module that acts as predict does.
    shape = (5, *loaded.observation_space.shape)
    observations = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        actions = loaded.actor()(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(actions, loaded.predict(observations)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "algo"), EVERY)
def test_every_algorithms_policy_is_exported(
    learner, algo, cartpole_world, pendulum_world, tmp_path
):
    pytest.importorskip("onnxscript")
    world, policy = trained(learner, algo, (cartpole_world, pendulum_world), tmp_path / "p")
    export_policy(policy, out=tmp_path / "robot")
    few = {"episodes": 2, "max_episode_steps": 20}
    there = evaluate(ExportedPolicy(tmp_path / "robot"), world.env_id, **few).returns
    np.testing.assert_allclose(there, evaluate(policy, world.env_id, **few).returns, rtol=1e-3)


def scripted(tmp_path):
    path = tmp_path / "policy.pt"
    torch.jit.save(torch.jit.script(Network()), path)
    return TensorPolicy(torch.jit.load(path), name="TorchScript")


def program(tmp_path):
    path = tmp_path / "policy.pt2"
    torch.export.save(torch.export.export(Network(), (torch.zeros(1, 4),)), path)
    return TensorPolicy(torch.export.load(path).module(), name="program", batched=False)


def exported(tmp_path):
    pytest.importorskip("onnxscript")
    space = gym.make("CartPole-v1").observation_space
    policy = TensorPolicy(Network(), observation_space=space, action_space=gym.spaces.Discrete(2))
    export_policy(policy, out=tmp_path / "robot")
    return ExportedPolicy(tmp_path / "robot")


SAME_RULE = {
    "a callable": lambda tmp_path: by_numpy,
    "a module": lambda tmp_path: TensorPolicy(Network()),
    "a TorchScript file": scripted,
    "a file of torch.export": program,
    "an ONNX folder": exported,
}


@pytest.mark.parametrize("make", SAME_RULE.values(), ids=SAME_RULE)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_one_rule_in_every_form_has_one_return(make, cartpole_world, tmp_path):
    policy = make(tmp_path)
    episodes, least = EXPECTED
    plan = EpisodePlan(episodes=episodes, seed=3)
    result = compare_policies({"given": policy, "rule": by_numpy}, "CartPole-v1", plan)
    assert result.difference("given", "rule") == (0.0, (0.0, 0.0))
    assert result.evaluations["given"].mean > least
    moved = transfer_policy(policy, cartpole_world, episodes=2, baselines=False)
    assert moved.real.mean > least / 2
    dreamgym.record("CartPole-v1", steps=20, out=tmp_path / "d.h5", policy=policy)


def test_a_planner(cartpole_world):
    planner = PlannedPolicy(
        cartpole_world, CategoricalCEMConfig(horizon=4, candidates=16, elites=4, iterations=2)
    )
    plan = EpisodePlan(episodes=2, max_episode_steps=10, num_envs=2)
    result = compare_policies({"planner": planner, "random": "random"}, "CartPole-v1", plan)
    assert result.evaluations["planner"].lengths.max() <= 10


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_files_that_hold_programs_are_not_read(suffix, tmp_path):
    path = tmp_path / f"policy{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(PolicyFileError, match=r"does not execute.*TensorPolicy.*dreamgym export"):
        load_policy(path)


def test_numbers_of_a_box_are_clipped_to_it():
    class Far(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 1), 9.0), None

    space = gym.make("Pendulum-v1").action_space
    policy = TensorPolicy(Far(), action_space=space)
    actions, _ = policy.predict(np.zeros((3, 3), np.float32))
    np.testing.assert_array_equal(actions, np.full((3, 1), 2.0))
    assert evaluate(policy, "Pendulum-v1", episodes=1).episodes == 1
    with pytest.raises(ValueError, match="view='latents'"):
        TensorPolicy(Far(), view="latents")
