"""Gradients through dreams, against finite differences, and none where none are required."""

from __future__ import annotations

import copy

import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import small_world

ENVS, STEPS = 3, 4


def make_env() -> DreamVectorEnv:
    """Return an environment in float64, which finite differences need."""
    world = small_world(action="box", horizon=100)
    world.model = copy.deepcopy(world.model).double()
    states = {key: leaf.double() for key, leaf in world.starts.states.items()}
    world.starts = type(world.starts)(
        states=states, num_episode_starts=world.starts.num_episode_starts
    )
    env = DreamVectorEnv(
        world, ENVS, view="latent", termination=1.0, output="torch", autoreset_mode="SameStep"
    )
    env.validate_actions = lambda actions: actions  # which would round the actions to float32
    return env


def test_gradients_of_rewards_with_respect_to_actions():
    env = make_env()
    env.reset(seed=0)
    start = env.get_state()

    def total(actions: torch.Tensor) -> torch.Tensor:
        env.set_state(start)
        return sum(env.step(actions[t])[1].sum() for t in range(STEPS))

    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(STEPS, ENVS, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(total, actions.requires_grad_(), eps=1e-6, atol=1e-4)
    (gradient,) = torch.autograd.grad(total(actions), actions)
    assert (gradient.abs().sum((0, 2)) > 0).all()


def test_the_gradient_of_a_rollouts_return_with_respect_to_the_policy():
    env = make_env()
    env.reset(seed=0)
    start = env.get_state()
    width = env.world.model.feature_dim

    def total(weight: torch.Tensor) -> torch.Tensor:
        env.set_state(start)
        return env.rollout(lambda observation: torch.tanh(observation @ weight), STEPS).reward.sum()

    weight = torch.full((width, 2), 0.01, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(weight), weight)
    step = 1e-6
    for place in ((0, 0), (5, 1), (width - 1, 0)):
        moved = [weight.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (total(moved[0]) - total(moved[1])) / (2 * step)
        torch.testing.assert_close(gradient[place], slope, rtol=1e-4, atol=1e-5)
    assert not any(leaf.requires_grad for leaf in env.dreams.model.values())


def test_no_gradients_are_recorded_where_none_are_required():
    env = DreamVectorEnv(small_world(action="box"), ENVS, output="torch", autoreset_mode="SameStep")
    env.reset(seed=0)
    _, reward, *_ = env.step(torch.zeros(ENVS, 2))
    assert not reward.requires_grad
    with torch.no_grad():
        _, reward, *_ = env.step(torch.zeros(ENVS, 2, requires_grad=True))
        rollout = env.rollout(lambda observation: torch.zeros(ENVS, 2), 3)
    assert not reward.requires_grad
    assert not rollout.reward.requires_grad


def test_a_rollout_equals_repeated_steps():
    one, two = (
        DreamVectorEnv(small_world(action="box"), ENVS, output="torch", autoreset_mode="SameStep")
        for _ in range(2)
    )
    (observation, _), _ = one.reset(seed=0), two.reset(seed=0)

    def policy(observation: torch.Tensor) -> torch.Tensor:
        return observation[:, :2].tanh() * 0.5 + 0.5

    with torch.no_grad():
        rollout = two.rollout(policy, 12)
    for t in range(12):
        assert torch.equal(rollout.observation[t], observation)
        assert torch.equal(rollout.action[t], policy(observation))
        observation, reward, terminated, truncated, info = one.step(policy(observation))
        assert torch.equal(rollout.reward[t], reward)
        assert torch.equal(rollout.terminated[t], terminated)
        assert torch.equal(rollout.truncated[t], truncated)
        assert torch.equal(rollout.next_observation[t], info["final_obs"])


@pytest.mark.parametrize("steps", [0, -3])
def test_a_rollout_of_no_steps_is_refused_and_changes_nothing(steps):
    env = DreamVectorEnv(small_world(), ENVS, output="torch", autoreset_mode="SameStep")
    env.reset(seed=0)
    before = env.dreams
    with pytest.raises(ValueError, match=f"steps={steps}: give an integer of at least 1"):
        env.rollout(lambda observation: torch.zeros(ENVS, dtype=torch.int64), steps)
    assert env.dreams is before


def test_a_rollout_needs_same_step_autoreset():
    env = DreamVectorEnv(small_world(), ENVS, autoreset_mode="Disabled", output="torch")
    with pytest.raises(RuntimeError, match="reset"):
        env.rollout(lambda observation: torch.zeros(ENVS, dtype=torch.int64), 2)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="SameStep"):
        env.rollout(lambda observation: torch.zeros(ENVS, dtype=torch.int64), 2)


def test_outputs_can_be_part_of_a_callers_autograd_graph_for_many_steps():
    # Autograd refuses tensors that were written in place; outputs of a step must share no
    # version counter with those of other steps.
    env = DreamVectorEnv(
        small_world(),
        4,
        device="cpu",
        max_episode_steps=[2, 5],
        episode_statistics=True,
        output="torch",
        autoreset_mode="SameStep",
    )
    env.reset(seed=0)
    weight, lengths = torch.ones(4, requires_grad=True), torch.zeros(4, dtype=torch.int64)
    total = torch.zeros(())
    for _ in range(12):
        with torch.no_grad():
            _, _, terminated, truncated, info = env.step(torch.zeros(4, dtype=torch.int64))
        truncated |= terminated
        total = total + (weight * info["episode"]["l"]).sum() + (weight * truncated).sum()
        lengths += info["episode"]["l"] + truncated
    total.backward()
    assert torch.equal(weight.grad, lengths.float())
