"""The captured step: the same numbers as the step as it is written, and memory of the caller's own.

The same tests run on recorded operations on a CPU, and on CUDA graphs where there is a GPU.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import dreamgym
from dreamgym.dream import capture
from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.state import Dreams
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync, host_sync_allowed
from tests.dream.recorded_graph import RecordedGraph
from tests.small_worlds import ONE_EACH, random_actions, small_world

ENVS = 64
"""As many as are computed alike where a step may ask the device, and where it may not."""

needs_cuda = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    """A device with graphs: a CPU that has been given some, or a GPU."""
    if request.param == "cpu":
        monkeypatch.setitem(capture.GRAPHS, "cpu", RecordedGraph)
    return request.param


def a_pair(device: str, kind="mdn-rnn", action="discrete", **options) -> list[DreamVectorEnv]:
    """One environment whose step is captured, and one whose step is not."""
    world = small_world(kind, action)
    return [
        DreamVectorEnv(world, ENVS, device=device, compile=compile, **options)
        for compile in ("auto", False)
    ]


def acts(env: DreamVectorEnv, step: int) -> Tensor:
    return random_actions(env.single_action_space, ENVS, seed=step).to(env.device)


def tensors(given) -> list[Tensor]:
    """Every tensor of what a step gives, in one order."""
    *parts, info = given
    infos = [info[key] for key in ("uncertainty", "_episode")] + [*info["episode"].values()]
    final = [info[key] for key in ("final_obs", "_final_obs") if key in info]
    return [*parts, *infos, *final]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def step_both(pair: list[DreamVectorEnv], steps: range) -> None:
    for step in steps:
        one, two = (env.step(acts(env, step)) for env in pair)
        assert same(one, two), f"step {step} differs"


@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_captured_step_gives_what_the_step_gives(device, kind, action):
    pair = a_pair(device, kind, action, view="latent")
    for env in pair:
        env.reset(seed=0)
    step_both(pair, range(12))
    assert [env.stepper.way for env in pair] == ["captured", "eager"]


@pytest.mark.parametrize("kind", ["mdn-rnn", "rssm", "jepa", "pets"])
def test_worlds_from_a_folder_are_captured(device, kind, tmp_path):
    # Their starts have the leaves of a state in the order of names.
    world = dreamgym.load(small_world(kind).save(tmp_path / "world"))
    envs = [DreamVectorEnv(world, ENVS, device=device, compile=c) for c in ("auto", False)]
    for env in envs:
        env.reset(seed=0)
    step_both(envs, range(8))
    assert [env.stepper.way for env in envs] == ["captured", "eager"]


@pytest.mark.parametrize("view", ["observation", "latent"])
@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_autoreset_mode_and_view_is_captured(device, mode, view):
    options = {"autoreset_mode": mode, "view": view, "temperature": [0.5, 1.5]}
    pair = a_pair(device, **options, max_episode_steps=[2, 5])
    for env in pair:
        env.reset(seed=0)
    for step in range(12):
        one, two = (env.step(acts(env, step)) for env in pair)
        assert same(one, two)
        done = one[2] | one[3]
        if mode == "Disabled":
            first, second = (env.reset(options={"reset_mask": done})[0] for env in pair)
            assert torch.equal(first, second)
    assert pair[0].stepper.way == "captured"


def test_what_is_handed_out_is_the_callers_own(device):
    env, other = a_pair(device)
    env.reset(seed=0)
    other.reset(seed=0)
    given, seen = [], []
    for step in range(6):
        # As rsl_rl calls, and writes as skrl does.
        with torch.inference_mode():
            out = env.step(acts(env, step))
            assert same(out, other.step(acts(other, step)))
        given.append(tensors(out))
        seen.append([tensor.clone() for tensor in given[-1]])
    for before, after in zip(seen, given, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for tensor in after:
            assert not tensor.is_inference()
            tensor.fill_(1)
    places = [tensor.data_ptr() for out in given for tensor in out]
    assert len(set(places)) == len(places)
    reward = given[-1][1]
    reward += torch.ones(ENVS, device=device, requires_grad=True)  # a bootstrapped value, say
    assert same(env.step(acts(env, 6)), other.step(acts(other, 6)))


def test_dreams_stay_values_between_replays(device):
    pair = a_pair(device)
    kept, fork = [], [3, 3, 0, 1] * (ENVS // 4)
    for env in pair:
        env.reset(seed=0)
    step_both(pair, range(3))
    for env in pair:
        kept.append(env.get_state())
    step_both(pair, range(3, 8))
    for env, state in zip(pair, kept, strict=True):
        env.set_state(state)
    step_both(pair, range(3, 6))
    for env in pair:
        env.branch(fork)
    step_both(pair, range(6, 9))
    for env in pair:
        env.reset(seed=5)
    step_both(pair, range(3))
    for env in pair:
        env.reset()
    step_both(pair, range(3))
    for env, state in zip(pair, kept, strict=True):
        env.set_state(state)
    step_both(pair, range(3, 6))


def test_gradients_and_frames_are_not_overwritten_by_later_steps(device):
    pair = a_pair(device, action="box", render_mode="rgb_array")
    gradients, pictures = [], []
    for env in pair:
        env.reset(seed=0)
        env.step(acts(env, 0))
        frames = env.render()
        actions = acts(env, 1).requires_grad_()
        reward = env.step(actions)[1]
        with torch.no_grad():
            for step in range(2, 5):
                env.step(acts(env, step))
        (gradient,) = torch.autograd.grad(reward.sum(), actions)
        gradients.append(gradient)
        pictures.append(frames[2])
    torch.testing.assert_close(*gradients)
    assert (pictures[0] == pictures[1]).all()
    step_both(pair, range(5, 8))


def test_a_captured_rollout_is_repeated_steps(device):
    pair = a_pair(device, action="box")
    rolled = []
    for env in pair:
        weight = torch.full((4, 2), 0.1, device=env.device)
        env.reset(seed=0)
        with torch.no_grad():
            rolled.append(env.rollout(lambda seen, w=weight: torch.sigmoid(seen @ w), 10))
    assert all(torch.equal(a, b) for a, b in zip(*rolled, strict=True))
    step_both(pair, range(3))


def test_leaves_that_change_places_do_not_overwrite_each_other(device):
    env, _ = a_pair(device)
    env.reset(seed=0)
    start = env.get_state()
    graph = capture.GRAPHS[env.device.type](env.device)

    def swap(dreams: Dreams, action: Tensor):
        model = {**dreams.model, "h": dreams.model["c"], "c": dreams.model["h"]}
        swapped = dreams._replace(model=model, age=dreams.env, env=dreams.env)
        return swapped, env.engine.step(dreams, action)[1]

    with torch.no_grad(), forbid_host_sync():
        stepped = capture.CapturedStep(swap, graph, start, acts(env, 0))
        once, _ = stepped(start, acts(env, 0))
    assert torch.equal(once.model["h"], start.model["c"])
    assert torch.equal(once.model["c"], start.model["h"])
    assert torch.equal(once.age, start.env)


def test_actions_of_another_shape_are_refused_and_not_broadcast(device):
    env, _ = a_pair(device, action="box")
    env.reset(seed=0)
    env.step(acts(env, 0))
    wrong = torch.zeros(1, 2, device=env.device)
    with torch.no_grad(), pytest.raises(ValueError, match=r"actions have shape \(1, 2\)"):
        env.stepper.step(env.dreams, wrong)


def test_a_rollout_refuses_what_a_step_refuses(device):
    env, _ = a_pair(device, action="box")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.rollout(lambda seen: torch.zeros(1, 2, device=device), 2)


class BrokenGraph(RecordedGraph):
    """A device on which the last warm-up fails."""

    def record(self, work) -> None:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_capture_that_fails_is_told_of_once_and_changes_no_number(monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", BrokenGraph)
    pair = a_pair("cpu")
    for env in pair:
        env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="cannot be captured here .*not permitted") as told:
        step_both(pair, range(4))
    assert len(told) == 1
    assert str(told[0].message).count("\n") == 0
    assert pair[0].stepper.way == "eager"
    assert host_sync_allowed(pair[0].device)


def test_a_model_that_asks_the_device_falls_back(device):
    pair = a_pair(device)
    for env in pair:
        whole = env.engine.model.step

        def asking(state, action, noise, temperature=1.0, whole=whole):
            return whole(state, action, noise, temperature) if noise.sum() > -1 else None

        env.engine.model.step = asking
        env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        step_both(pair, range(5))


def test_a_cpu_captures_nothing_by_itself():
    env = DreamVectorEnv(small_world(), ENVS, device="cpu")
    env.reset(seed=0)
    env.step(acts(env, 0))
    assert env.stepper.way == "eager"


@needs_cuda
def test_noise_is_the_same_on_every_device():
    env = torch.arange(1000)
    keys = row_keys(torch.tensor(2**62 + 5), env, env * 3, env * 7)
    there = row_keys(
        *(tensor.cuda() for tensor in (torch.tensor(2**62 + 5), env, env * 3, env * 7))
    )
    assert torch.equal(there.cpu(), keys)
    assert torch.equal(uniforms(there, 33).cpu(), uniforms(keys, 33))


@needs_cuda
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_step_on_cuda_waits_for_nothing(kind, action, mode):
    world = small_world(kind, action)
    env = DreamVectorEnv(world, ENVS, device="cuda", view="latent", autoreset_mode=mode)
    env.reset(seed=0)
    actions = [acts(env, step) for step in range(20)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a capture that fails is a failure here
        env.step(actions[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action_ in actions[1:]:
            env.step(action_)
        if mode == "SameStep":
            with torch.no_grad():
                env.rollout(lambda seen: actions[0], 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert env.stepper.way == "captured"
