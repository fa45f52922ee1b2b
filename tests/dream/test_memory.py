"""Memory: what is said of an environment is not below what it takes, and too many are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamgym.dream import memory
from dreamgym.dream.memory import bytes_per_env
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import ONE_EACH, small_world

CLEAR_PEAK = Path("/proc/self/clear_refs")
needs_proc = pytest.mark.skipif(
    not CLEAR_PEAK.exists(), reason="this system does not tell the peak of a process's memory"
)

MEASURE = """
import gc, json, os, sys
import torch
from dreamgym.dream.memory import bytes_per_env
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import small_world

torch.set_num_threads(1)

def status(name):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def taken(world, rows):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    env = DreamVectorEnv(world, rows, device="cpu", view="latent")
    env.reset(seed=0)
    actions = torch.as_tensor(env.action_space.sample())
    for _ in range(3):
        out = env.step(actions)
    return status("VmHWM") - before

for kind, action in json.loads(sys.argv[1]):
    world = small_world(kind, action)
    taken(world, 4096)  # what is taken once
    few, many = taken(world, 4096), taken(world, 16384)
    said = bytes_per_env(DreamVectorEnv(world, 8, device="cpu", view="latent").engine)
    print(json.dumps([kind, (many - few) / (16384 - 4096), said]))
"""

CAR = """
import resource
import gymnasium as gym
import numpy as np
import torch
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import MDNRNN, MDNRNNConfig
from dreamgym.world.start_states import StartStates
from dreamgym.world import World

torch.set_num_threads(1)
space = gym.spaces.Box(-np.inf, np.inf, (32,), np.float32)
config = MDNRNNConfig(hidden=256, trunk=0, head=0)
model = MDNRNN(space, gym.spaces.Box(-1, 1, (3,), np.float32), config).eval().requires_grad_(False)
starts = StartStates(states=model.initial(64), num_episode_starts=64)
world = World(model=model, starts=starts, env_spec=None, horizon=100, provenance={}, quality={},
              name="car")

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def run(rows):
    options = {"termination": 1.0, "max_episode_steps": [1, 600]}  # some end in every step
    env = DreamVectorEnv(world, rows, device="cpu", view="latent", **options)
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.zeros(rows, 3))

run(64)
before = peak()
run(65536)
print((peak() - before) / 1e9)
"""


def run(code: str, *arguments: str) -> str:
    # Every large piece of memory goes back where it came from, so that a peak is of what is held.
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_proc
@pytest.mark.slow
def test_no_family_takes_more_than_is_said():
    lines = run(MEASURE, json.dumps(ONE_EACH)).splitlines()
    measured = [json.loads(line) for line in lines]
    assert len(measured) == len(ONE_EACH)
    for kind, taken, said in measured:
        assert taken <= said, f"{kind} takes {taken:.0f} bytes an environment, said are {said}"
        assert said <= 4 * taken + 2048, f"{kind} takes {taken:.0f} bytes, said are {said}"


@needs_proc
@pytest.mark.slow
def test_65536_dreams_of_the_car_take_less_than_a_gigabyte():
    assert float(run(CAR)) < 1.0


def test_more_than_fit_are_refused_with_how_many_do(monkeypatch):
    world = small_world()
    each = bytes_per_env(DreamVectorEnv(world, 8, device="cpu").engine)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3000 * each + 1)
    DreamVectorEnv(world, 3000, device="cpu")
    with pytest.raises(ValueError, match=r"=3001 would take .* about 3000 environments fit"):
        DreamVectorEnv(world, 3001, device="cpu")
