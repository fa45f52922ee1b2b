"""Devices that are not there, that cannot draw, and what is only looked at when it is asked for."""

from __future__ import annotations

import pytest
import torch

from dreamgym._device import resolve_device
from dreamgym.dream import validation
from dreamgym.dream.noise import uniforms
from dreamgym.dream.validation import ActionValidator
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import small_world

ENVS = 4


@pytest.mark.parametrize("name", ["cuda:99", "mps:7", "xpu", "gpu", "cpu:zero", "cuda:-1"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device='{name}' cannot be used here"):
        DreamVectorEnv(small_world(), ENVS, device=name)


def test_auto_is_a_device_that_is_there():
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == wanted


def test_a_device_that_computes_otherwise_is_refused(monkeypatch):
    validation.check_noise.cache_clear()
    wrong = torch.device("meta")  # tensors without numbers stand in for it
    with pytest.raises(ValueError, match="cannot draw this dream's random numbers"):
        validation.check_noise(wrong)

    calls = []

    def rounded(keys, lanes):  # as a device does that computes 64 bits in floating point
        calls.append(keys)
        return uniforms(keys if len(calls) % 2 else (keys.double() / 8).long() * 8, lanes)

    monkeypatch.setattr(validation, "uniforms", rounded)
    with pytest.raises(ValueError, match="whole numbers of 64 bits"):
        validation.check_noise(torch.device("cpu"))
    validation.check_noise.cache_clear()


def test_only_where_it_is_asked_for_are_actions_looked_at():
    space = small_world().action_space
    outside = torch.full((ENVS,), 9)
    for looks in (True, False):
        intake = ActionValidator(space, ENVS, torch.device("cpu"), looks=looks)
        if looks:
            with pytest.raises(ValueError, match="outside"):
                intake(outside)
        else:
            assert intake(outside) is outside
        with pytest.raises(ValueError, match="shape"):
            intake(outside[:2])


def test_debug_is_json_plain_and_checked():
    for wrong in ("yes", 1, None):
        with pytest.raises(ValueError, match="debug="):
            DreamVectorEnv(small_world(), ENVS, debug=wrong)


needs_cuda = pytest.mark.gpu


@needs_cuda
def test_on_cuda_actions_are_looked_at_with_debug_only():
    outside = torch.full((ENVS,), 9, device="cuda")
    for debug in (False, True):
        env = DreamVectorEnv(small_world(), ENVS, device="cuda", debug=debug)
        env.reset(seed=0)
        if debug:
            with pytest.raises(ValueError, match="outside"):
                env.step(outside)
        else:
            env.step(outside)


@needs_cuda
def test_actions_of_another_device_are_refused():
    env = DreamVectorEnv(small_world(), ENVS, device="cuda")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="move them with"):
        env.step(torch.zeros(ENVS, dtype=torch.int64))
