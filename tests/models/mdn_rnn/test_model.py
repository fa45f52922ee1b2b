"""The MDN-RNN's loss, its limits, and its fast form."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import MDNRNN, MDNRNNConfig, Segment, filter_states
from dreamgym.models.nn.codecs import KNOWN_CHANGES
from tests.small_worlds import MOMENTS, STATISTICS, small_model


def test_the_loss_on_a_segment_is_that_of_filtering_step_by_step():
    model = small_model("mdn-rnn")
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(4, 7, 4, generator=generator)
    action = torch.randint(0, 3, (4, 6), generator=generator)
    reward, ended = (
        torch.randn(4, 6, generator=generator),
        torch.rand(4, 6, generator=generator) < 0.3,
    )
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3:] = False
    segment = Segment(observation, action, reward, ended, mask)
    _, terms = model.loss(segment, torch.zeros(4, 7, model.noise_dim))
    states = filter_states(model, segment, torch.zeros(4, 7, model.noise_dim))
    z, h = states["z"], states["h"]
    mixture = model._mixture(h[:, 1:], z[:, :-1], model.encode_action(action))
    likelihood = mixture.log_prob((z[:, 1:] - z[:, :-1]) / model.vision.delta_std)
    torch.testing.assert_close(terms["nll"], -likelihood[mask].mean())
    reward_if_not_ended, end_bonus, logit = model._predict_reward_termination(
        h[:, 1:], z[:, :-1], z[:, 1:], model.encode_action(action)
    )
    error = (
        torch.where(ended, reward_if_not_ended + end_bonus, reward_if_not_ended)
        - (reward - model.reward_mean) / model.reward_std
    )
    torch.testing.assert_close(terms["reward"], error[mask].square().mean())
    chance = logit.sigmoid()
    entropy = -torch.where(ended, chance, 1 - chance).log()
    torch.testing.assert_close(terms["termination"], entropy[mask].mean())


def test_a_termination_pays_no_more_and_no_less_than_those_of_the_data():
    """However far the network extrapolates, and nothing else is bounded."""
    model = small_model("mdn-rnn")
    heads = model.heads
    low, high = torch.tensor(-0.25), torch.tensor(0.6)
    bounds = {"terminal_reward_low": low, "terminal_reward_high": high}
    model.set_statistics(STATISTICS._replace(**bounds))
    noise = torch.rand(64, model.noise_dim, generator=torch.Generator().manual_seed(0))

    def rewards(bonus: float, logit: float):
        heads.end_bonus[-1].bias.fill_(bonus)
        heads.termination[-1].bias.fill_(logit)
        fast = model.prepare(64, torch.device("cpu"), torch.float32)
        arguments = model.initial(64), torch.zeros(64, dtype=torch.int64), noise
        plain, fast = (each.step(*arguments)[1].reward for each in (model, fast))
        torch.testing.assert_close(plain, fast)
        return plain

    assert torch.allclose(rewards(1e3, 50.0), high)
    assert torch.allclose(rewards(-1e3, 50.0), low)
    going_on = rewards(1e3, -200.0)
    assert (going_on > high).any()
    torch.testing.assert_close(going_on, rewards(0.0, -200.0))


def step_from_outside(low: float, high: float):
    """Step 64 rows, of which the first 32 are far outside the data.

    Returns the observations after the step, the prediction, and the margins around the ranges.
    """
    model = small_model("mdn-rnn")
    moments = MOMENTS._replace(low=torch.full((4,), low), high=torch.full((4,), high))
    model.set_statistics(STATISTICS._replace(observation={"": moments}))
    state = {key: torch.zeros_like(leaf) for key, leaf in model.initial(64).items()}
    state["z"][:32] = 50.0
    noise = torch.rand(64, model.noise_dim, generator=torch.Generator().manual_seed(0))
    state, prediction = model.step(state, torch.zeros(64, dtype=torch.int64), noise)
    return (
        state["z"] * model.vision.std + model.vision.mean,
        prediction,
        torch.maximum(
            torch.as_tensor(model.config.range_margin * (high - low)),
            KNOWN_CHANGES * moments.delta_std,
        ),
    )


def test_a_dream_that_leaves_the_widened_range_of_the_data_ends_with_the_worst_return():
    seen, prediction, margin = step_from_outside(-1.0, 1.0)
    assert (prediction.termination[:32] == 1).all()
    assert (prediction.reward[:32] == -30.0).all()
    assert (prediction.termination[32:] < 1).all()
    assert (prediction.reward[32:] > -30.0).all()
    assert (seen <= 1.0 + margin + 1e-4).all()


def test_a_prediction_beyond_the_space_is_clamped_and_ends_nothing():
    seen, prediction, _ = step_from_outside(
        -2.5, 2.5
    )  # the widened range is beyond the space's bound of 3
    assert float(seen.max()) == pytest.approx(3.0, abs=1e-4)
    assert (prediction.termination < 1).all()


def test_bytes_and_integers_are_vectors_and_come_back_as_such():
    """FlattenObservation turns a Discrete into a one-hot vector of integers (FrozenLake)."""
    boxes = {
        "ram": gym.spaces.Box(0, 255, (8,), np.uint8),
        "one-hot": gym.spaces.Box(0, 1, (5,), np.int64),
    }
    space = gym.spaces.Dict(boxes)
    model = MDNRNN(space, gym.spaces.Discrete(2), MDNRNNConfig())
    decoded = model.decode({"z": torch.full((3, 13), 0.7), "h": None, "c": None})
    for key, box in boxes.items():
        assert decoded[key].shape == (3, *box.shape)
        assert all(row in box for row in decoded[key].numpy())


def test_an_unsupported_observation_space_or_image_size_is_refused():
    actions = gym.spaces.Discrete(2)
    with pytest.raises(TypeError, match="the part 'task' of the observation is Discrete"):
        MDNRNN(gym.spaces.Dict({"task": gym.spaces.Discrete(3)}), actions, MDNRNNConfig())
    image = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
    with pytest.raises(ValueError, match="work at 80 or 96 pixels"):
        MDNRNN(image, actions, MDNRNNConfig(image_size=84))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": 0},
        {"trunk": -1},
        {"foreground": -1.0},
        {"width": 0.0},
        {"log_sigma_min": 3.0},
        {"range_margin": -0.1},
    ],
)
def test_an_invalid_setting_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MDNRNNConfig(**wrong)


@pytest.mark.parametrize("trunk", [0, 16, 24])
@pytest.mark.parametrize("head", [0, 8])
def test_the_fast_step_is_the_plain_one_for_every_kind_of_head(trunk, head):
    """Linear heads read h, also beside a trunk, which may or may not be as wide as h."""
    torch.manual_seed(0)
    space, config = (
        gym.spaces.Box(-3.0, 3.0, (4,), np.float32),
        MDNRNNConfig(hidden=16, trunk=trunk, head=head),
    )
    model = MDNRNN(space, gym.spaces.Discrete(3), config).eval().requires_grad_(False)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        parameter.normal_()
    state = {key: torch.randn_like(leaf) for key, leaf in model.initial(8).items()}
    action, noise = torch.arange(8) % 3, torch.rand(8, model.noise_dim)
    fast = model.prepare(8, torch.device("cpu"), torch.float32)
    expected = model.step({key: leaf.clone() for key, leaf in state.items()}, action, noise)
    found = fast.step(state, action, noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_number_that_does_not_drift_is_predicted_and_not_its_change():
    """With contact forces, a prediction of the change would have to undo the last value."""
    torch.manual_seed(0)
    model = small_model("mdn-rnn")
    jumps = torch.tensor([1.4, 0.1, 1.4, 0.1], dtype=torch.float64)
    moments = MOMENTS._replace(delta_std=jumps * MOMENTS.std)
    model.set_statistics(STATISTICS._replace(observation={"": moments}))
    state = {key: torch.randn_like(leaf) for key, leaf in model.initial(8).items()}
    action, noise = torch.arange(8) % 3, torch.rand(8, model.noise_dim)
    found = model.prepare(8, torch.device("cpu"), torch.float32).step(dict(state), action, noise)
    expected = model.step(dict(state), action, noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.vision.carried.tolist() == [0.0, 1.0, 0.0, 1.0]


TEMPERATURES = {"one": 1.0, "number": 0.6, "tensor": torch.tensor(0.6), "per row": None}


@pytest.mark.parametrize("mixtures", [1, 5])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rows", [1, 2, 9, 100, 1100])
def test_the_fast_step_is_the_plain_one_in_any_number_of_rows(rows, temperature, mixtures):
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    config = MDNRNNConfig(hidden=16, mixtures=mixtures)
    model = MDNRNN(space, gym.spaces.Discrete(3), config).eval().requires_grad_(False)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        parameter.normal_(0, 0.5)
    state = {key: torch.randn_like(leaf) for key, leaf in model.initial(rows).items()}
    action, noise = torch.arange(rows) % 3, torch.rand(rows, model.noise_dim)
    tau = torch.rand(rows) + 0.5 if temperature == "per row" else TEMPERATURES[temperature]
    fast = model.prepare(rows, torch.device("cpu"), torch.float32)
    before = {key: leaf.clone() for key, leaf in state.items()}
    found, prediction = fast.step(state, action, noise, tau)
    expected, plain_prediction = model.step(before, action, noise, tau)
    for key, leaf in before.items():
        assert torch.equal(state[key], leaf), f"{key} was overwritten"
    # Rounding may change the component of a draw, in one row of hundreds.
    pairs = [
        *((found[key], expected[key]) for key in expected),
        *zip(prediction, plain_prediction, strict=True),
    ]
    near = [
        torch.isclose(one, two, rtol=1e-3, atol=1e-3).reshape(rows, -1).all(1) for one, two in pairs
    ]
    assert torch.stack(near).all(0).float().mean() > 0.99


@pytest.mark.parametrize("rows", [1, 9, 100])
def test_products_in_bfloat16_stay_close_in_any_number_of_rows(rows):
    torch.manual_seed(0)
    space, config = gym.spaces.Box(-3.0, 3.0, (4,), np.float32), MDNRNNConfig(hidden=128)
    model = MDNRNN(space, gym.spaces.Discrete(3), config).eval().requires_grad_(False)
    model.set_statistics(STATISTICS)
    state = {key: torch.rand_like(leaf) for key, leaf in model.initial(rows).items()}
    action, noise = torch.arange(rows) % 3, torch.rand(rows, model.noise_dim)
    fast = model.prepare(rows, torch.device("cpu"), torch.bfloat16)
    found, _ = fast.step(state, action, noise)
    expected, _ = model.step(state, action, noise)
    assert {leaf.dtype for leaf in found.values()} == {torch.float32}
    assert not torch.equal(found["h"], expected["h"]), "products are not in bfloat16"
    torch.testing.assert_close(found["h"], expected["h"], rtol=0.02, atol=0.02)


def test_a_fast_form_is_for_inference_and_leaves_the_plain_model_as_it_was():
    model = small_model("mdn-rnn").requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = model.prepare(4, torch.device("cpu"), torch.float32)
    action, noise = torch.zeros(4, dtype=torch.int64), torch.rand(4, model.noise_dim)
    with torch.no_grad():
        state, _ = fast.step(fast.initial(4), action, noise)
    assert torch.equal(fast.features(state), model.features(state))
    assert torch.equal(fast.decode(state), model.decode(state))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    segment = Segment(*(torch.zeros(0),) * 5)
    with pytest.raises(NotImplementedError, match="fit the MDNRNN"):
        fast.loss(segment, noise)
