"""A step never syncs with the host and copies nothing from it; shown without a GPU.

Tensors on the meta device have shapes and no data, so that reading a value raises; and every
operation is checked for copies between host and device.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamgym.dream.engine import Engine
from dreamgym.dream.episodes import Episodes
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync, host_sync_allowed
from tests.dream.recorded_graph import NoHostNumbers, refuse
from tests.small_worlds import ONE_EACH, TENSORS, random_actions, small_world

ENVS = 8
META = torch.device("meta")


class NoCopies(TorchDispatchMode):
    """Refuses host syncs, and copies between host and device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(function, args)
        result = function(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        devices = {leaf.device.type for leaf in (*inputs, *outputs)}
        if len(devices) > 1:
            raise RuntimeError(f"{function} is between {sorted(devices)}")
        return result


def engine_on_meta(kind: str, action: str, **options) -> Engine:
    env = DreamVectorEnv(
        small_world(kind, action), ENVS, device="cpu", view="latent", **{**TENSORS, **options}
    )
    episodes: Episodes = env.engine.episodes
    starts = episodes.starts._replace(
        states={key: leaf.to(META) for key, leaf in episodes.starts.states.items()},
        first=episodes.starts.first.to(META),
        size=episodes.starts.size.to(META),
        cumulative=episodes.starts.cumulative.to(META),
    )
    model = copy.deepcopy(env.world.model).to(META)
    # Preparing a fast form reads weights. Fast steps are captured in test_capture.
    model.prepare = lambda *_: model
    return Engine(model, episodes._replace(starts=starts), env.options, ENVS)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_step_has_no_host_sync_and_no_copy(kind, action, mode):
    engine = engine_on_meta(kind, action, autoreset_mode=mode, temperature=[0.5, 1.5])
    dreams, _ = engine.begin(0)
    space = engine.plain.action_space
    actions = random_actions(space, ENVS).to(META)
    actions = actions.float() if actions.is_floating_point() else actions.long()
    with torch.no_grad(), NoCopies(), NoHostNumbers():
        after, outcome = engine.step(dreams, actions)
        engine.restart(after, outcome.terminated)
    assert outcome.reward.device == META
    assert outcome.reward.shape == (ENVS,)


def test_the_checks_raise_on_what_they_forbid():
    with pytest.raises(RuntimeError, match="capturing"), NoCopies():
        bool(torch.ones(2).any())
    with pytest.raises(RuntimeError, match="from the host"), NoHostNumbers():
        torch.tensor([1.0, 2.0], device=META)
    with pytest.raises(RuntimeError, match="between"), NoCopies():
        torch.ones(2).to(META)
    with pytest.raises(RuntimeError, match="capturing"), NoCopies():
        torch.ones(2)[torch.tensor([True, False])]


def test_host_syncs_are_allowed_on_a_cpu_only_and_can_be_forbidden():
    cpu = torch.device("cpu")
    assert host_sync_allowed(cpu)
    assert not host_sync_allowed(META)
    with forbid_host_sync():
        assert not host_sync_allowed(cpu)
    assert host_sync_allowed(cpu)
