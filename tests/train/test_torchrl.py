"""TorchRL's environments of a dream: the native one, and its own wrappers of Gymnasium's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from tests.small_worlds import small_world
from tests.train.counting import HORIZON, counting_world

pytest.importorskip("torchrl")
from torchrl.envs import GymEnv, GymWrapper, check_env_specs

from dreamgym.train.torchrl import TorchRLEnv

BOX = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_the_native_environment_of_a_dream_in_any_mode_keeps_its_specs(action, mode):
    dream = DreamVectorEnv(small_world(action=action), 4, device="cpu", autoreset_mode=mode)
    check_env_specs(TorchRLEnv(dream))


def test_a_rollout_has_the_true_last_observation_and_resets_the_rows_that_ended():
    env = TorchRLEnv(DreamVectorEnv(counting_world(BOX), 4, device="cpu"))
    env.set_seed(0)
    data = env.rollout(2 * HORIZON, break_when_any_done=False)
    assert data.batch_size == (4, 2 * HORIZON)
    ends = data["next", "truncated"][..., 0].nonzero()[:, 1].unique()
    assert ends.tolist() == [HORIZON - 1, 2 * HORIZON - 1]
    assert not data["next", "terminated"].any()
    assert (data["next", "observation"][:, ends] == 1.0).all()
    assert (data["observation"][:, HORIZON] == -1.0).all()


def test_several_choices_are_refused():
    with pytest.raises(TrainingError, match="one choice"):
        TorchRLEnv(DreamVectorEnv(small_world(action="multi-discrete"), 2, device="cpu"))


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_torchrls_own_wrapper_takes_a_dream_in_the_modes_that_it_knows(mode, output):
    dream = DreamVectorEnv(
        small_world(horizon=3), 4, device="cpu", autoreset_mode=mode, output=output
    )
    env = GymWrapper(dream)
    check_env_specs(env)
    with pytest.raises(RuntimeError, match="auto-reset mode"):
        GymWrapper(dream.with_options(autoreset_mode="NextStep"))
    assert torch.isfinite(env.rollout(8, break_when_any_done=False)["next", "reward"]).all()


def test_torchrls_own_environment_takes_an_id():
    env = GymEnv("dreamgym/CartPole-MDNRNN-v0", device="cpu")
    check_env_specs(env)
