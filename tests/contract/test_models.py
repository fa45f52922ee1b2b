"""The contract of `WorldModel`, for every family in the table and every wrapper.

Other modules import these tests and give them other models by a fixture `model` of their own.
"""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import (
    FAMILIES,
    Decodes,
    Segment,
    WorldModel,
    filter_states,
    imagine,
)
from dreamgym.models.observations import map_observation
from dreamgym.models.spec import family_config
from dreamgym.models.wrappers.base import Wrapper
from tests.small_worlds import (
    KINDS,
    MOMENTS,
    ONE_EACH,
    STATISTICS,
    observed_state,
    random_actions,
    random_observations,
    rows,
    small_model,
)

BATCH, LENGTH = 5, 4

BOX = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
BOXES = gym.spaces.Dict({"a": BOX})


@pytest.fixture(params=KINDS, ids="-".join)
def model(request) -> WorldModel:
    return small_model(*request.param)


def test_every_family_is_tested():
    assert {*FAMILIES} <= {kind for kind, _ in KINDS}


def noise_for(model: WorldModel, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, model.noise_dim, generator=torch.Generator().manual_seed(seed))


def a_segment(model: WorldModel, seed: int = 0) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    actions = random_actions(model.action_space, BATCH * LENGTH, seed)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[0, 2:] = False
    return Segment(
        observation=map_observation(
            lambda leaf: leaf.unflatten(0, (BATCH, LENGTH + 1)),
            random_observations(model.observation_space, BATCH * (LENGTH + 1), seed),
        ),
        action=actions.unflatten(0, (BATCH, LENGTH)),
        reward=torch.randn(BATCH, LENGTH, generator=generator),
        terminated=torch.rand(BATCH, LENGTH, generator=generator) < 0.3,
        mask=mask,
    )


def first_observation(model: WorldModel):
    return map_observation(lambda leaf: leaf[:, 0], a_segment(model).observation)


def a_state(model: WorldModel):
    segment = a_segment(model)
    states = filter_states(model, segment, noise_for(model, BATCH, LENGTH + 1))
    return {key: leaf[:, -1].contiguous() for key, leaf in states.items()}


def act(model: WorldModel, seed: int = 5) -> torch.Tensor:
    return random_actions(model.action_space, BATCH, seed)


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_every_leaf_is_batch_first_and_keeps_its_shape(model):
    state = model.initial(BATCH)
    observed = model.observe(state, act(model), first_observation(model), noise_for(model, BATCH))
    stepped, _ = model.step(observed, act(model), noise_for(model, BATCH))
    for other in (observed, stepped):
        assert other.keys() == state.keys()
        for key, leaf in state.items():
            assert leaf.shape[0] == BATCH
            assert other[key].shape == leaf.shape
            assert other[key].dtype == leaf.dtype


def test_predictions_have_one_number_a_row_in_their_ranges(model):
    _, prediction = model.step(a_state(model), act(model), noise_for(model, BATCH))
    for leaf in prediction:
        assert leaf.shape == (BATCH,)
        assert leaf.isfinite().all()
    assert ((prediction.termination >= 0) & (prediction.termination <= 1)).all()
    assert (prediction.uncertainty >= 0).all()


def test_observe_and_step_give_features_of_the_promised_width(model):
    state = a_state(model)
    stepped, _ = model.step(state, act(model), noise_for(model, BATCH))
    assert model.features(state).shape == (BATCH, model.feature_dim)
    assert model.features(stepped).shape == (BATCH, model.feature_dim)


def test_a_step_leaves_its_arguments_as_they_were(model):
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    before = {key: leaf.clone() for key, leaf in state.items()}
    action_before, noise_before = action.clone(), noise.clone()
    model.step(state, action, noise, 0.7)
    model.observe(state, action, first_observation(model), noise)
    assert_equal(state, before)
    assert torch.equal(action, action_before)
    assert torch.equal(noise, noise_before)


def test_same_noise_same_result_and_other_noise_another(model):
    state, action = a_state(model), act(model)
    first, prediction = model.step(state, action, noise_for(model, BATCH))
    second, repeated = model.step(state, action, noise_for(model, BATCH))
    assert_equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(prediction, repeated, strict=True))
    other, _ = model.step(state, action, noise_for(model, BATCH, seed=1))
    if model.noise_dim:
        assert not torch.equal(model.features(first), model.features(other))


def test_a_row_does_not_depend_on_its_neighbours(model):
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    changed = {key: leaf.clone() for key, leaf in state.items()}
    for leaf in changed.values():
        scale = 0.5 if leaf.is_floating_point() else 1
        leaf[1:] = leaf[1:].flip(0) * scale
    noise_changed = noise.clone()
    noise_changed[1:] = 1 - noise_changed[1:]
    first, prediction = model.step(state, action, noise)
    second, other = model.step(changed, action, noise_changed)
    assert torch.equal(model.features(first)[0], model.features(second)[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(prediction, other, strict=True))


def test_a_step_draws_nothing_from_the_global_generator(model):
    before = torch.get_rng_state()
    model.step(a_state(model), act(model), noise_for(model, BATCH))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_temperature_for_each_row_is_that_number_in_its_row(model):
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    temperatures = torch.linspace(0.5, 1.5, BATCH)
    together, _ = model.step(state, action, noise, temperatures)
    for row, temperature in enumerate(temperatures.tolist()):
        alone, _ = model.step(state, action, noise, temperature)
        torch.testing.assert_close(model.features(together)[row], model.features(alone)[row])


def test_imagine_is_repeated_steps(model):
    state = a_state(model)
    actions, noise = a_segment(model).action, noise_for(model, BATCH, LENGTH, seed=3)
    states, predictions = imagine(model, state, actions, noise)
    for t in range(LENGTH):
        state, prediction = model.step(state, actions[:, t], noise[:, t])
        assert_equal({key: leaf[:, t] for key, leaf in states.items()}, state)
        assert torch.equal(predictions.reward[:, t], prediction.reward)


def assert_compiles_to_one_graph(model: WorldModel) -> None:
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    torch._dynamo.reset()
    compiled = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    got, prediction = compiled(state, action, noise)
    expected, expected_prediction = model.step(state, action, noise)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(tuple(prediction), tuple(expected_prediction))


@pytest.mark.parametrize("kind", ONE_EACH, ids="-".join)
def test_the_step_compiles_to_one_graph_and_stays_the_same_function(kind):
    assert_compiles_to_one_graph(small_model(*kind))


def test_prepare_is_the_same_function(model):
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    prepared = model.prepare(BATCH, torch.device("cpu"), torch.float32)
    got, prediction = prepared.step(state, action, noise)
    expected, expected_prediction = model.step(state, action, noise)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(tuple(prediction), tuple(expected_prediction))
    assert list(got) == list(expected) == list(model.initial(BATCH))


def test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding(model):
    model = model.train().requires_grad_(True)
    segment, noise = a_segment(model), noise_for(model, BATCH, LENGTH + 1)
    loss, terms = model.loss(segment, noise)
    loss.backward()
    assert loss.isfinite()
    assert loss.ndim == 0
    assert all(not term.requires_grad and term.ndim == 0 for term in terms.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    padded, _ = model.loss(with_other_padding(segment, a_segment(model, seed=1)), noise)
    assert torch.equal(loss, padded)


def with_other_padding(segment: Segment, other: Segment) -> Segment:
    """Return a segment with the padding of another one, and with absurd rewards and ends there."""
    reward, ended = segment.reward.clone(), segment.terminated.clone()
    reward[~segment.mask], ended[~segment.mask] = 1e6, True
    return mixed(segment, other, segment.mask)._replace(reward=reward, terminated=ended)


def mixed(segment: Segment, other: Segment, keep: torch.Tensor) -> Segment:
    """Return a segment with the observations and actions of another one.

    Args:
        segment: whose rewards, ends and mask are returned.
        other: as long as `segment`.
        keep: (B, L) bool, false for the transitions whose action and next observation are replaced.
    """
    start = torch.ones(BATCH, 1, dtype=torch.bool)

    def choose(kept: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return torch.where(kept.view(*kept.shape, *[1] * (one.ndim - 2)), one, two)

    kept = torch.cat([start, keep], 1)
    one, two = segment.observation, other.observation
    if isinstance(one, dict):
        observation = {key: choose(kept, one[key], two[key]) for key in one}
    else:
        observation = choose(kept, one, two)
    return segment._replace(
        observation=observation, action=choose(keep, segment.action, other.action)
    )


@pytest.mark.parametrize("target", ["reward", "terminated"])
def test_the_loss_of_a_transition_does_not_depend_on_later_ones(model, target):
    """What a first reward or end adds to the loss says what the model predicted for it."""
    segment = a_segment(model)
    keep = torch.tensor([True, False, False, False]).expand(BATCH, -1)
    noise = noise_for(model, BATCH, LENGTH + 1)

    def losses(segment: Segment, value: bool) -> torch.Tensor:
        values = getattr(segment, target).clone()
        values[:, 0] = value
        return model.loss(segment._replace(**{target: values}), noise)[0]

    later = mixed(segment, a_segment(model, seed=1), keep)
    low, high, low_later, high_later = (losses(s, v) for s in (segment, later) for v in (0, 1))
    rounding = 8 * torch.finfo(torch.float32).eps * max(abs(high), abs(high_later))
    assert float(high - low) == pytest.approx(
        float(high_later - low_later), rel=1e-3, abs=max(1e-5, float(rounding))
    )


def test_a_long_episode_is_filtered_to_its_end(model):
    """Also one that is longer than any window: its last observation and action count."""
    noise, state = noise_for(model, BATCH), model.initial(BATCH)
    for seed in range(40):
        before, action = state, act(model, seed)
        observation = random_observations(model.observation_space, BATCH, seed)
        state = model.observe(before, action, observation, noise)
    assert model.features(state).isfinite().all()
    another = random_observations(model.observation_space, BATCH, 40)
    assert differ(state, model.observe(before, action, another, noise)), "last observation ignored"
    has_memory = differ(state, model.observe(model.initial(BATCH), action, observation, noise))
    other = other_action(model, action)
    if has_memory:
        assert differ(state, model.observe(before, other, observation, noise)), "action ignored"
    one, two = (model.step(state, each, noise)[0] for each in (action, other))
    assert differ(one, two), "a dream ignores its actions"


def other_action(model: WorldModel, action: torch.Tensor) -> torch.Tensor:
    """Return actions of which each differs from the given one."""
    space = model.action_space
    if isinstance(space, gym.spaces.Box):
        return act(model, seed=99)
    counts = space.n if isinstance(space, gym.spaces.Discrete) else torch.as_tensor(space.nvec)
    return (action + 1) % counts


def differ(one: dict, other: dict) -> bool:
    """Return whether every row of some leaf differs between two states."""
    return any(
        (one[key] != other[key]).reshape(BATCH, -1).any(1).all() for key in one if one[key].numel()
    )


def test_it_fits_with_products_in_bfloat16(model):
    """The losses are those of float32 up to rounding; weights and losses stay float32."""
    model, other = (copy.deepcopy(model).train().requires_grad_(True) for _ in range(2))
    curves = []
    for fitted, lower in ((model, False), (other, True)):
        optimizer = torch.optim.AdamW(fitted.parameters(), lr=1e-4)
        curves.append([])
        for k in range(3):
            segment, noise = a_segment(model, k), noise_for(model, BATCH, LENGTH + 1, seed=k)
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                loss, terms = fitted.loss(segment, noise)
            assert all(term.dtype == torch.float32 for term in (loss, *terms.values()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fitted.after_update()
            curves[-1].append(float(loss.detach()))
    assert all(p.dtype == torch.float32 for p in other.parameters())
    assert all(b.dtype != torch.bfloat16 for b in other.buffers())
    assert curves[1] == pytest.approx(curves[0], rel=0.03, abs=0.03)


def test_a_dream_that_leaves_the_data_ends(model):
    """Data so narrow that no dream stays within it; 1e6 is a reward that no model predicts."""
    if isinstance(model, Wrapper):
        pytest.skip("a wrapper: it may replace what the model inside predicts")
    narrow = MOMENTS._replace(
        low=MOMENTS.mean - 1e-5, high=MOMENTS.mean + 1e-5, delta_std=torch.full((4,), 1e-6)
    )
    model.set_statistics(
        STATISTICS._replace(observation={"": narrow}, worst_return=torch.tensor(1e6))
    )
    _, prediction = model.step(a_state(model), act(model), noise_for(model, BATCH))
    assert (prediction.termination == 1).all()
    assert (prediction.reward == 1e6).all()


def test_decoded_observations_are_in_the_space(model):
    """Even of states that lie far outside of what the model has ever seen."""
    if isinstance(model, Decodes):
        state = a_state(model)
        far = {key: 1e3 * v if v.is_floating_point() else v for key, v in state.items()}
        for decoded in (rows(model.decode(state)), rows(model.decode(far))):
            assert len(decoded) == BATCH
            assert all(model.observation_space.contains(row) for row in decoded)


NOT_MODELLED = [gym.spaces.Discrete(5), gym.spaces.Text(3), gym.spaces.Tuple((BOX, BOX))]
"""Spaces that no world model takes."""


@pytest.mark.parametrize("space", NOT_MODELLED, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_constructor_refuses_spaces_that_it_cannot_model_with_a_type_error(family, space):
    try:
        config = family_config(family)
    except ValueError:
        pytest.skip("a wrapper: the model inside decides")
    with pytest.raises(TypeError):
        FAMILIES[family](space, gym.spaces.Discrete(2), config)
    with pytest.raises(TypeError):
        FAMILIES[family](BOX, space if isinstance(space, gym.spaces.Text) else BOXES, config)


def test_unrolling_the_prepared_form_is_a_loop_over_steps(model):
    prepared = model.prepare(BATCH, torch.device("cpu"), torch.float32)
    actions = random_actions(model.action_space, BATCH * 6).unflatten(0, (BATCH, 6))
    noise = noise_for(model, BATCH, 6)
    for start in (model.initial(BATCH), observed_state(model, BATCH)):
        state = start
        with torch.no_grad():
            unrolled = list(prepared.unroll(start, actions, noise))
        assert len(unrolled) == 6
        for t, (following, prediction) in enumerate(unrolled):
            state, expected = model.step(state, actions[:, t], noise[:, t])
            torch.testing.assert_close(following, state, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(prediction, expected, atol=1e-3, rtol=1e-3)
            state = following
