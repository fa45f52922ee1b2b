"""The contract of `WorldModel`, for every family in the table and every wrapper.

Other modules import these tests and give them other models by a fixture `model` of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import (
    FAMILIES,
    Decodes,
    GoalReward,
    KnownTermination,
    Segment,
    WorldModel,
    filter_states,
    imagine,
)
from dreamgym.models.base import select, zero_action
from dreamgym.models.observations import is_image, map_observation
from dreamgym.models.spec import family_config
from dreamgym.models.statistics import Moments
from dreamgym.models.wrappers.base import Wrapper
from tests.small_worlds import (
    ELSEWHERE,
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
    assert {*FAMILIES} - {*ELSEWHERE} <= {kind for kind, _ in KINDS}


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
    weights = {key: leaf.clone() for key, leaf in model.state_dict().items()}
    model.step(state, action, noise, 0.7)
    model.observe(state, action, first_observation(model), noise)
    assert_equal(model.state_dict(), weights)
    assert_equal(state, before)
    assert torch.equal(action, action_before)
    assert torch.equal(noise, noise_before)


def test_same_noise_same_result_and_other_noise_another(model):
    state, action = a_state(model), act(model)
    first, prediction = model.step(state, action, noise_for(model, BATCH))
    # What the model does in between is kept nowhere.
    elsewhere = model.observe(
        model.initial(2),
        action[:2],
        *(random_observations(model.observation_space, 2, 7), noise_for(model, 2, seed=7)),
    )
    model.step(elsewhere, action[:2], noise_for(model, 2, seed=8))
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
    cold, hot = (model.features(model.step(state, action, noise, t)[0]) for t in (0.01, 2.0))
    assert model.noise_dim == 0 or not torch.equal(cold, hot), "the temperature is ignored"


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
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a layer that starts at zero passes no gradient on
                parameter.normal_(0, 0.1)
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


LONG = 40
"""More steps than any window of a small model holds."""

STRONG = 1e-3
"""A change of a state's leaf that is more than an echo which a recurrent model has not yet lost."""


def long_episode(model: WorldModel) -> tuple[list, torch.Tensor, list, torch.Tensor]:
    """Return LONG observations and actions, and others that differ in every one of them."""
    observations, others = (
        [random_observations(model.observation_space, 1, seed + t) for t in range(LONG)]
        for seed in (0, 1000)
    )
    actions = random_actions(model.action_space, LONG)
    return observations, actions, others, other_actions(model.action_space, actions)


def other_actions(space: gym.Space, actions: torch.Tensor) -> torch.Tensor:
    """Return actions (N, ...) of which each differs from the given one."""
    if isinstance(space, gym.spaces.Box):
        return random_actions(space, len(actions), seed=99)
    counts = space.n if isinstance(space, gym.spaces.Discrete) else torch.as_tensor(space.nvec)
    return (actions + 1) % counts


def in_each_row(value: torch.Tensor, rows: int, row: int, other: torch.Tensor) -> torch.Tensor:
    """Repeat a value (1, ...) in all rows but one, which has another value."""
    changed = repeated(rows)(value)
    changed[row] = other[0]
    return changed


def repeated(rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that repeats a value (1, ...) in all rows."""
    return lambda value: value.repeat(rows, *[1] * (value.ndim - 1))


def effects(state: dict) -> torch.Tensor:
    """Return (B - 1,) how far each row of a state is from the last one."""
    changes = [
        (leaf.double() - leaf[-1:]).abs().reshape(len(leaf), -1).amax(1)
        for leaf in state.values()
        if leaf[0].numel()
    ]
    return torch.stack(changes).amax(0)[:-1]


def remembered(model: WorldModel) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Filter a long episode that has another observation or another action in each row.

    Returns:
        The states, of which the last row is that of the unchanged episode; the effect (LONG,) of
        each observation on them, the newest first; and that of the action after each observation
        but the newest, (LONG - 1,).
    """
    observations, actions, others, other = long_episode(model)
    rows = 2 * LONG
    noise = noise_for(model, 1).expand(rows, -1)
    state, action = model.initial(rows), zero_action(model.action_space, rows, "cpu")
    for t in range(LONG):
        observation = map_observation(repeated(rows), observations[t])
        observation[t] = others[t][0]
        state = model.observe(state, action, observation, noise)
        if t < LONG - 1:
            each, changed = actions[t : t + 1], other[t : t + 1]
            action = in_each_row(each, rows, LONG + t, changed)
    effect = effects(state)
    return state, effect[:LONG].flip(0), effect[LONG:].flip(0)


def test_what_is_older_is_forgotten_first_in_an_episode_longer_than_any_window(model):
    state, of_observations, of_actions = remembered(model)
    assert all(state[key].shape[1:] == leaf.shape[1:] for key, leaf in model.initial(1).items())
    assert model.features(state).isfinite().all()
    assert of_observations[0] > 0, "the newest observation has no influence"
    for effect in (of_observations, of_actions):
        for k in range(len(effect) - 1):
            forgotten = effect[k] == 0 and (effect[k + 1 :] > STRONG).any()
            assert not forgotten, f"{k} steps ago is forgotten, and what is older is not"
    ignored = (of_observations[1:] > STRONG) & (of_actions == 0)
    assert not ignored.any(), "an observation has influence, and the action after it has none"


def test_a_long_dream_depends_on_its_actions(model):
    """On the last one, and on those after an observation that the model would remember."""
    state, of_observations, _ = remembered(model)
    memory = max(1, int((of_observations[1:4] > STRONG).long().cumprod(0).sum()))
    _, actions, _, other = long_episode(model)
    state = {key: leaf[-1:].repeat(LONG + 1, *[1] * (leaf.ndim - 1)) for key, leaf in state.items()}
    noise = noise_for(model, 1, LONG).expand(LONG + 1, -1, -1)
    shapes = {key: leaf.shape for key, leaf in state.items()}
    for t in range(LONG):
        action = in_each_row(actions[t : t + 1], LONG + 1, t, other[t : t + 1])
        state, _ = model.step(state, action, noise[:, t])
    assert {key: leaf.shape for key, leaf in state.items()} == shapes
    assert model.features(state).isfinite().all()
    assert (effects(state).flip(0)[:memory] > 0).all(), "a dream ignores its actions"


def test_rows_that_begin_at_different_times_do_not_mix(model):
    """A row that is reset in the middle of the others' episodes is a fresh one."""
    observations, actions, _, _ = long_episode(model)
    noise = noise_for(model, BATCH)
    begins = torch.tensor([0, 3, 20, 34, 36])

    def unroll(first: int, reset_at: torch.Tensor) -> dict:
        """Filter from a step on, with resets; the last two steps are dreamt."""
        state = model.initial(BATCH)
        action = zero_action(model.action_space, BATCH, "cpu")
        for t in range(first, LONG - 2):
            reset = reset_at == t
            state = select(reset, model.initial(BATCH), state)
            at_reset = reset.view(-1, *[1] * (action.ndim - 1))
            action = torch.where(at_reset, torch.zeros_like(action), action)
            observation = map_observation(repeated(BATCH), observations[t])
            state = model.observe(state, action, observation, noise)
            action = actions[t : t + 1].repeat(BATCH, *[1] * (action.ndim - 1))
        for t in (LONG - 2, LONG - 1):
            action = actions[t - 1 : t].repeat(BATCH, *[1] * (action.ndim - 1))
            state, _ = model.step(state, action, noise)
        return state

    together = unroll(0, begins)
    for row, begin in enumerate(begins.tolist()):
        alone = unroll(begin, torch.full((BATCH,), -1))
        assert_equal(
            {key: leaf[row] for key, leaf in together.items()},
            {key: leaf[row] for key, leaf in alone.items()},
        )


def a_lesson(seed: int, space: gym.Space = BOX) -> Segment:
    """Return episodes in which the action alone decides what follows."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.randint(0, 3, (16, LENGTH), generator=generator)
    if is_image(space):
        observation = torch.zeros(16, LENGTH + 1, *space.shape, dtype=torch.uint8)
        observation[:, 1:] = 100 * action[..., None, None, None]
    else:
        observation = torch.randn(16, 1, 4, generator=generator).repeat(1, LENGTH + 1, 1)
        observation[:, 1:, 0] = action - 1.0
    return Segment(
        observation=observation,
        action=action,
        reward=5 + 2.5 * (action - 1),
        terminated=action == 2,
        mask=torch.ones(16, LENGTH, dtype=torch.bool),
    )


LESSON = STATISTICS._replace(
    observation={
        "": Moments(
            mean=torch.zeros(4),
            std=torch.tensor([0.82, 1.0, 1.0, 1.0]),
            low=torch.full((4,), -9.0),
            high=torch.full((4,), 9.0),
            delta_std=torch.tensor([1.15, 0.01, 0.01, 0.01]),
        )
    },
    reward_mean=torch.tensor(5.0),
    reward_std=torch.tensor(2.04),
)


def assert_a_step_predicts_what_the_loss_teaches(model: WorldModel, updates: int = 200) -> None:
    """Fit a model under Discrete(3) to `a_lesson`, until `step` shows it."""
    model.set_statistics(LESSON)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for k in range(updates):
        noise = noise_for(model, 16, LENGTH + 1, seed=k)
        loss, _ = model.loss(a_lesson(k, model.observation_space), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        model.after_update()
        if k % 20 == 19:
            errors = lesson_errors(model.eval())
            if max(errors.values()) < 0.5:
                return
            model.train()
    raise AssertionError(f"relative squared errors of a step after {updates} updates: {errors}")


@torch.no_grad()
def lesson_errors(model: WorldModel) -> dict[str, float]:
    """Return squared errors of dreamt steps, relative to those of the mean as prediction.

    Of what every model predicts: an embedding may leave out parts of an observation.
    """
    lesson = a_lesson(10_000, model.observation_space)
    states = filter_states(model, lesson, noise_for(model, 16, LENGTH + 1))
    noise = noise_for(model, 16, seed=1)
    errors: dict[str, list] = {"reward": [], "termination": []}
    for t in range(LENGTH):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        _, prediction = model.step(state, lesson.action[:, t], noise, 0.01)
        errors["reward"].append((prediction.reward - lesson.reward[:, t]) / 2.04)
        ended = lesson.terminated[:, t].float()
        errors["termination"].append((prediction.termination - ended) / 0.471)
    return {name: float(torch.stack(each).square().mean()) for name, each in errors.items()}


@pytest.mark.parametrize(
    "family",
    sorted(
        name
        for name, each in FAMILIES.items()
        if not issubclass(each, Wrapper) and name not in ELSEWHERE
    ),
)
def test_a_step_predicts_what_the_loss_teaches(family):
    """A wrapper changes predictions, and has the loss of the model inside."""
    assert_a_step_predicts_what_the_loss_teaches(small_model(family))


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


def test_a_step_with_products_in_bfloat16_keeps_states_and_predictions_in_float32(model):
    try:
        prepared = model.prepare(BATCH, torch.device("cpu"), torch.bfloat16)
    except ValueError as error:
        assert "no fast form" in str(error)  # noqa: PT017 - float32 is all that it has
        return
    state, action, noise = a_state(model), act(model), noise_for(model, BATCH)
    expected, expected_prediction = model.step(state, action, noise)
    got, prediction = prepared.step(state, action, noise)
    assert [*got] == [*expected]
    for name, leaf in got.items():
        assert (leaf.dtype, leaf.shape) == (expected[name].dtype, expected[name].shape), name
        assert leaf.isfinite().all()
    for one, other in zip(prediction, expected_prediction, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.isfinite().all()


def test_a_dream_that_leaves_the_data_ends(model):
    """With narrow data, and 1e6 as the reward outside, which no model predicts."""
    if isinstance(model, GoalReward):
        pytest.skip("its goal is encoded with the statistics of the model inside")
    if is_image(model.observation_space):
        pytest.skip("pixels have no range that a dream can leave")
    narrow = MOMENTS._replace(
        low=MOMENTS.mean - 1e-5, high=MOMENTS.mean + 1e-5, delta_std=torch.full((4,), 1e-6)
    )
    model.set_statistics(
        STATISTICS._replace(observation={"": narrow}, worst_return=torch.tensor(1e6))
    )
    state = {key: leaf.repeat(20, *[1] * (leaf.ndim - 1)) for key, leaf in a_state(model).items()}
    actions = random_actions(model.action_space, 20 * BATCH)
    following, prediction = model.step(state, actions, noise_for(model, 20 * BATCH))
    # A model of discrete values leaves the data in some rows, others do in all of them.
    outside = torch.zeros(20 * BATCH, dtype=torch.bool)
    if isinstance(model, Decodes):
        outside = ((model.decode(following) - narrow.mean).abs() > 1e-2).any(-1)
    # A wrapper replaces or changes one of the two.
    if not isinstance(model, KnownTermination):
        ended = prediction.termination == 1
        assert ended.any()
        assert ended[outside].all()
    if isinstance(model, KnownTermination) or not isinstance(model, Wrapper):
        worst = prediction.reward == 1e6
        assert worst.any()
        assert worst[outside].all()


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
