"""The contract of a world, for every family: on disk, and in the engine."""

from __future__ import annotations

import pytest
import torch

import dreamgym
from dreamgym.dream.engine import Engine
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.world.world import World
from tests.small_worlds import KINDS, ONE_EACH, TENSORS, random_actions, small_world

ENVS = 32
MODES = ("SameStep", "NextStep", "Disabled")


@pytest.fixture(params=KINDS, ids="-".join)
def world(request) -> World:
    return small_world(*request.param)


def an_engine(world: World, num_envs: int = ENVS, **options) -> Engine:
    return DreamVectorEnv(
        world, num_envs, view="latent", device="cpu", **{**TENSORS, **options}
    ).engine


def rows_equal(one, other, rows) -> bool:
    leaves = [(one.model[key], other.model[key]) for key in one.model]
    leaves += [(one.age, other.age), (one.episode_return, other.episode_return)]
    return all(torch.equal(a[rows], b[rows]) for a, b in leaves)


def test_saved_and_loaded_is_the_same_bit_for_bit(world, tmp_path):
    world.save(tmp_path / "w")
    loaded = dreamgym.load(tmp_path / "w")
    assert loaded.family == world.family
    assert loaded.model.config == world.model.config
    assert loaded.action_space == world.action_space
    assert loaded.observation_space == world.observation_space
    for key, leaf in world.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], leaf), key
    for key, leaf in world.starts.states.items():
        assert torch.equal(loaded.starts.states[key], leaf), key
    actions = random_actions(world.action_space, ENVS)
    _, one = an_engine(world).step(an_engine(world).begin(3)[0], actions)
    _, two = an_engine(loaded).step(an_engine(loaded).begin(3)[0], actions)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ONE_EACH, ids="-".join)
def test_observations_never_share_memory_with_the_dream(kind, mode):
    env = DreamVectorEnv(
        small_world(*kind), ENVS, view="latent", autoreset_mode=mode, output="torch"
    )
    seen, _ = env.reset(seed=0)
    for observation in (seen, env.step(random_actions(env.single_action_space, ENVS))[0]):
        owned = {leaf.untyped_storage().data_ptr() for leaf in env.dreams.tensors().values()}
        assert observation.untyped_storage().data_ptr() not in owned


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "SameStep") for kind in ONE_EACH), (KINDS[0], "NextStep"), (KINDS[0], "Disabled")],
    ids=str,
)
def test_the_whole_engine_step_is_one_graph(kind, mode):
    world = small_world(*kind)
    engine = an_engine(world, autoreset_mode=mode)
    dreams, _ = engine.begin(0)
    actions = random_actions(world.action_space, ENVS)
    torch._dynamo.reset()
    compiled = torch.compile(engine.step, fullgraph=True, backend="aot_eager")
    got, expected = compiled(dreams, actions), engine.step(dreams, actions)
    torch.testing.assert_close(got[0].model, expected[0].model)
    torch.testing.assert_close(tuple(got[1]), tuple(expected[1]))


def test_a_reset_row_is_a_fresh_one_and_stays_so_bit_for_bit(world):
    engine = an_engine(world, max_episode_steps=3)
    dreams, _ = engine.begin(11)
    for step in range(3):
        dreams, outcome = engine.step(dreams, random_actions(world.action_space, ENVS, step))
    rows = outcome.terminated | outcome.truncated
    assert rows.any()
    # The same episodes in an engine that has dreamt nothing before.
    fresh, _ = engine.begin(11)
    fresh = fresh._replace(episode=dreams.episode - 1)
    fresh, _ = engine.restart(fresh, torch.ones(ENVS, dtype=torch.bool))
    assert rows_equal(dreams, fresh, rows)
    for step in range(2):
        actions = random_actions(world.action_space, ENVS, 50 + step)
        dreams, _ = engine.step(dreams, actions)
        fresh, _ = engine.step(fresh, actions)
        rows &= dreams.episode == fresh.episode
        assert rows_equal(dreams, fresh, rows)


@pytest.mark.parametrize("mode", MODES)
def test_truncation_and_termination_are_apart(world, mode):
    if world.family == "known-termination":
        pytest.skip("a known termination has probability one: no threshold prevents it")
    never = an_engine(world, max_episode_steps=4, autoreset_mode=mode, termination=1.0)
    dreams, _ = never.begin(0)
    for step in range(1, 5):
        dreams, outcome = never.step(dreams, random_actions(world.action_space, ENVS, step))
        assert not outcome.terminated.any()
        assert outcome.truncated.all() == (step == 4)
    always = an_engine(world, max_episode_steps=1, autoreset_mode=mode, termination=1e-9)
    _, outcome = always.step(always.begin(0)[0], random_actions(world.action_space, ENVS))
    assert outcome.terminated.all()
    assert not outcome.truncated.any()


def test_a_row_dreams_the_same_however_many_rows_there_are(world):
    many = an_engine(world)
    few = an_engine(world, 4)
    (dreams_many, seen_many), (dreams_few, seen_few) = many.begin(5), few.begin(5)
    torch.testing.assert_close(seen_many[:4], seen_few)
    for step in range(12):
        actions = random_actions(world.action_space, ENVS, step)
        dreams_many, one = many.step(dreams_many, actions)
        dreams_few, two = few.step(dreams_few, actions[:4])
        # Products of other sizes round differently: the values are close, the events equal.
        torch.testing.assert_close(one.observation[:4], two.observation, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.terminated[:4], two.terminated)
