"""PETS against its equations in float64; members, elites and bootstraps."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from dreamgym.models import PETS, PETSConfig, Segment, filter_states
from dreamgym.models.nn.members import bootstrap_counts
from tests.small_worlds import MOMENTS, STATISTICS

SPACE = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)


def a_model(**settings) -> PETS:
    torch.manual_seed(0)
    config = PETSConfig(hidden=16, layers=2, **settings)
    model = PETS(SPACE, gym.spaces.Discrete(3), config)
    model.set_statistics(STATISTICS)
    with torch.no_grad():
        for bias in (layer.bias for layer in model.network):
            bias.normal_()
    return model.eval()


def a_segment(batch: int = 6, length: int = 3, seed: int = 0) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, 1:] = False
    return Segment(
        observation=torch.randn(batch, length + 1, 4, generator=generator),
        action=torch.randint(0, 3, (batch, length), generator=generator),
        reward=torch.randn(batch, length, generator=generator),
        terminated=torch.rand(batch, length, generator=generator) < 0.3,
        mask=mask,
    )


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def predicted_by_hand(model: PETS, z: np.ndarray, action: np.ndarray, member: int) -> tuple:
    """Return mean and log variance of one member, in float64 and without a batched product."""
    weights = {name: leaf.detach().double().numpy() for name, leaf in model.named_parameters()}
    hidden = np.concatenate([z, np.eye(3)[action]], -1)
    for k in range(3):
        weight, bias = (weights[f"network.{k}.{name}"][member] for name in ("weight", "bias"))
        hidden = hidden @ weight + bias[0]
        hidden = hidden / (1 + np.exp(-hidden)) if k < 2 else hidden
    mean, raw = np.split(hidden, 2, -1)
    low, high = weights["log_variance_min"], weights["log_variance_max"]
    below = high - softplus(high - raw)
    return mean, low + softplus(below - low)


def test_the_likelihood_is_the_gaussian_one_with_softly_bounded_variance():
    """See arXiv 1805.12114, section 4, appendix A.1; up to a constant and a factor of one half."""
    model, segment = a_model(), a_segment()
    _, terms = model.loss(segment, torch.zeros(6, 4, model.noise_dim))
    observation = segment.observation.double().numpy()
    z = (observation - MOMENTS.mean.numpy()) / MOMENTS.std.numpy()
    delta = (observation[:, 1:] - observation[:, :-1]) / MOMENTS.delta_std.numpy()
    reward = (segment.reward.double().numpy() - 0.5) / 2.0
    target, mask = np.concatenate([delta, reward[..., None]], -1), segment.mask.numpy()
    total = 0.0
    for member in range(7):
        mean, log_variance = predicted_by_hand(model, z[:, :-1], segment.action.numpy(), member)
        density = stats.norm.logpdf(target, mean, np.exp(0.5 * log_variance))
        total += (-2 * density - math.log(2 * math.pi)).mean(-1)[mask].mean()
    assert float(terms["nll"]) == pytest.approx(total, rel=1e-4)
    assert float(terms["bounds"]) == pytest.approx(0.01 * 10.5 * 5, rel=1e-5)


def test_the_log_variance_stays_softly_within_its_bounds():
    model = a_model()
    with torch.no_grad():
        model.network[-1].bias[..., 5:] = torch.tensor([-1e3, -20.0, -5.0, 20.0, 1e3])
    _, log_variance = model.predict(torch.zeros(1, 7))
    # Softplus is not zero at the other bound: the maximum is exceeded by log(1 + exp(-10.5)).
    assert log_variance.min() >= -10.0
    assert log_variance.max() <= 0.5 + 1e-4
    assert float(log_variance[:, 0, 0].detach().max()) == pytest.approx(-10.0)
    assert float(log_variance[:, 0, 4].detach().min()) == pytest.approx(0.5, abs=1e-3)


def test_decay_is_that_of_the_published_code_on_four_layers():
    torch.manual_seed(0)
    model = PETS(SPACE, gym.spaces.Discrete(3), PETSConfig())
    _, terms = model.eval().loss(a_segment(), torch.zeros(6, 4, model.noise_dim))
    published = (0.000025, 0.00005, 0.000075, 0.000075, 0.0001)
    expected = sum(
        share * float(layer.weight.detach().square().sum()) / 2
        for share, layer in zip(published, model.network, strict=True)
    )
    assert float(terms["decay"]) == pytest.approx(expected, rel=1e-5)


def test_published_sizes():
    """MBPO on HalfCheetah: 17 numbers and 6 actions; the termination head is an addition."""
    model = PETS(
        gym.spaces.Box(-np.inf, np.inf, (17,), np.float64),
        gym.spaces.Box(-1, 1, (6,), np.float32),
        PETSConfig(),
    )
    one = (23 * 200 + 200) + 3 * (200 * 200 + 200) + (200 * 36 + 36)
    assert sum(p.numel() for p in model.network.parameters()) == 7 * one
    assert model.log_variance_min.shape == (18,)
    assert model.log_variance_min[0].item() == -10
    assert model.log_variance_max[0].item() == 0.5


def test_a_step_is_the_sample_of_the_member_that_the_noise_draws():
    model = a_model()
    batch = 40
    generator = torch.Generator().manual_seed(3)
    model.requires_grad_(False)
    state = {"z": torch.randn(batch, 4, generator=generator)}
    action = torch.randint(0, 3, (batch,), generator=generator)
    noise = torch.rand(batch, model.noise_dim, generator=generator)
    model.elites.copy_(torch.tensor([6, 2, 0, 4, 1]))
    new, prediction = model.step(state, action, noise, 1.7)
    members = np.array([6, 2, 0, 4, 1])[(noise[:, -1].numpy() * 5).astype(int)]
    assert len(set(members)) == 5
    for row, member in enumerate(members):
        mean, log_variance = predicted_by_hand(
            model, state["z"].double().numpy()[row], action.numpy()[row], member
        )
        shock = stats.norm.ppf(noise[row, :-1].double().numpy())
        sample = mean + np.exp(0.5 * log_variance) * math.sqrt(1.7) * shock
        expected = state["z"][row].numpy() + sample[:4] * (MOMENTS.delta_std / MOMENTS.std).numpy()
        low = (-3.0 - MOMENTS.mean.numpy()) / MOMENTS.std.numpy()
        high = (3.0 - MOMENTS.mean.numpy()) / MOMENTS.std.numpy()
        np.testing.assert_allclose(
            new["z"][row], np.clip(expected, low, high), rtol=1e-3, atol=1e-3
        )
        assert float(prediction.reward[row]) == pytest.approx(sample[4] * 2.0 + 0.5, abs=1e-2)


def test_uncertainties_are_those_documented():
    model, z = a_model(), torch.randn(9, 4)
    state, action = {"z": z}, torch.zeros(9, dtype=torch.int64)
    predictions = [
        predicted_by_hand(model, z.double().numpy(), action.numpy(), k) for k in range(7)
    ]
    means = np.stack([mean for mean, _ in predictions])
    noise = torch.rand(9, model.noise_dim)
    _, prediction = model.step(state, action, noise)
    expected = np.sqrt(means.std(0) ** 2 @ np.ones(5) / 5)
    np.testing.assert_allclose(prediction.uncertainty.detach(), expected, rtol=1e-4)
    model = a_model(uncertainty="max-sigma")
    _, prediction = model.step(state, action, noise)
    units = np.append(MOMENTS.delta_std.numpy(), 2.0)
    norms = [np.linalg.norm(np.exp(0.5 * lv) * units, axis=-1) for _, lv in predictions]
    np.testing.assert_allclose(prediction.uncertainty.detach(), np.max(norms, 0), rtol=1e-4)


def test_with_ts_infinity_a_dream_keeps_the_member_that_its_start_has_drawn():
    model = a_model(propagation="ts-inf")
    noise = torch.rand(64, 2, model.noise_dim)
    segment = Segment(
        observation=torch.zeros(64, 2, 4),
        action=torch.zeros(64, 1, dtype=torch.int64),
        reward=torch.zeros(64, 1),
        terminated=torch.zeros(64, 1, dtype=torch.bool),
        mask=torch.ones(64, 1, dtype=torch.bool),
    )
    state = {key: leaf[:, -1] for key, leaf in filter_states(model, segment, noise).items()}
    assert torch.equal(state["member"], noise[:, -1, -1])
    drawn = torch.rand(64, model.noise_dim)
    new, _ = model.step(state, segment.action[:, 0], drawn)
    other, _ = model.step(
        state, segment.action[:, 0], torch.cat([drawn[:, :-1], 1 - drawn[:, -1:]], -1)
    )
    assert torch.equal(new["member"], state["member"])
    assert torch.equal(new["z"], other["z"])


def test_elites_are_the_members_with_the_smallest_held_out_error():
    model = a_model()
    _, terms = model.loss(a_segment(), torch.zeros(6, 4, model.noise_dim))
    assert {f"member_{k}" for k in range(7)} <= set(terms)
    errors = [5.0, 1.0, 4.0, 0.5, 9.0, 2.0, 8.0]
    model.after_evaluation({f"member_{k}": torch.tensor(e) for k, e in enumerate(errors)})
    assert model.elites.tolist() == [3, 1, 5, 2, 0]


def test_each_member_has_a_poisson_bootstrap_that_is_the_same_in_every_batch():
    content = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    drawn = bootstrap_counts(content, 3)
    order = torch.randperm(len(content))
    assert torch.equal(bootstrap_counts(content[order], 3), drawn[:, order])
    counts = np.stack([np.bincount(row.int().numpy(), minlength=5)[:5] for row in drawn])
    expected = stats.poisson(1).pmf(np.arange(5)) * len(content)
    assert stats.chisquare(counts[0], expected * counts[0].sum() / expected.sum()).pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn.numpy()) - np.eye(3)).max() < 0.03


def test_members_see_their_own_bootstraps_in_training_and_everything_in_evaluation():
    model, segment = a_model(), a_segment(64)
    noise = torch.zeros(64, 4, model.noise_dim)
    trained = float(model.train().loss(segment, noise)[1]["nll"])
    all_transitions = float(model.eval().loss(segment, noise)[1]["nll"])
    assert trained != all_transitions
    model = a_model(bootstrap=False)
    assert float(model.train().loss(segment, noise)[1]["nll"]) == all_transitions


def test_invalid_spaces_and_configs_are_refused():
    with pytest.raises(TypeError, match="the pets family takes observations from a Box of numbers"):
        PETS(gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Discrete(2), PETSConfig())
    for settings, message in (
        ({"elites": 8}, "elites=8 of members=7"),
        ({"propagation": "ts-1"}, "did you mean 'ts1'"),
        ({"uncertainty": "max_sigma"}, "did you mean 'max-sigma'"),
        ({"hidden": 0}, "hidden=0"),
        ({"log_variance_max": -11.0}, "must be below"),
    ):
        with pytest.raises(ValueError, match=message):
            PETSConfig(**settings)
