"""The compiled step: the same dreams, told of once, kept for the next process, never forced."""

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
"""Rows of which only parts of a step are compiled; more than the MDN-RNN takes at a time."""

CHECKED = """
import json, sys
import torch
from torch._dynamo.utils import counters
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import small_world

torch.set_num_threads(1)
envs = [DreamVectorEnv(small_world(), 1024, compile=c, device="cpu") for c in (True, False)]
for env in envs:
    env.reset(seed=0)
for step in range(9):  # beyond the horizon: rows begin anew
    action = torch.full((1024,), step % 3)
    kept = [out if isinstance(out, torch.Tensor) else out["final_obs"]
            for out in envs[0].step(action)]
    other = envs[1].step(action)
    for given, wanted in zip(kept, (*other[:4], other[4]["final_obs"])):
        # A compiled product rounds otherwise, which may turn one draw among thousands.
        near = torch.isclose(given.float(), wanted.float(), rtol=1e-3, atol=1e-3)
        assert near.float().mean() > 0.99, step
    places = {tensor.data_ptr() for tensor in kept}
    assert len(places) == len(kept)
    envs[0].set_state(envs[1].get_state())
print(json.dumps({"way": envs[0].stepper.way, **counters["inductor"]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_next_process_finds_what_was_compiled(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ran = [
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
    for done in ran:
        assert done.returncode == 0, done.stderr
        assert '"way": "compiled"' in done.stdout
        assert done.stderr.count("compiled the step of 1024 dreams in") == 1
    assert '"fxgraph_cache_hit": 1' in ran[1].stdout, ran[1].stdout
    assert "fxgraph_cache_miss" not in ran[1].stdout


LANES = """
import torch
from dreamgym.dream.noise import step_keys, uniforms

torch.set_num_threads(1)

def drawn(env, step):
    return uniforms(step_keys(env, env, step.unsqueeze(0)), 65)

compiled = torch.compile(drawn, fullgraph=True, dynamic=False)
for rows in (64, 8):
    env = torch.arange(rows)
    for step in range(300):
        given = compiled(env, env + step)
    assert torch.equal(given, drawn(env, env + step))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_noise_writes_into_no_memory_but_its_own():
    # An overflowing index once had g++ leave out the end of a loop: malloc then aborts.
    done = subprocess.run(
        [sys.executable, "-c", LANES], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [8, MANY])
def test_where_there_is_no_compiler_the_step_is_taken_as_it_is_written(
    count, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    env, other = (
        DreamVectorEnv(small_world(), count, compile=c, device="cpu") for c in (True, False)
    )
    env.reset(seed=0)
    other.reset(seed=0)
    action = torch.zeros(count, dtype=torch.int64)
    missing = {"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}
    with torch._inductor.config.patch(missing), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert torch.equal(env.step(action)[0], other.step(action)[0])
    assert sum("cannot be compiled here" in str(w.message) for w in told) == 1
    assert env.stepper.way == "eager"


def test_any_number_of_engines_can_be_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):  # which monkeypatch would not put back
        for count in (3, 4, 5, 100, 101):
            env = DreamVectorEnv(small_world(), count, compile=True, device="cpu")
            env.reset(seed=0)
            env.step(torch.zeros(count, dtype=torch.int64))
            assert env.stepper.way == "compiled"


class Counting:
    """A backend of PyTorch's compiler that counts what it is given, and fails when asked to."""

    def __init__(self) -> None:
        self.graphs, self.fails = 0, False

    def __call__(self, graph, inputs, **options):
        self.graphs += 1
        if self.fails:
            raise RuntimeError("no more memory to compile in")
        return graph


@pytest.fixture
def backend(monkeypatch) -> Counting:
    counting = Counting()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    return counting


def a_pair(kind: str) -> list[DreamVectorEnv]:
    """One environment that is compiled, and one that is not, both begun in what was observed."""
    world = small_world(kind)
    model, generator = world.model, torch.Generator().manual_seed(0)
    noise = torch.rand(64, model.noise_dim, generator=generator)
    action = zero_action(model.action_space, 64, "cpu")
    seen = random_observations(model.observation_space, 64)
    states = model.observe(model.initial(64), action, seen, noise)
    world.starts = StartStates(states=states, num_episode_starts=16)
    envs = [DreamVectorEnv(world, MANY, compile=c, device="cpu") for c in (True, False)]
    for env in envs:
        env.reset(seed=0)
    return envs


def test_what_is_compiled_for_few_rows_looks_at_what_it_is_given(backend):
    envs = [DreamVectorEnv(small_world(), 4, compile=c, device="cpu") for c in (True, False)]
    for env in envs:
        env.reset(seed=0)
    action = torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        compiled, written = (env.step(action) for env in envs)
    assert backend.graphs == 1
    apart = torch.stack([action, action], 1)[:, 0]
    compiled, written = (env.step(apart) for env in envs)
    assert backend.graphs == 2, "other strides are another function"
    torch.testing.assert_close(compiled[0], written[0])


@pytest.mark.parametrize("kind", [*FAMILIES, "known-reward"])
def test_many_rows_with_what_is_compiled_are_the_same_dreams(kind, backend):
    envs = a_pair(kind)
    graphs = 0
    for step in range(7):  # beyond the horizon: rows begin anew
        compiled, written = (env.step(torch.full((MANY,), step % 3)) for env in envs)
        graphs = graphs or backend.graphs
        assert backend.graphs == graphs > 0, f"something is compiled at step {step}"
        for given, wanted in zip(compiled[:4], written[:4], strict=True):
            near = torch.isclose(given.float(), wanted.float(), rtol=1e-3, atol=1e-3)
            assert near.float().mean() > 0.99, step
        envs[0].set_state(envs[1].get_state())
    assert envs[0].stepper.way == "compiled"


@pytest.mark.parametrize("wrong", ["always", 1, None])
def test_another_value_is_refused(wrong):
    with pytest.raises(ValueError, match="compile="):
        DreamVectorEnv(small_world(), 2, compile=wrong)
