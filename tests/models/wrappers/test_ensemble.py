"""An ensemble of any family: a shared history, one batched call, the members' disagreement."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import FitConfig
from dreamgym.models import (
    FAMILIES,
    Decodes,
    Ensemble,
    JEPAConfig,
    MDNRNNConfig,
    ModelSpec,
    Pessimistic,
    PETSConfig,
    RSSMConfig,
    Segment,
    filter_states,
)
from dreamgym.models.wrappers import EnsembleConfig
from tests.small_worlds import (
    ACTION_SPACES,
    MOMENTS,
    SPECIAL,
    built,
    random_actions,
    small_ensemble,
    small_model,
)

ROWS = 32
MEMBERS = sorted({*FAMILIES} - {*SPECIAL})
FEW_LAYERS = {"jepa": JEPAConfig(blocks=1), "rssm": RSSMConfig(layers=1)}
"""Configs with fewer layers than the defaults, which take long to trace."""


def an_ensemble(**settings) -> Ensemble:
    torch.manual_seed(0)
    return small_ensemble("discrete", **settings).eval().requires_grad_(False)


def of_family(family: str, members: int = 2) -> Ensemble:
    torch.manual_seed(0)
    member = ModelSpec(family=family, config=FEW_LAYERS.get(family))
    config = EnsembleConfig(member=member, members=members, elites=members)
    return built(ModelSpec(family="ensemble", config=config), "box").eval().requires_grad_(False)


def a_segment(model, length: int = 2, seed: int = 0) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    actions = random_actions(model.action_space, ROWS * length, seed)
    return Segment(
        observation=torch.randn(ROWS, length + 1, 4, generator=generator),
        action=actions.unflatten(0, (ROWS, length)),
        reward=torch.randn(ROWS, length, generator=generator),
        terminated=torch.rand(ROWS, length, generator=generator) < 0.2,
        mask=torch.ones(ROWS, length, dtype=torch.bool),
    )


def a_start(model, seed: int = 0) -> tuple:
    """Return a filtered state, an action, and noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(ROWS, 4, model.noise_dim, generator=generator)
    states = filter_states(model, a_segment(model), noise[:, :3])
    state = {key: leaf[:, -1] for key, leaf in states.items()}
    return state, random_actions(model.action_space, ROWS, 3), noise[:, 3]


def members_of(model: Ensemble, state: dict) -> list[tuple]:
    own = {key: leaf for key, leaf in state.items() if key != "member"}
    return [
        (member, {key: leaf[:, k] for key, leaf in own.items()})
        for k, member in enumerate(model.members)
    ]


@pytest.mark.parametrize("family", MEMBERS)
def test_an_ensemble_of_one_is_that_one(family):
    model = of_family(family, members=1)
    state, action, noise = a_start(model)
    after, prediction = model.step(state, action, noise, 1.3)
    (alone, own), *_ = members_of(model, state)
    expected, expected_prediction = alone.step(own, action, noise[:, :-1], 1.3)
    for key, leaf in expected.items():
        assert torch.equal(after[key][:, 0], leaf), key
    assert torch.equal(prediction.reward, expected_prediction.reward)
    assert torch.equal(prediction.termination, expected_prediction.termination)
    assert torch.equal(prediction.uncertainty, torch.zeros(ROWS))
    assert torch.equal(model.features(state), alone.features(own))


@pytest.mark.parametrize("family", MEMBERS)
def test_members_of_every_family_are_one_batched_call_that_compiles_to_one_graph(family):
    model = of_family(family)
    state, action, noise = a_start(model)
    prepared = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(prepared.step, fullgraph=True, backend="aot_eager")
    expected, expected_prediction = model.step(state, action, noise)
    for step in (prepared.step, compiled):
        got, prediction = step(state, action, noise)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            tuple(prediction), tuple(expected_prediction), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("family", ["iris", "delta-iris", "genie", "diamond"])
@torch.no_grad()
def test_members_of_image_families_are_one_batched_call(family):
    member = small_model(family)
    config = EnsembleConfig(member=ModelSpec.of(member), members=2, elites=2)
    spec = ModelSpec(family="ensemble", config=config)
    torch.manual_seed(0)
    model = spec.build(member.observation_space, member.action_space).eval().requires_grad_(False)
    prepared = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    shape, action = member.observation_space.shape, torch.zeros(ROWS, dtype=torch.int64)
    seen, noise = torch.randint(0, 256, (ROWS, *shape)).byte(), torch.rand(ROWS, model.noise_dim)
    states = [each.observe(model.initial(ROWS), action, seen, noise) for each in (model, prepared)]
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-4)
    expected, got = (each.step(states[0], action, noise)[1] for each in (model, prepared))
    torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-3, atol=1e-3)


def test_a_step_is_that_of_an_elite_and_the_others_observe_what_it_dreamt():
    model = an_ensemble()
    model.elites.copy_(torch.tensor([2, 0]))
    state, action, noise = a_start(model)
    after, outcome = model.step(state, action, noise)
    steps = [m.step(own, action, noise[:, :-1]) for m, own in members_of(model, state)]
    drawn = torch.tensor([2, 0])[(noise[:, -1] * 2).long()]
    assert set(drawn.tolist()) == {0, 2}
    for row, member in enumerate(drawn.tolist()):
        following, prediction = steps[member]
        assert outcome.reward[row] == prediction.reward[row]
        assert outcome.termination[row] == prediction.termination[row]
        for key, leaf in following.items():
            assert torch.equal(after[key][row, member], leaf[row]), key
    happened = model.decode(after)
    for k, (member, own) in enumerate(members_of(model, state)):
        own_after = {key: leaf[:, k] for key, leaf in after.items()}
        torch.testing.assert_close(member.decode(own_after), happened)
        observed = member.observe(own, action, happened, noise[:, :-1])
        torch.testing.assert_close(own_after, observed)


def test_the_uncertainty_is_the_spread_of_what_the_members_imagine():
    model = an_ensemble()
    state, action, noise = a_start(model)
    _, prediction = model.step(state, action, noise)
    imagined = [m.step(own, action, noise[:, :-1]) for m, own in members_of(model, state)]
    numbers = torch.stack(
        [
            torch.cat([m.decode(after) / MOMENTS.delta_std, one.reward[:, None] / 2.0], -1)
            for (after, one), m in zip(imagined, model.members, strict=True)
        ]
    ).double()
    expected = numbers.var(0, correction=0).mean(-1).sqrt()
    torch.testing.assert_close(prediction.uncertainty.double(), expected, rtol=1e-4, atol=1e-4)
    assert (prediction.uncertainty > 0).all()


def test_members_that_are_equal_do_not_disagree():
    model = an_ensemble()
    for member in list(model.members)[1:]:
        member.load_state_dict(model.members[0].state_dict())
    _, prediction = model.step(*a_start(model))
    assert prediction.uncertainty.max() < 1e-5


def test_with_ts_infinity_a_dream_keeps_the_member_that_its_start_has_drawn():
    model = an_ensemble(propagation="ts-inf")
    state, action, noise = a_start(model)
    after, prediction = model.step(state, action, noise)
    assert torch.equal(after["member"], state["member"])
    other, prediction_other = model.step(
        state, action, torch.cat([noise[:, :-1], 1 - noise[:, -1:]], -1)
    )
    assert torch.equal(prediction.reward, prediction_other.reward)
    assert torch.equal(model.features(after), model.features(other))


def test_in_training_each_member_has_its_own_resample_and_in_evaluation_all_have_all():
    model = an_ensemble()
    segment = a_segment(model)
    noise = torch.rand(ROWS, 3, model.noise_dim, generator=torch.Generator().manual_seed(0))
    alone = [m.eval().loss(segment, noise[..., :-1])[0] for m in model.members]
    total, terms = model.eval().loss(segment, noise)
    torch.testing.assert_close(total, torch.stack(alone).sum())
    for k, loss in enumerate(alone):
        assert torch.equal(terms[f"{k}/loss"], loss)
    resampled, terms = model.train().loss(segment, noise)
    assert not torch.equal(resampled, total)
    assert not any("/" in name for name in terms)


def test_elites_have_the_smallest_held_out_loss_and_members_receive_their_own_terms():
    spec = ModelSpec(family="pets", config=PETSConfig(hidden=8, members=2, elites=1))
    config = EnsembleConfig(member=spec, members=3, elites=2)
    model = built(ModelSpec(family="ensemble", config=config), "discrete").eval()
    _, terms = model.loss(a_segment(model), torch.zeros(ROWS, 3, model.noise_dim))
    held_out = {name: torch.tensor(1.0) for name in terms}
    for k, loss in enumerate((3.0, 1.0, 2.0)):
        held_out[f"{k}/loss"] = torch.tensor(loss)
        held_out[f"{k}/member_1"] = torch.tensor(0.0 if k == 2 else 9.0)
    model.after_evaluation(held_out)
    assert model.elites.tolist() == [1, 2]
    assert [member.elites.tolist() for member in model.members] == [[0], [0], [1]]


def test_invalid_configs_are_refused():
    with pytest.raises(ValueError, match="elites=5 of members=3"):
        EnsembleConfig(members=3)
    with pytest.raises(ValueError, match="did you mean 'ts-inf'"):
        EnsembleConfig(propagation="tsinf")
    with pytest.raises(ValueError, match="unknown family"):
        EnsembleConfig(member=ModelSpec(family="mdn"))


SMALL = {
    "pets": PETSConfig(hidden=16, layers=2, members=3, elites=2),
    "ensemble": EnsembleConfig(
        member=ModelSpec(family="mdn-rnn", config=MDNRNNConfig(hidden=8)), members=3, elites=2
    ),
}


SMALL["ensemble of pets"] = EnsembleConfig(
    member=ModelSpec(family="pets", config=SMALL["pets"]), members=3, elites=2
)


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_one_loop_fits_it_and_chooses_elites(kind, tmp_path):
    data = dreamgym.record("CartPole-v1", steps=600, out=tmp_path / "d.h5", seed=0)
    config = FitConfig(
        updates=12, batch_size=8, segment_length=4, evaluate_every=4, starts=32, model=SMALL[kind]
    )
    world = dreamgym.fit(data, tmp_path / "w", family=kind.split()[0], config=config)
    assert len(set(world.model.elites.tolist())) == 2
    loaded = dreamgym.load(tmp_path / "w")
    assert torch.equal(loaded.model.elites, world.model.elites)
    assert isinstance(loaded.model, Decodes)
    envs = dreamgym.DreamVectorEnv(
        loaded, 8, device="cpu", output="torch", autoreset_mode="SameStep"
    )
    envs.reset(seed=0)
    *_, info = envs.step(torch.zeros(8, dtype=torch.int64))
    assert (info["uncertainty"] > 0).all()


def test_members_need_not_decode_and_take_any_actions():
    config = EnsembleConfig(
        member=ModelSpec(family="jepa", config=JEPAConfig(probe="none")), members=2, elites=2
    )
    spec = ModelSpec(family="ensemble", config=config)
    for action in ACTION_SPACES:
        model = built(spec, action).eval().requires_grad_(False)
        for kind in (model, model.prepare(ROWS, torch.device("cpu"), torch.float32)):
            assert not isinstance(kind, Decodes)
            noise = torch.rand(ROWS, kind.noise_dim)
            actions = random_actions(kind.action_space, ROWS, 0)
            following, prediction = kind.step(kind.initial(ROWS), actions, noise)
            assert prediction.reward.shape == prediction.uncertainty.shape == (ROWS,)
            assert kind.features(following).shape == (ROWS, kind.feature_dim)


def test_keys_of_observations_may_have_dots():
    seen = gym.spaces.Dict({"arm.left": gym.spaces.Box(-1, 1, (2,), np.float32)})
    model = ModelSpec(family="ensemble").build(seen, ACTION_SPACES["box"])
    assert "arm.left" in model.decode(model.initial(3))


def test_ts_infinity_cannot_be_nested():
    inside = ModelSpec(family="pets", config=PETSConfig(propagation="ts-inf"))
    config = EnsembleConfig(member=inside, members=2, elites=2, propagation="ts-inf")
    with pytest.raises(ValueError, match="propagation='ts1'"):
        built(ModelSpec(family="ensemble", config=config), "box")


def test_training_phases_of_members_are_kept_inside_wrappers_and_ensembles():
    images = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    part_by_part = ModelSpec(family="mdn-rnn", config=MDNRNNConfig(vision_updates=7, width=0.1))
    config = EnsembleConfig(member=part_by_part, members=2, elites=2)
    ensemble = ModelSpec(family="ensemble", config=config).build(images, ACTION_SPACES["box"])
    around = Pessimistic(ensemble)
    assert around.phase_starts == (7,)
    around.after_update()
    assert [int(member.updates) for member in ensemble.members] == [1, 1]
    around.before_fit()
    assert [int(member.updates) for member in ensemble.members] == [0, 0]
