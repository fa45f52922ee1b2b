"""Dreams as values: saved, restored, forked and moved to another environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamgym.dream.state import Dreams
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import TENSORS, small_world

ENVS = 8


def make_env(**options) -> DreamVectorEnv:
    return DreamVectorEnv(small_world(horizon=5), ENVS, **{**TENSORS, **options})


def act(env: DreamVectorEnv, seed: int) -> np.ndarray:
    env.action_space.seed(seed)
    return env.action_space.sample()


def play(env: DreamVectorEnv, steps: int, first: int = 0) -> list[torch.Tensor]:
    return [env.step(act(env, first + step))[0] for step in range(steps)]


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_a_restored_state_repeats_the_same_run_bit_for_bit_across_resets(mode):
    env = make_env(autoreset_mode=mode)
    env.reset(seed=0)
    play(env, 3)
    kept = env.get_state()
    expected = play(env, 9)
    env.set_state(kept)
    assert all(torch.equal(a, b) for a, b in zip(expected, play(env, 9), strict=True))


def test_a_kept_state_is_never_written_and_can_be_saved_and_loaded(tmp_path):
    env = make_env()
    env.reset(seed=0)
    play(env, 2)
    kept = env.get_state()
    before = {key: leaf.clone() for key, leaf in kept.tensors().items()}
    save_file({key: leaf.clone() for key, leaf in kept.tensors().items()}, tmp_path / "dreams")
    expected = play(env, 6)
    assert all(torch.equal(leaf, before[key]) for key, leaf in kept.tensors().items())
    other = make_env()
    other.set_state(Dreams.from_tensors(load_file(tmp_path / "dreams")))
    assert all(torch.equal(a, b) for a, b in zip(expected, play(other, 6), strict=True))


def test_branches_of_a_row_start_alike_and_diverge():
    env = make_env(view="latent", termination=1.0)
    env.reset(seed=0)
    play(env, 2)
    observations = env.branch([3] * ENVS)
    assert all(torch.equal(row, observations[0]) for row in observations)
    assert torch.equal(env.dreams.age, torch.full((ENVS,), 2))
    after, *_ = env.step(np.zeros(ENVS, int))
    assert len({tuple(row.tolist()) for row in after}) == ENVS


def test_forks_with_their_noise_have_one_future_under_the_same_actions():
    env = make_env(view="latent")
    env.reset(seed=0)
    play(env, 2)
    env.set_state(env.get_state().rows(torch.full((ENVS,), 3)))
    for _ in range(6):
        after, *_ = env.step(np.zeros(ENVS, int))
        assert all(torch.equal(row, after[0]) for row in after)


def test_a_latent_can_be_edited_by_tensor_operations():
    env = make_env()
    env.reset(seed=0)
    dreams = env.get_state()
    dreams.model["z"][0] += 1.0
    before = env.world.model.decode(env.dreams.model)
    after = env.set_state(dreams)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


def test_states_that_do_not_fit_are_refused():
    env = make_env()
    with pytest.raises(RuntimeError, match="reset"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=rf"age of shape \(3,\), expected age of shape \({ENVS},\)"
    ):
        env.set_state(env.get_state().rows(torch.zeros(3, dtype=torch.int64)))
    kept = env.get_state()
    with pytest.raises(TypeError, match="expected Dreams, got dict"):
        env.set_state(kept.tensors())
    kept.model["z"] = kept.model["z"].double()
    with pytest.raises(ValueError, match=r"model\.z .*float64, expected .*float32"):
        env.set_state(kept)
    with pytest.raises(ValueError, match=r"model\.y of shape .*expected no model\.y"):
        env.set_state(
            kept._replace(model={**kept.model, "z": kept.model["z"].float(), "y": kept.age})
        )
    with pytest.raises(ValueError, match="at least 0 and below"):
        env.branch([ENVS] * ENVS)
    with pytest.raises(ValueError, match="give integers"):
        env.branch([0.5] * ENVS)
    leaves = env.get_state().tensors()
    del leaves["age"]
    with pytest.raises(ValueError, match="age is missing"):
        Dreams.from_tensors(leaves)


def test_states_set_or_forked_in_inference_mode_can_carry_gradients_afterwards():
    world = small_world(action="box")
    with torch.inference_mode():
        env = DreamVectorEnv(world, ENVS, output="torch", autoreset_mode="SameStep")
        env.reset(seed=0)
        env.set_state(env.get_state())
        env.branch(np.arange(ENVS))
        kept = env.get_state()
    assert not any(leaf.is_inference() for leaf in kept.tensors().values())
    assert not any(leaf.is_inference() for leaf in env.dreams.tensors().values())
    actions = torch.zeros(ENVS, 2, requires_grad=True)
    env.step(actions)[1].sum().backward()
    assert actions.grad is not None
