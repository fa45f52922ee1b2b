"""Devices that are missing or cannot draw the noise, and checks that are host syncs."""

from __future__ import annotations

import pytest
import torch

from dreamgym._device import resolve_device
from dreamgym.dream import validation
from dreamgym.dream.validation import ActionValidator
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.splitmix import uniforms
from tests.small_worlds import KINDS, random_actions, small_world

ENVS = 4


@pytest.mark.parametrize("name", ["cuda:99", "mps:7", "xpu", "gpu", "cpu:zero", "cuda:-1", None])
def test_a_missing_device_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"device='{name}' cannot be used here"):
        DreamVectorEnv(small_world(), ENVS, device=name, output="torch", autoreset_mode="SameStep")


def test_auto_is_an_available_device():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_a_device_that_draws_other_noise_is_refused(monkeypatch):
    validation.check_noise.cache_clear()
    wrong = torch.device("meta")  # as a stand-in: its tensors have no data
    with pytest.raises(ValueError, match="cannot draw this dream's random numbers"):
        validation.check_noise(wrong)

    calls = []

    def rounded(keys, lanes):  # as on a device that computes int64 in floating point
        calls.append(keys)
        return uniforms(keys if len(calls) % 2 else (keys.double() / 8).long() * 8, lanes)

    monkeypatch.setattr(validation, "uniforms", rounded)
    with pytest.raises(ValueError, match="other 64-bit integers than a CPU"):
        validation.check_noise(torch.device("cpu"))
    validation.check_noise.cache_clear()


@pytest.mark.parametrize(
    ("action", "outside", "clipped"),
    [
        ("discrete", torch.tensor([9, -1]), [2, 0]),
        (
            "box",
            torch.tensor([[9.0, -9.0], [float("nan"), 0.5]]),
            [[2.0, 0.0], [float("nan"), 0.5]],
        ),
        ("multi-discrete", torch.tensor([[5, -5], [1, 1]]), [[1, 0], [1, 1]]),
    ],
)
def test_actions_outside_the_space_are_refused_or_clipped(action, outside, clipped):
    space = small_world(action=action).action_space
    with pytest.raises(ValueError, match="outside"):
        ActionValidator(space, 2, torch.device("cpu"), check_bounds=True)(outside)
    taken = ActionValidator(space, 2, torch.device("cpu"), check_bounds=False)(outside)
    torch.testing.assert_close(
        taken, torch.tensor(clipped, dtype=taken.dtype), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", sorted({kind for kind, action in KINDS if action == "box"}))
def test_an_action_that_is_not_a_number_shows_in_its_row_alone_and_until_the_next_episode(kind):
    """Where bounds are not checked, as on CUDA; on a CPU it is refused."""
    rows = []
    for wrong in (False, True):
        env = DreamVectorEnv(
            small_world(kind, "box", horizon=3),
            ENVS,
            device="cpu",
            compile=False,
            view="latent",
            output="torch",
            autoreset_mode="SameStep",
        )
        space, device = env.single_action_space, torch.device("cpu")
        env.validate_actions = ActionValidator(space, ENVS, device, check_bounds=False)
        env.reset(seed=0)
        steps = []
        with forbid_host_sync():
            for step in range(8):
                action = random_actions(space, ENVS, seed=step)
                if wrong and step == 0:
                    action[1] = torch.nan
                observation, reward, terminated, truncated, info = env.step(action)
                final = info["final_obs"]
                steps.append((observation, reward, terminated | truncated, final))
        rows.append(steps)
    others = [0, 2, 3]
    for plain, changed in zip(*rows, strict=True):
        assert all(torch.equal(a[others], b[others]) for a, b in zip(plain, changed, strict=True))
    observation, reward, _, final = rows[1][0]
    assert (reward[1].isnan() | final[1].isnan().any()) or reward[1] < rows[0][0][1][1]
    first = next(step for step, each in enumerate(rows[1]) if each[2][1])
    assert first <= 2
    for observation, reward, _, final in rows[1][first + 1 :]:
        assert torch.stack([each[1].isfinite().all() for each in (observation, final)]).all()
        assert reward[1].isfinite()


def test_debug_must_be_a_bool():
    for wrong in ("yes", 1, None):
        with pytest.raises(ValueError, match="debug="):
            DreamVectorEnv(
                small_world(), ENVS, debug=wrong, output="torch", autoreset_mode="SameStep"
            )


@pytest.mark.gpu
def test_on_cuda_bounds_of_actions_are_checked_only_with_debug():
    outside = torch.full((ENVS,), 9, device="cuda")
    for debug in (False, True):
        env = DreamVectorEnv(
            small_world(),
            ENVS,
            device="cuda",
            debug=debug,
            output="torch",
            autoreset_mode="SameStep",
        )
        env.reset(seed=0)
        if debug:
            with pytest.raises(ValueError, match="outside"):
                env.step(outside)
        else:
            env.step(outside)


@pytest.mark.gpu
def test_actions_on_another_device_are_refused():
    env = DreamVectorEnv(
        small_world(), ENVS, device="cuda", output="torch", autoreset_mode="SameStep"
    )
    env.reset(seed=0)
    with pytest.raises(ValueError, match="move them with"):
        env.step(torch.zeros(ENVS, dtype=torch.int64))
