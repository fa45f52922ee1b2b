"""The captured step: equal to the eager step, and its outputs belong to the caller.

The same tests run on recorded operations on a CPU, and on CUDA graphs where there is a GPU.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import dreamgym
from dreamgym.dream import capture
from dreamgym.dream.noise import row_keys
from dreamgym.dream.state import Dreams
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync, host_sync_allowed
from dreamgym.models.splitmix import uniforms
from tests.dream.recorded_graph import RecordedGraph
from tests.small_worlds import ONE_EACH, TENSORS, random_actions, small_world

STATISTICS = {**TENSORS, "episode_statistics": True}

ENVS = 64
"""So many that products are computed alike where host syncs are allowed and where they are not."""

CACHED = {
    **dict.fromkeys(("storm", "twister", "dreamer4", "iris", "genie"), 1e-5),
    "delta-iris": 0.05,
}
"""Kinds that keep keys and values where host syncs are allowed, and the largest difference of their
features: other sums in another order. Delta-IRIS also rounds pixels, and embeds them again."""

needs_cuda = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    """A device with graphs: a CPU with recorded operations, or a GPU."""
    if request.param == "cpu":
        monkeypatch.setitem(capture.GRAPHS, "cpu", RecordedGraph)
    return request.param


def make_pair(device: str, kind="mdn-rnn", action="discrete", **options) -> list[DreamVectorEnv]:
    """Return one environment with a captured step, and one with an eager step."""
    world = small_world(kind, action)
    return [
        DreamVectorEnv(world, ENVS, device=device, compile=compile, **{**STATISTICS, **options})
        for compile in ("auto", False)
    ]


def acts(env: DreamVectorEnv, step: int) -> Tensor:
    return random_actions(env.single_action_space, ENVS, seed=step).to(env.device)


def tensors(result) -> list[Tensor]:
    """Return every tensor of a step's result, in a fixed order."""
    *parts, info = result
    infos = [info[key] for key in ("uncertainty", "_episode")] + [*info["episode"].values()]
    final = [info[key] for key in ("final_obs", "_final_obs") if key in info]
    return [*parts, *infos, *final]


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def step_both(pair: list[DreamVectorEnv], steps: range, kind: str = "") -> None:
    for step in steps:
        one, two = (env.step(acts(env, step)) for env in pair)
        if kind in CACHED and pair[0].device.type == "cpu":
            torch.testing.assert_close(tensors(one), tensors(two), rtol=1e-4, atol=CACHED[kind])
        else:
            assert same(one, two), f"step {step} differs"


@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_captured_step_equals_the_eager_step(device, kind, action):
    pair = make_pair(device, kind, action, view="latent")
    for env in pair:
        env.reset(seed=0)
    step_both(pair, range(12), kind)
    assert [env.stepper.execution for env in pair] == ["captured", "eager"]


@pytest.mark.parametrize("kind", ["mdn-rnn", "rssm", "jepa", "pets"])
def test_steps_of_loaded_worlds_are_captured(device, kind, tmp_path):
    # Their start states have leaves sorted by name.
    world = dreamgym.load(small_world(kind).save(tmp_path / "world"))
    envs = [
        DreamVectorEnv(world, ENVS, device=device, compile=c, **STATISTICS) for c in ("auto", False)
    ]
    for env in envs:
        env.reset(seed=0)
    step_both(envs, range(8))
    assert [env.stepper.execution for env in envs] == ["captured", "eager"]


@pytest.mark.parametrize("view", ["observation", "latent"])
@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_autoreset_mode_and_view_is_captured(device, mode, view):
    options = {"autoreset_mode": mode, "view": view, "temperature": [0.5, 1.5]}
    pair = make_pair(device, **options, max_episode_steps=[2, 5])
    for env in pair:
        env.reset(seed=0)
    for step in range(12):
        one, two = (env.step(acts(env, step)) for env in pair)
        assert same(one, two)
        done = one[2] | one[3]
        if mode == "Disabled":
            first, second = (env.reset(options={"reset_mask": done})[0] for env in pair)
            assert torch.equal(first, second)
    assert pair[0].stepper.execution == "captured"


def test_outputs_belong_to_the_caller(device):
    env, other = make_pair(device)
    env.reset(seed=0)
    other.reset(seed=0)
    results, copies = [], []
    for step in range(6):
        # Called as rsl_rl does, and written to as skrl does.
        with torch.inference_mode():
            out = env.step(acts(env, step))
            assert same(out, other.step(acts(other, step)))
        results.append(tensors(out))
        copies.append([tensor.clone() for tensor in results[-1]])
    for before, after in zip(copies, results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for tensor in after:
            assert not tensor.is_inference()
            tensor.fill_(1)
    addresses = [tensor.data_ptr() for out in results for tensor in out]
    assert len(set(addresses)) == len(addresses)
    reward = results[-1][1]
    reward += torch.ones(ENVS, device=device, requires_grad=True)  # such as a bootstrapped value
    assert same(env.step(acts(env, 6)), other.step(acts(other, 6)))


def test_states_can_be_restored_forked_and_reset_between_replays(device):
    pair = make_pair(device)
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
    pair = make_pair(device, action="box", render_mode="rgb_array")
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


def test_a_captured_rollout_equals_the_eager_rollout(device):
    pair = make_pair(device, action="box")
    rollouts = []
    for env in pair:
        weight = torch.full((4, 2), 0.1, device=env.device)
        env.reset(seed=0)
        with torch.no_grad():
            rollouts.append(
                env.rollout(lambda observation, w=weight: torch.sigmoid(observation @ w), 10)
            )
    assert all(torch.equal(a, b) for a, b in zip(*rollouts, strict=True))
    step_both(pair, range(3))


def test_leaves_that_are_swapped_do_not_overwrite_each_other(device):
    env, _ = make_pair(device)
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
    env, _ = make_pair(device, action="box")
    env.reset(seed=0)
    env.step(acts(env, 0))
    wrong = torch.zeros(1, 2, device=env.device)
    with torch.no_grad(), pytest.raises(ValueError, match=r"actions have shape \(1, 2\)"):
        env.stepper.step(env.dreams, wrong)


def test_a_rollout_refuses_what_a_step_refuses(device):
    env, _ = make_pair(device, action="box")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.rollout(lambda observation: torch.zeros(1, 2, device=device), 2)


class BrokenGraph(RecordedGraph):
    """A device whose capture fails after a warm-up."""

    def record(self, work) -> None:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def missing_graph(device: torch.device):
    """A device of a torch that was built without graphs."""
    raise RuntimeError("graphs are not permitted in this build\nand more")


@pytest.mark.parametrize("graph", [BrokenGraph, missing_graph])
def test_a_capture_that_fails_warns_once_and_changes_no_result(graph, monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", graph)
    pair = make_pair("cpu")
    for env in pair:
        env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="cannot be captured here .*not permitted") as caught:
        step_both(pair, range(4))
    assert len(caught) == 1
    assert str(caught[0].message).count("\n") == 0
    assert pair[0].stepper.execution == "eager"
    assert host_sync_allowed(pair[0].device)


def test_a_model_with_a_host_sync_falls_back(device):
    pair = make_pair(device)
    for env in pair:
        model_step = env.engine.model.step

        def syncing(state, action, noise, temperature=1.0, model_step=model_step):
            return model_step(state, action, noise, temperature) if noise.sum() > -1 else None

        env.engine.model.step = syncing
        env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        step_both(pair, range(5))


def test_a_device_without_graphs_steps_eagerly_without_a_warning():
    env = DreamVectorEnv(
        small_world(), ENVS, device="cpu", output="torch", autoreset_mode="SameStep"
    )
    env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(acts(env, 0))
    assert env.stepper.execution == "eager"


@needs_cuda
def test_noise_is_the_same_on_every_device():
    env = torch.arange(1000)
    keys = row_keys(torch.tensor(2**62 + 5), env, env * 3, env * 7)
    on_gpu = row_keys(
        *(tensor.cuda() for tensor in (torch.tensor(2**62 + 5), env, env * 3, env * 7))
    )
    assert torch.equal(on_gpu.cpu(), keys)
    assert torch.equal(uniforms(on_gpu, 33).cpu(), uniforms(keys, 33))


@needs_cuda
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_step_on_cuda_never_syncs(kind, action, mode):
    world = small_world(kind, action)
    env = DreamVectorEnv(
        world, ENVS, device="cuda", view="latent", autoreset_mode=mode, output="torch"
    )
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
                env.rollout(lambda observation: actions[0], 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert env.stepper.execution == "captured"
