"""What a CPU's step does otherwise changes nothing: noise drawn ahead, and rows by index."""

from __future__ import annotations

import pytest
import torch

from dreamgym.dream.engine import Engine
from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.prefetch import ENDING
from dreamgym.dream.state import Dreams, writable
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync
from tests.small_worlds import ONE_EACH, random_actions, small_world

ENVS, STEPS = 6, 12


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def an_engine(kind: str = "mdn-rnn", action: str = "discrete", **options) -> Engine:
    options = {"max_episode_steps": [2, 5], "temperature": [0.5, 1.5]} | options
    world = small_world(kind, action)
    return DreamVectorEnv(world, ENVS, view="latent", device="cpu", **options).engine


def leaves(dreams: Dreams, outcome) -> dict[str, torch.Tensor]:
    return {**dreams.tensors(), **outcome._asdict()}


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("kind", ONE_EACH, ids="-".join)
def test_rows_by_index_are_rows_by_mask(kind, mode):
    asking, masked = an_engine(*kind, autoreset_mode=mode), an_engine(*kind, autoreset_mode=mode)
    (one, _), (two, _) = asking.begin(4), masked.begin(4)
    for step in range(STEPS):
        actions = random_actions(asking.plain.action_space, ENVS, step)
        one, given = asking.step(one, actions)
        with forbid_host_sync():
            two, wanted = masked.step(two, actions)
        for key, leaf in leaves(one, given).items():
            # Some families' arranged steps round otherwise where they may not ask.
            torch.testing.assert_close(leaf, leaves(two, wanted)[key], msg=f"{step} {key}")
    assert int(one.episode.min()) > 0


def test_a_step_leaves_the_dreams_that_it_was_given_as_they_were():
    engine = an_engine()
    dreams, _ = engine.begin(0)
    for step in range(STEPS):
        before = dreams.clone()
        after, _ = engine.step(dreams, random_actions(engine.plain.action_space, ENVS, step))
        for key, leaf in dreams.tensors().items():
            assert torch.equal(leaf, before.tensors()[key]), key
        dreams = after


def uniforms_of(engine: Engine, dreams: Dreams) -> torch.Tensor:
    keys = row_keys(dreams.seed, dreams.env, dreams.episode, dreams.age)
    return uniforms(keys, ENDING + engine.model.noise_dim)


def test_noise_drawn_ahead_is_that_of_the_counters_whatever_happens_between():
    engine = an_engine()
    taken = []
    take = engine._ahead.take
    engine._ahead.take = lambda dreams: taken.append((dreams, take(dreams))) or taken[-1][1]
    dreams, _ = engine.begin(0)
    kept = None
    for step in range(3 * STEPS):
        if step == 7:
            kept = dreams
        if step == 15:
            dreams = kept
        if step == 20:
            dreams = dreams._replace(episode=dreams.episode + 3)
        if step == 25:
            dreams.age.add_(1)  # the same tensor, with other numbers in it
        wanted = uniforms_of(engine, dreams)
        before = len(taken)
        dreams, _ = engine.step(dreams, random_actions(engine.plain.action_space, ENVS, step))
        assert len(taken) == before + 1
        noise = taken[-1][1]
        assert torch.equal(noise.ending, wanted[:, 0])
        assert torch.equal(noise.model, wanted[:, ENDING:])


def test_what_may_be_written_into_is_nobody_elses():
    before = {"a": torch.zeros(4, 3), "b": torch.zeros(1, 6)}
    row = torch.ones(3)
    after = {
        "same": before["a"],
        "part": before["b"][:, 2:],
        "spread": row.expand(4, 3),
        "new": torch.ones(4, 3),
    }
    after["twice"] = after["new"]
    given = writable(after, before)
    for leaf in given.values():
        leaf.fill_(7)
    assert not any(leaf.any() for leaf in before.values())
    assert torch.equal(row, torch.ones(3))
    assert given["new"] is after["new"]
    assert given["twice"].data_ptr() != given["new"].data_ptr()
