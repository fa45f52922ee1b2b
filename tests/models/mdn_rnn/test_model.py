"""The MDN-RNN against its equations, written out in float64."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from dreamgym.models import MDNRNN, MDNRNNConfig, Segment, filter_states
from dreamgym.models.nn.distributions import Mixture, categorical, normal
from dreamgym.models.nn.layers import LSTM
from tests.small_worlds import MOMENTS, STATISTICS, small_model


def a_mixture(rows: int = 6, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 3, 5)
    return Mixture(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    )


def test_log_prob_is_the_density_of_a_mixture_for_each_dimension():
    mixture, value = a_mixture(), torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
    weights = mixture.logits.exp() / mixture.logits.exp().sum(-1, keepdim=True)
    sigma = mixture.log_sigma.exp()
    bell = (-((value[..., None] - mixture.mean) ** 2) / (2 * sigma**2)).exp()
    density = (weights * bell / (sigma * math.sqrt(2 * math.pi))).sum(-1)
    torch.testing.assert_close(mixture.log_prob(value), density.log().sum(-1))


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.5])
def test_samples_follow_the_tempered_mixture(tau):
    """arXiv 1803.10122, section 3.2: logits over tau, and sigma times the square root of tau."""
    draws = 20_000
    mixture = Mixture(*(leaf[:1, :1].expand(draws, 1, 5) for leaf in a_mixture(seed=1)))
    generator = torch.Generator().manual_seed(0)
    choose, spread = torch.rand(2, draws, 1, generator=generator, dtype=torch.float64)
    sample = mixture.sample(choose, spread, tau)[:, 0].numpy()
    weights = (mixture.logits[0, 0] / tau).softmax(-1).numpy()
    mean, sigma = mixture.mean[0, 0].numpy(), mixture.log_sigma[0, 0].exp().numpy() * tau**0.5
    cdf = lambda x: (weights * stats.norm.cdf(x[:, None], mean, sigma)).sum(-1)  # noqa: E731
    assert stats.kstest(sample, cdf).pvalue > 1e-4


def test_categorical_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    given = categorical(
        logits.expand(6, 3), torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    )
    assert given.tolist() == [0, 0, 1, 1, 2, 2]


def test_normal_is_finite_at_both_ends():
    ends = normal(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert ends.isfinite().all()
    assert ends[1] == 0
    assert ends[0] < -5
    assert ends[2] > 5


def test_the_fused_loss_is_the_one_of_filtering_step_by_step():
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
    said, at_end, logit = model._predict_reward_termination(
        h[:, 1:], z[:, :-1], z[:, 1:], model.encode_action(action)
    )
    error = (
        torch.where(ended, said + at_end, said) - (reward - model.reward_mean) / model.reward_std
    )
    torch.testing.assert_close(terms["reward"], error[mask].square().mean())
    chance = logit.sigmoid()
    entropy = -torch.where(ended, chance, 1 - chance).log()
    torch.testing.assert_close(terms["termination"], entropy[mask].mean())


def test_the_lstm_is_torchs_lstm_stepped_and_unrolled():
    torch.manual_seed(0)
    ours, torchs = LSTM(7, 16), torch.nn.LSTM(7, 16, batch_first=True)
    with torch.no_grad():
        torchs.weight_ih_l0.copy_(ours.weight_ih)
        torchs.weight_hh_l0.copy_(ours.weight_hh)
        torchs.bias_ih_l0.copy_(ours.bias)
        torchs.bias_hh_l0.zero_()
    x = torch.randn(3, 5, 7)
    wanted, (last_h, last_c) = torchs(x)
    torch.testing.assert_close(ours.unroll(x), wanted)
    h = c = torch.zeros(3, 16)
    for t in range(5):
        h, c = ours.step(x[:, t], h, c)
        torch.testing.assert_close(h, wanted[:, t])
    torch.testing.assert_close(c, last_c[0])
    torch.testing.assert_close(h, last_h[0])


def step_from_afar(low: float, high: float):
    """A step of 64 rows, of which the first 32 stand far outside; and the widened range."""
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
        model.config.range_margin * (high - low),
    )


def test_a_dream_that_leaves_the_widened_range_of_the_data_ends_at_its_edge_with_the_worst():
    seen, prediction, margin = step_from_afar(-1.0, 1.0)
    assert (prediction.termination[:32] == 1).all()
    assert (prediction.reward[:32] == -30.0).all()
    assert (prediction.termination[32:] < 1).all()
    assert (prediction.reward[32:] > -30.0).all()
    assert float(seen.max()) <= 1.0 + margin + 1e-4


def test_what_the_space_forbids_is_cut_off_and_ends_nothing():
    seen, prediction, _ = step_from_afar(-2.5, 2.5)  # widened, it is beyond the space's 3
    assert float(seen.max()) == pytest.approx(3.0, abs=1e-4)
    assert (prediction.termination < 1).all()


def test_an_observation_or_a_size_that_it_cannot_take_is_refused():
    actions = gym.spaces.Discrete(2)
    bytes_in_a_row = gym.spaces.Box(0, 255, (8,), np.uint8)
    with pytest.raises(TypeError, match="Boxes of floats, and images"):
        MDNRNN(bytes_in_a_row, actions, MDNRNNConfig())
    with pytest.raises(TypeError, match="the part 'ram' of the observation"):
        MDNRNN(gym.spaces.Dict({"ram": bytes_in_a_row}), actions, MDNRNNConfig())
    image = gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
    with pytest.raises(ValueError, match="work at 80 or 96 pixels"):
        MDNRNN(image, actions, MDNRNNConfig(image_size=84))


@pytest.mark.parametrize(
    "wrong",
    [{"hidden": 0}, {"trunk": -1}, {"foreground": -1.0}, {"width": 0.0}, {"log_sigma_min": 3.0}],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MDNRNNConfig(**wrong)


@pytest.mark.parametrize("trunk", [0, 16, 24])
@pytest.mark.parametrize("head", [0, 8])
def test_the_arranged_step_is_the_plain_one_whatever_the_heads_read(trunk, head):
    """Linear heads read h, with a trunk too, which is as wide as h or not."""
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
    arranged = model.prepare(8, torch.device("cpu"), torch.float32)
    wanted = model.step({key: leaf.clone() for key, leaf in state.items()}, action, noise)
    found = arranged.step(state, action, noise)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


TEMPERATURES = {"one": 1.0, "another": 0.6, "a tensor": torch.tensor(0.6), "of each row": None}


@pytest.mark.parametrize("mixtures", [1, 5])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rows", [1, 2, 9, 100, 1100])
def test_the_arranged_step_is_the_plain_one_in_any_number_of_rows(rows, temperature, mixtures):
    """A few, of which NumPy computes what lies between products; many; and more than at a time."""
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    config = MDNRNNConfig(hidden=16, mixtures=mixtures)
    model = MDNRNN(space, gym.spaces.Discrete(3), config).eval().requires_grad_(False)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        parameter.normal_()
    state = {key: torch.randn_like(leaf) for key, leaf in model.initial(rows).items()}
    action, noise = torch.arange(rows) % 3, torch.rand(rows, model.noise_dim)
    tau = torch.rand(rows) + 0.5 if temperature == "of each row" else TEMPERATURES[temperature]
    arranged = model.prepare(rows, torch.device("cpu"), torch.float32)
    before = {key: leaf.clone() for key, leaf in state.items()}
    found, said = arranged.step(state, action, noise, tau)
    wanted, meant = model.step(before, action, noise, tau)
    for key, leaf in before.items():
        assert torch.equal(state[key], leaf), f"{key} was written into"
    # Rounding may turn one draw among hundreds.
    pairs = [*((found[key], wanted[key]) for key in wanted), *zip(said, meant, strict=True)]
    near = [
        torch.isclose(one, two, rtol=1e-3, atol=1e-3).reshape(rows, -1).all(1) for one, two in pairs
    ]
    assert torch.stack(near).all(0).float().mean() > 0.99


@pytest.mark.parametrize("rows", [1, 9, 100])
def test_products_in_bfloat16_stay_near_in_any_number_of_rows(rows):
    torch.manual_seed(0)
    space, config = gym.spaces.Box(-3.0, 3.0, (4,), np.float32), MDNRNNConfig(hidden=128)
    model = MDNRNN(space, gym.spaces.Discrete(3), config).eval().requires_grad_(False)
    model.set_statistics(STATISTICS)
    state = {key: torch.rand_like(leaf) for key, leaf in model.initial(rows).items()}
    action, noise = torch.arange(rows) % 3, torch.rand(rows, model.noise_dim)
    arranged = model.prepare(rows, torch.device("cpu"), torch.bfloat16)
    found, _ = arranged.step(state, action, noise)
    wanted, _ = model.step(state, action, noise)
    assert {leaf.dtype for leaf in found.values()} == {torch.float32}
    assert not torch.equal(found["h"], wanted["h"]), "products are rounded"
    torch.testing.assert_close(found["h"], wanted["h"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rows", [1, 100])
def test_numpys_way_with_errors_is_not_the_dreams(rows):
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    model = MDNRNN(space, gym.spaces.Discrete(3), MDNRNNConfig(hidden=16))
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(1e3)
    arranged = model.prepare(rows, torch.device("cpu"), torch.float32)
    action, noise = torch.zeros(rows, dtype=torch.int64), torch.rand(rows, model.noise_dim)
    with np.errstate(all="raise"):
        arranged.step(model.initial(rows), action, noise)
