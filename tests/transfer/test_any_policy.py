"""Whatever is a policy acts in the real environment, is compared, and transferred."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
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

OF_A_LEARNER = {
    "sb3": ("PPO", "latent"),
    "sb3-contrib": ("TRPO", "observation"),
    "ppo": ("PPO", "latent"),
    "rsl_rl": (None, None),  # it has no discrete actions
    "skrl": ("PPO", "observation"),
    "torchrl": ("PPO", "observation"),
    "cma": ("CMA-ES", "observation"),
}


def test_every_learner_of_the_table_is_tried():
    assert {*LEARNERS} <= {*OF_A_LEARNER}, "say here what the new learner trains on CartPole"


@pytest.mark.parametrize("learner", [k for k, (algo, _) in OF_A_LEARNER.items() if algo])
def test_the_file_of_every_learner(learner, cartpole_world, tmp_path):
    pytest.importorskip(LEARNERS[learner].requires)
    algo, view = OF_A_LEARNER[learner]
    config = TrainConfig(num_envs=8, n_steps=16, view=view)
    if learner == "cma":
        config = TrainConfig(view=view, learner={"popsize": 4, "rollouts": 2})
    policy = dreamgym.train_policy(
        cartpole_world, algo=algo, learner=learner, steps=128, config=config, out=tmp_path / "p"
    )
    (path,) = tmp_path.glob("p*")
    loaded = load_policy(path, world=cartpole_world)
    acting = [policy, loaded]
    if view == "latent":
        acting = [LatentAgent(each, cartpole_world, deterministic=True) for each in acting]
    returns = [evaluate(each, "CartPole-v1", episodes=3).returns for each in acting]
    np.testing.assert_array_equal(*returns)
    result = transfer_policy(path, cartpole_world, episodes=3, baselines=False)
    assert result.view == view
    # what is exported is the module that acts as predict does
    observations = loaded.observation_space.sample()[None].repeat(5, 0) + np.float32(
        np.random.default_rng(0).normal(size=(5, *loaded.observation_space.shape))
    )
    with torch.no_grad():
        actions = loaded.actor()(torch.from_numpy(observations.clip(-3, 3)))
    np.testing.assert_array_equal(actions, loaded.predict(observations.clip(-3, 3))[0])


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
