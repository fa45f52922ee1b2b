"""The CPU's step, with prefetched noise and indexed resets, against the masked step."""

from __future__ import annotations

import pytest
import torch

from dreamgym.dream.engine import Engine
from dreamgym.dream.noise import TERMINATION_LANES, row_keys
from dreamgym.dream.state import Dreams, unshare
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.splitmix import uniforms
from tests.small_worlds import ONE_EACH, TENSORS, random_actions, small_world

ENVS, STEPS = 6, 12


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make_engine(kind: str = "mdn-rnn", action: str = "discrete", **options) -> Engine:
    options = {"max_episode_steps": [2, 5], "temperature": [0.5, 1.5]} | options
    world = small_world(kind, action)
    return DreamVectorEnv(world, ENVS, view="latent", device="cpu", **{**TENSORS, **options}).engine


def leaves(dreams: Dreams, outcome) -> dict[str, torch.Tensor]:
    return {**dreams.tensors(), **outcome._asdict()}


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("kind", ONE_EACH, ids="-".join)
def test_the_indexed_step_equals_the_masked_step(kind, mode):
    indexed, masked = (
        make_engine(*kind, autoreset_mode=mode),
        make_engine(*kind, autoreset_mode=mode),
    )
    (one, _), (two, _) = indexed.begin(4), masked.begin(4)
    for step in range(STEPS):
        actions = random_actions(indexed.plain.action_space, ENVS, step)
        one, outcome = indexed.step(one, actions)
        with forbid_host_sync():
            two, expected = masked.step(two, actions)
        for key, leaf in leaves(one, outcome).items():
            # Fast steps of some families round differently where host syncs are forbidden.
            torch.testing.assert_close(leaf, leaves(two, expected)[key], msg=f"{step} {key}")
    assert int(one.episode.min()) > 0


def test_a_step_does_not_write_into_the_dreams_that_it_takes():
    engine = make_engine()
    dreams, _ = engine.begin(0)
    for step in range(STEPS):
        before = dreams.clone()
        after, _ = engine.step(dreams, random_actions(engine.plain.action_space, ENVS, step))
        for key, leaf in dreams.tensors().items():
            assert torch.equal(leaf, before.tensors()[key]), key
        dreams = after


def expected_noise(engine: Engine, dreams: Dreams) -> torch.Tensor:
    keys = row_keys(dreams.seed, dreams.env, dreams.episode, dreams.age)
    return uniforms(keys, TERMINATION_LANES + engine.model.noise_dim)


def test_prefetched_noise_is_that_of_the_counters_also_after_jumps():
    engine = make_engine()
    taken = []
    take = engine.prefetcher.take
    engine.prefetcher.take = lambda dreams: taken.append((dreams, take(dreams))) or taken[-1][1]
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
            dreams.age.add_(1)  # the same tensor with other contents
        expected = expected_noise(engine, dreams)
        before = len(taken)
        dreams, _ = engine.step(dreams, random_actions(engine.plain.action_space, ENVS, step))
        assert len(taken) == before + 1
        noise = taken[-1][1]
        assert torch.equal(noise.termination, expected[:, 0])
        assert torch.equal(noise.model, expected[:, TERMINATION_LANES:])


def test_unshared_leaves_can_be_written_without_changing_other_tensors():
    before = {"a": torch.zeros(4, 3), "b": torch.zeros(1, 6)}
    row = torch.ones(3)
    after = {
        "same": before["a"],
        "part": before["b"][:, 2:],
        "spread": row.expand(4, 3),
        "new": torch.ones(4, 3),
    }
    after["twice"] = after["new"]
    unshared = unshare(after, before)
    for leaf in unshared.values():
        leaf.fill_(7)
    assert not any(leaf.any() for leaf in before.values())
    assert torch.equal(row, torch.ones(3))
    assert unshared["new"] is after["new"]
    assert unshared["twice"].data_ptr() != unshared["new"].data_ptr()


def test_an_advance_resets_nothing_and_has_the_predicted_probability_of_termination():
    engine = make_engine(termination=0.5)
    dreams, _ = engine.begin(0)
    ended = torch.zeros(ENVS, dtype=torch.bool)
    for step in range(STEPS):
        after = engine.advance(dreams, random_actions(engine.plain.action_space, ENVS, step))
        assert torch.equal(after.terminated, after.termination >= 0.5)
        assert torch.equal(after.dreams.age, dreams.age + 1)
        assert torch.equal(after.dreams.episode, dreams.episode)
        ended |= after.dreams.done
        dreams = after.dreams
    assert ended.all(), "the horizon was passed, and nothing was reset"
