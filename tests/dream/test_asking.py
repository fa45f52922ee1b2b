"""A step asks the device nothing and takes nothing from the host: shown without any device.

Tensors on the meta device have shapes and no numbers, so whatever asks for one fails; and every
operation is looked at for copies between host and device.
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
from tests.dream.recorded_graph import NoNumbersOfTheHost, refuse
from tests.small_worlds import ONE_EACH, random_actions, small_world

ENVS = 8
META = torch.device("meta")


class NoCopies(TorchDispatchMode):
    """Refuses what waits, and tensors that come from the host or go there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(function, args)
        given = function(*args, **kwargs)
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        devices = {leaf.device.type for leaf in (*taken, *made)}
        if len(devices) > 1:
            raise RuntimeError(f"{function} is between {sorted(devices)}")
        return given


def engine_on_meta(kind: str, action: str, **options) -> Engine:
    env = DreamVectorEnv(small_world(kind, action), ENVS, device="cpu", view="latent", **options)
    given: Episodes = env.engine.episodes
    sources = given.sources._replace(
        states={key: leaf.to(META) for key, leaf in given.sources.states.items()},
        first=given.sources.first.to(META),
        size=given.sources.size.to(META),
        until=given.sources.until.to(META),
    )
    model = copy.deepcopy(env.world.model).to(META)
    # Arranging looks at the weights' numbers, once. Arranged steps are captured in test_capture.
    model.prepare = lambda *_: model
    return Engine(model, given._replace(sources=sources), env.options, ENVS)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_a_step_asks_nothing_and_copies_nothing(kind, action, mode):
    engine = engine_on_meta(kind, action, autoreset_mode=mode, temperature=[0.5, 1.5])
    dreams, _ = engine.begin(0)
    space = engine.plain.action_space
    taken = random_actions(space, ENVS).to(META)
    taken = taken.float() if taken.is_floating_point() else taken.long()
    with torch.no_grad(), NoCopies(), NoNumbersOfTheHost():
        after, outcome = engine.step(dreams, taken)
        engine.restart(after, outcome.terminated)
    assert outcome.reward.device == META
    assert outcome.reward.shape == (ENVS,)


def test_what_is_forbidden_is_caught():
    with pytest.raises(RuntimeError, match="capturing"), NoCopies():
        bool(torch.ones(2).any())
    with pytest.raises(RuntimeError, match="from the host"), NoNumbersOfTheHost():
        torch.tensor([1.0, 2.0], device=META)
    with pytest.raises(RuntimeError, match="between"), NoCopies():
        torch.ones(2).to(META)
    with pytest.raises(RuntimeError, match="capturing"), NoCopies():
        torch.ones(2)[torch.tensor([True, False])]


def test_only_a_cpu_is_asked_and_not_where_it_is_forbidden():
    cpu = torch.device("cpu")
    assert host_sync_allowed(cpu)
    assert not host_sync_allowed(META)
    with forbid_host_sync():
        assert not host_sync_allowed(cpu)
    assert host_sync_allowed(cpu)
