"""The compiled step: equal dreams, one message, a cache across processes, and fallbacks."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.base import zero_action
from dreamgym.world.start_states import StartStates
from tests.small_worlds import random_observations, small_world

FAMILIES = ("mdn-rnn", "rssm", "jepa", "pets")
MANY = 600
"""Rows whose kernels are launched from Python; more than the MDN-RNN takes at a time."""

CHECKED = """
import json, sys
import torch
from torch._dynamo.utils import counters
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import TENSORS, small_world

torch.set_num_threads(1)
options = {"device": "cpu", **TENSORS}
envs = [DreamVectorEnv(small_world(), 1024, compile=c, **options) for c in (True, False)]
for env in envs:
    env.reset(seed=0)
for step in range(9):  # beyond the horizon, so that rows are reset
    action = torch.full((1024,), step % 3)
    outputs = [out if isinstance(out, torch.Tensor) else out["final_obs"]
            for out in envs[0].step(action)]
    eager = envs[1].step(action)
    for actual, expected in zip(outputs, (*eager[:4], eager[4]["final_obs"])):
        # A compiled product rounds differently, which may change one draw in thousands.
        near = torch.isclose(actual.float(), expected.float(), rtol=1e-3, atol=1e-3)
        assert near.float().mean() > 0.99, step
    addresses = {tensor.data_ptr() for tensor in outputs}
    assert len(addresses) == len(outputs)
    envs[0].set_state(envs[1].get_state())
print(json.dumps({"execution": envs[0].stepper.execution, **counters["inductor"]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_next_process_finds_what_was_compiled(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.run(
            [sys.executable, "-c", CHECKED],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env=environment,
        )
        for _ in range(2)
    ]
    for done in processes:
        assert done.returncode == 0, done.stderr
        assert '"execution": "compiled"' in done.stdout
        assert done.stderr.count("compiled the step of 1024 dreams in") == 1
    assert '"fxgraph_cache_hit": 1' in processes[1].stdout, processes[1].stdout
    assert "fxgraph_cache_miss" not in processes[1].stdout


LANES = """
import torch
from dreamgym.dream.noise import step_keys
from dreamgym.models.splitmix import uniforms

torch.set_num_threads(1)

def draw(env, step):
    return uniforms(step_keys(env, env, step.unsqueeze(0)), 65)

compiled = torch.compile(draw, fullgraph=True, dynamic=False)
for rows in (64, 8):
    env = torch.arange(rows)
    for step in range(300):
        numbers = compiled(env, env + step)
    assert torch.equal(numbers, draw(env, env + step))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_noise_does_not_write_out_of_bounds():
    # An overflowing index once made g++ drop the end of a loop, after which malloc aborts.
    done = subprocess.run(
        [sys.executable, "-c", LANES], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [8, pytest.param(MANY, marks=pytest.mark.slow)])
def test_without_a_compiler_the_step_is_eager_after_one_warning(count, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    env, other = (
        DreamVectorEnv(
            small_world(), count, compile=c, device="cpu", output="torch", autoreset_mode="SameStep"
        )
        for c in (True, False)
    )
    env.reset(seed=0)
    other.reset(seed=0)
    action = torch.zeros(count, dtype=torch.int64)
    missing = {"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}
    with torch._inductor.config.patch(missing), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert torch.equal(env.step(action)[0], other.step(action)[0])
    assert sum("cannot be compiled here" in str(w.message) for w in caught) == 1
    assert env.stepper.execution == "eager"


def test_any_number_of_engines_can_be_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):  # which monkeypatch would not restore
        for count in (3, 4, 100):
            env = DreamVectorEnv(
                small_world(),
                count,
                compile=True,
                device="cpu",
                output="torch",
                autoreset_mode="SameStep",
            )
            env.reset(seed=0)
            env.step(torch.zeros(count, dtype=torch.int64))
            assert env.stepper.execution == "compiled"


class Counting:
    """A backend of torch.compile that counts the graphs that it compiles."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs, **options):
        self.graphs += 1
        return graph


@pytest.fixture
def backend(monkeypatch) -> Counting:
    counting = Counting()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    return counting


def make_pair(kind: str) -> list[DreamVectorEnv]:
    """Return a compiled and an eager environment that start from observed states."""
    world = small_world(kind)
    model, generator = world.model, torch.Generator().manual_seed(0)
    noise = torch.rand(64, model.noise_dim, generator=generator)
    action = zero_action(model.action_space, 64, "cpu")
    observations = random_observations(model.observation_space, 64)
    states = model.observe(model.initial(64), action, observations, noise)
    world.starts = StartStates(states=states, num_episode_starts=16)
    envs = [
        DreamVectorEnv(
            world, MANY, compile=c, device="cpu", output="torch", autoreset_mode="SameStep"
        )
        for c in (True, False)
    ]
    for env in envs:
        env.reset(seed=0)
    return envs


def test_a_compiled_step_of_few_rows_checks_the_strides_of_its_inputs(backend):
    envs = [
        DreamVectorEnv(
            small_world(), 4, compile=c, device="cpu", output="torch", autoreset_mode="SameStep"
        )
        for c in (True, False)
    ]
    for env in envs:
        env.reset(seed=0)
    action = torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        compiled, eager = (env.step(action) for env in envs)
    assert backend.graphs == 1
    strided = torch.stack([action, action], 1)[:, 0]
    compiled, eager = (env.step(strided) for env in envs)
    assert backend.graphs == 2, "other strides need another function"
    torch.testing.assert_close(compiled[0], eager[0])


@pytest.mark.parametrize("kind", [*FAMILIES, "known-reward"])
def test_a_compiled_step_of_many_rows_gives_equal_dreams(kind, backend):
    envs = make_pair(kind)
    graphs = 0
    for step in range(7):  # beyond the horizon, so that rows are reset
        compiled, eager = (env.step(torch.full((MANY,), step % 3)) for env in envs)
        graphs = graphs or backend.graphs
        assert backend.graphs == graphs > 0, f"recompiled at step {step}"
        for actual, expected in zip(compiled[:4], eager[:4], strict=True):
            near = torch.isclose(actual.float(), expected.float(), rtol=1e-3, atol=1e-3)
            assert near.float().mean() > 0.99, step
        envs[0].set_state(envs[1].get_state())
    assert envs[0].stepper.execution == "compiled"


@pytest.mark.parametrize("wrong", ["always", 1, None])
def test_another_value_is_refused(wrong):
    with pytest.raises(ValueError, match="compile="):
        DreamVectorEnv(small_world(), 2, compile=wrong, output="torch", autoreset_mode="SameStep")
