"""Memory of dreams: the estimate is an upper one, and too many environments are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreamgym.dream import memory
from dreamgym.dream.memory import bytes_per_env
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import ONE_EACH, small_world

CLEAR_PEAK = Path("/proc/self/clear_refs")
needs_proc = pytest.mark.skipif(
    not CLEAR_PEAK.exists(), reason="this system does not report the peak memory of a process"
)

MEASURE = """
import gc, json, os, sys
import torch
from dreamgym.dream.memory import bytes_per_env
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import TENSORS, small_world

torch.set_num_threads(1)

def status(name):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def peak_growth(world, rows):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    env = DreamVectorEnv(world, rows, device="cpu", view="latent", **TENSORS)
    env.reset(seed=0)
    actions = torch.as_tensor(env.action_space.sample())
    for _ in range(3):
        out = env.step(actions)
    return status("VmHWM") - before

for kind, action in json.loads(sys.argv[1]):
    world = small_world(kind, action)
    peak_growth(world, 4096)  # one-time allocations
    few, many = peak_growth(world, 4096), peak_growth(world, 16384)
    env = DreamVectorEnv(world, 8, device="cpu", view="latent", **TENSORS)
    estimate = bytes_per_env(env.engine)
    print(json.dumps([kind, (many - few) / (16384 - 4096), estimate]))
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
    options = {"termination": 1.0, "max_episode_steps": [1, 600]}  # some episodes end in every step
    env = DreamVectorEnv(world, rows, device="cpu", view="latent", **{**TENSORS, **options})
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.zeros(rows, 3))

run(64)
before = peak()
run(65536)
print((peak() - before) / 1e9)
"""


def run(code: str, *arguments: str) -> str:
    # A low mmap threshold: freed blocks go back to the system, so that a peak counts live memory.
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
def test_no_family_takes_more_than_its_estimate():
    lines = run(MEASURE, json.dumps(ONE_EACH)).splitlines()
    measured = [json.loads(line) for line in lines]
    assert len(measured) == len(ONE_EACH)
    for kind, actual, estimate in measured:
        assert actual <= estimate, f"{kind}: {actual:.0f} bytes, estimated {estimate}"
        assert estimate <= 4 * actual + 2048, f"{kind}: {actual:.0f} bytes, estimated {estimate}"


@needs_proc
@pytest.mark.slow
def test_65536_dreams_of_the_car_take_less_than_a_gigabyte():
    assert float(run(CAR)) < 1.0


def test_more_environments_than_fit_are_refused_with_the_number_that_fits(monkeypatch):
    world = small_world()
    each = bytes_per_env(
        DreamVectorEnv(world, 8, device="cpu", output="torch", autoreset_mode="SameStep").engine
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3000 * each + 1)
    DreamVectorEnv(world, 3000, device="cpu", output="torch", autoreset_mode="SameStep")
    with pytest.raises(ValueError, match=r"=3001 would take .* about 3000 environments fit"):
        DreamVectorEnv(world, 3001, device="cpu", output="torch", autoreset_mode="SameStep")


def refuse_to_tell(name: str):
    """Stand in for `os.confstr` and `os.sysconf` on a system without these names."""
    raise ValueError(f"unrecognized configuration name: {name}")


def test_without_glibc_the_allocator_is_left_alone(monkeypatch):
    allocated = []
    monkeypatch.setattr(torch, "empty", lambda *size, **options: allocated.append(size))
    for confstr in (refuse_to_tell, None):  # macOS and musl; Windows has no such function
        if confstr is None:
            monkeypatch.delattr(os, "confstr", raising=False)
        else:
            monkeypatch.setattr(os, "confstr", confstr, raising=False)
        memory.keep_freed_memory()
        assert not allocated
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.39", raising=False)
    memory.keep_freed_memory()
    assert allocated == [(memory.LARGEST_KEPT,)]


def test_without_proc_the_whole_memory_counts_as_free(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "missing")
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)
    assert memory.free_bytes(torch.device("cpu")) == 4096 * 1000
    with pytest.raises(ValueError, match="environments fit"):
        DreamVectorEnv(
            small_world(), 2**20, device="cpu", output="torch", autoreset_mode="SameStep"
        )


def test_where_the_system_reports_no_memory_nothing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "missing")
    monkeypatch.setattr(os, "sysconf", refuse_to_tell, raising=False)
    assert memory.free_bytes(torch.device("cpu")) is None
    assert memory.free_bytes(torch.device("meta")) is None
    assert (
        DreamVectorEnv(
            small_world(), 2000, device="cpu", output="torch", autoreset_mode="SameStep"
        ).num_envs
        == 2000
    )
