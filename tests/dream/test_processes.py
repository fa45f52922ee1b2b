"""Dreams in forked processes whose parent has used several threads before."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import gymnasium as gym
import pytest
import torch

from dreamgym import _device
from dreamgym.dream.env import DreamEnv
from tests.small_worlds import small_world

PARENT = """
import gymnasium as gym
import torch

import dreamgym

torch.set_num_threads(2)
torch.rand(2000, 2000).sum()  # starts threads that a fork does not have
name = "dreamgym/CartPole-MDNRNN-v0"
envs = gym.make_vec(name, num_envs=2, vectorization_mode="async", device="cpu")
envs.reset(seed=0)
for _ in range(3):
    observation, *_ = envs.step(envs.action_space.sample())
envs.close()
assert torch.get_num_threads() == 2  # only forked children are limited to one
print(observation.shape)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)
def test_async_vectorisation_does_not_hang_after_the_parent_has_used_threads():
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 4)"


def test_only_a_fork_is_limited_to_one_thread(monkeypatch):
    with _device.threads(2):
        _device.limit_threads_after_fork()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(_device, "_IMPORTING_PROCESS", -1)
        _device.limit_threads_after_fork()
        assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_worlds_and_ids_reach_processes_that_are_spawned():
    world = small_world()
    envs = gym.vector.AsyncVectorEnv([lambda: DreamEnv(world, device="cpu")] * 2, context="spawn")
    observation, _ = envs.reset(seed=0)
    envs.close()
    expected, _ = DreamEnv(world, device="cpu").reset(seed=0)
    assert (observation[0] == expected).all()
