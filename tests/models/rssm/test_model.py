"""The RSSM in float64: its unroll against its steps, its losses against the papers' equations."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamgym.models import RSSM, RSSMConfig, Segment, filter_states, imagine
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.rssm import RSSMObjective
from dreamgym.models.rssm.modules import codec_config
from dreamgym.world.world import load
from tests.small_worlds import MOMENTS, STATISTICS, small_model, small_world

BATCH, LENGTH, SIZE = 4, 6, 4
VECTOR = gym.spaces.Box(-9.0, 9.0, (SIZE,), np.float32)
SMALL = RSSMConfig(deter=16, hidden=12, stoch=3, classes=5, blocks=2, units=10)
STYLES = {
    "planet": replace(RSSM.presets["planet"], deter=16, hidden=12, stoch=3, units=10),
    "v1": replace(RSSM.presets["dreamer-v1"], deter=16, hidden=12, stoch=3, units=10),
    "v2": replace(RSSM.presets["dreamer-v2"], deter=16, hidden=12, stoch=3, classes=5, units=10),
    "v3": replace(RSSM.presets["dreamer-v3-1m"], deter=16, hidden=12, stoch=3, units=10),
    "layer": replace(SMALL, norm="layer", blocks=0),
    "default": SMALL,
}


def a_model(style: str) -> RSSM:
    """Return a model in float64, where rounding changes no drawn class, without zero weights."""
    torch.manual_seed(0)
    model = RSSM(VECTOR, gym.spaces.Discrete(3), STYLES[style]).double()
    model.set_statistics(STATISTICS)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def a_segment(seed: int = 0) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, 3:] = mask[2, 1:] = False
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Segment(
        observation=normal(BATCH, LENGTH + 1, SIZE),
        action=torch.randint(0, 3, (BATCH, LENGTH), generator=generator),
        reward=5 * normal(BATCH, LENGTH),
        terminated=torch.rand(BATCH, LENGTH, generator=generator) < 0.3,
        mask=mask,
    )


def noise_for(model: RSSM, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, model.noise_dim, generator=generator, dtype=torch.float64)


@pytest.fixture(params=sorted(STYLES))
def style(request) -> str:
    return request.param


@torch.no_grad()
def test_the_unroll_of_the_loss_is_that_of_filter_states_and_step(style):
    model, segment = a_model(style), a_segment()
    noise = noise_for(model, BATCH, LENGTH + 1)
    h, z, _ = model._unroll(segment, model.senses.targets(segment.observation), noise)
    states = filter_states(model, segment, noise)
    torch.testing.assert_close(h, states["h"])
    torch.testing.assert_close(z, states["z"])
    for t in range(LENGTH):
        before = {key: leaf[:, t] for key, leaf in states.items()}
        after, _ = model.step(before, segment.action[:, t], noise[:, t])
        torch.testing.assert_close(after["h"], h[:, t + 1])
        dreamt = model.latent.sample(model.prior(h[:, t + 1]), noise[:, t])
        torch.testing.assert_close(after["z"], dreamt)


def kl_reference(config: RSSMConfig, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if not config.classes:
        mean, other_mean = one[..., : config.stoch], other[..., : config.stoch]
        std, other_std = (np.log1p(np.exp(x[..., config.stoch :])) + 0.1 for x in (one, other))
        gap = (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2)
        return (np.log(other_std / std) + gap - 0.5).sum(-1)
    p, q = (
        np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        for x in (x.reshape(*x.shape[:-1], config.stoch, config.classes) for x in (one, other))
    )
    share = config.unimix
    p, q = ((1 - share) * x + share / config.classes for x in (p, q))
    return (p * np.log(p / q)).sum((-2, -1))


def two_hot_loss(logits: np.ndarray, value: np.ndarray) -> np.ndarray:
    """arXiv 2301.04104, equations 10 and 11."""
    even = np.linspace(-20, 20, logits.shape[-1])
    bins = np.sign(even) * (np.exp(np.abs(even)) - 1)
    k = np.searchsorted(bins, value)
    low, high = bins[k - 1], bins[k]
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    below = np.take_along_axis(log, k[..., None] - 1, -1)[..., 0]
    above = np.take_along_axis(log, k[..., None], -1)[..., 0]
    return -((high - value) * below + (value - low) * above) / (high - low)


def symlog(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log(np.abs(x) + 1)


@torch.no_grad()
def test_the_loss_is_the_published_one(style):
    """Compute reconstruction, reward, termination and the KLs from the model's raw outputs."""
    model, segment = a_model(style), a_segment()
    config, aim = model.config, model.config.objective
    noise = noise_for(model, BATCH, LENGTH + 1)
    total, terms = model.loss(segment, noise)
    h, z, posterior = model._unroll(segment, model.senses.targets(segment.observation), noise)
    features = torch.cat([h, z], -1)
    seen, reward = segment.observation.numpy(), segment.reward.numpy()
    mask = segment.mask.numpy()
    observed = np.concatenate([np.ones((BATCH, 1), bool), mask], 1)

    expected = {
        "raw": lambda: seen,
        "symlog": lambda: symlog(seen),
        "standard": lambda: (seen - MOMENTS.mean.numpy()) / MOMENTS.std.numpy(),
    }[aim.vectors]()
    error = ((model.senses.decode_vectors(features).numpy() - expected) ** 2).sum(-1)
    outputs = model.reward.net(features[:, 1:]).numpy()
    if aim.rewards == "two-hot":
        reward_loss = two_hot_loss(outputs, reward)
    else:
        target = (reward - 0.5) / 2.0 if aim.rewards == "standard" else reward
        reward_loss = (outputs[..., 0] - target) ** 2
    continuation = 1 / (1 + np.exp(-model.continuation(features[:, 1:])[..., 0].numpy()))
    ends = -np.log(np.where(segment.terminated.numpy(), 1 - continuation, continuation))
    kl = kl_reference(config, posterior.numpy(), model.prior(h).numpy())
    if aim.free_nats_of == "step":
        nats = np.maximum(kl, aim.free_nats)[observed].mean()
    else:
        nats = max(kl[observed].mean(), aim.free_nats)

    reference = {
        "reconstruction": aim.vector * error[observed].mean(),
        "reward": reward_loss[mask].mean(),
        "termination": ends[mask].mean(),
        "dyn": nats,
        "rep": nats,
        "kl": kl[observed].mean(),
    }
    for name, value in reference.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    weighted = (
        reference["reconstruction"]
        + aim.reward * reference["reward"]
        + aim.termination * reference["termination"]
        + (aim.dyn + aim.rep) * nats
    )
    assert total.item() == pytest.approx(weighted, rel=1e-5)


def test_dyn_trains_the_prior_and_rep_the_posterior():
    """arXiv 2010.02193, algorithm 2."""
    model, segment = a_model("v2"), a_segment()
    noise = noise_for(model, BATCH, LENGTH + 1)

    def gradients(dyn: float, rep: float) -> tuple[Tensor, Tensor]:
        only = RSSMObjective(
            vector=0.0, reward=0.0, termination=0.0, dyn=dyn, rep=rep, free_nats=0.0
        )
        model.config = replace(STYLES["v2"], objective=only)
        model.senses.config = codec_config(model.config)
        model.zero_grad()
        model.loss(segment, noise)[0].backward()
        return model.prior[-1].weight.grad.clone(), model.posterior_out.weight.grad.clone()

    prior, _ = gradients(1.0, 0.0)
    from_rep, posterior = gradients(0.0, 1.0)
    balanced, _ = gradients(0.8, 0.2)
    torch.testing.assert_close(balanced, 0.8 * prior)
    assert (from_rep == 0).all()
    assert (posterior != 0).any()


@pytest.mark.parametrize("style", ["planet", "v3", "default"])
def test_padding_changes_neither_loss_nor_gradients(style):
    model, segment = a_model(style), a_segment()
    noise = noise_for(model, BATCH, LENGTH + 1)

    def loss_and_gradients(segment: Segment, noise: Tensor) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        loss, _ = model.loss(segment, noise)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    loss, gradients = loss_and_gradients(segment, noise)
    padding = ~segment.mask
    after = torch.cat([torch.zeros(BATCH, 1, dtype=torch.bool), padding], 1)
    changed = Segment(
        observation=torch.where(after.unsqueeze(-1), 7.0, segment.observation),
        action=torch.where(padding, 0, segment.action),
        reward=torch.where(padding, 1e6, segment.reward),
        terminated=segment.terminated | padding,
        mask=segment.mask,
    )
    other, others = loss_and_gradients(changed, torch.where(after.unsqueeze(-1), 0.5, noise))
    torch.testing.assert_close(other, loss)
    for one, another in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, another)


def test_a_step_can_be_differentiated_through_its_draws():
    model = a_model("default").requires_grad_(False)
    state = {k: v.requires_grad_() for k, v in model.initial(3).items()}
    after, prediction = model.step(state, torch.zeros(3, dtype=torch.int64), noise_for(model, 3))
    again, prediction = model.step(after, torch.ones(3, dtype=torch.int64), noise_for(model, 3))
    prediction.reward.sum().backward()
    assert state["h"].grad.abs().min() > 0
    assert again["z"].requires_grad


def test_termination_is_the_complement_of_continuation():
    model = a_model("v3").requires_grad_(False)
    state = model.initial(3)
    after, prediction = model.step(state, torch.zeros(3, dtype=torch.int64), noise_for(model, 3))
    continuation = model.continuation(model.features(after)).squeeze(-1).sigmoid()
    torch.testing.assert_close(prediction.termination, 1 - continuation)
    assert (prediction.uncertainty == 0).all()


def test_a_dream_that_leaves_the_widened_range_of_the_data_ends_with_the_worst_return():
    model = small_model("rssm")
    noise, action = torch.rand(64, model.noise_dim), torch.zeros(64, dtype=torch.int64)
    state = model.initial(64)
    seen = model.decode(model.step(state, action, noise)[0])[:, 0]
    edge = float(seen.sort().values[31:33].mean())
    # A range of 10 in the first number, whose widened lower end lies between two of the rows.
    low, high = MOMENTS.low.clone(), MOMENTS.high.clone()
    low[0] = edge + model.config.range_margin * 10
    high[0] = low[0] + 10
    moments = MOMENTS._replace(low=low, high=high)
    model.set_statistics(STATISTICS._replace(observation={"": moments}))
    _, prediction = model.step(state, action, noise)
    outside = seen < edge
    assert outside.any()
    assert not outside.all()
    assert (prediction.termination[outside] == 1).all()
    assert (prediction.reward[outside] == -30.0).all()
    assert (prediction.termination[~outside] < 1).all()
    assert (prediction.reward[~outside] != -30.0).all()


def test_the_presets_do_not_end_dreams_outside_the_data():
    assert all(config.range_margin is None for config in RSSM.presets.values())
    model = RSSM(VECTOR, gym.spaces.Discrete(3), STYLES["v3"])
    nowhere = torch.zeros(SIZE)
    moments = MOMENTS._replace(low=nowhere + 5, high=nowhere + 5)
    model.set_statistics(STATISTICS._replace(observation={"": moments}))
    noise = torch.rand(8, model.noise_dim)
    _, prediction = model.step(model.initial(8), torch.zeros(8, dtype=torch.int64), noise)
    assert (prediction.termination < 1).all()


def test_dreams_of_every_style_stay_finite(style):
    model = a_model(style).requires_grad_(False)
    actions = torch.randint(0, 3, (BATCH, 30), generator=torch.Generator().manual_seed(0))
    states, prediction = imagine(model, model.initial(BATCH), actions, noise_for(model, BATCH, 30))
    assert all(leaf.isfinite().all() for leaf in (*states.values(), *prediction))
    assert math.isfinite(float(model.decode({k: v[:, -1] for k, v in states.items()}).sum()))


def test_a_loaded_world_has_the_same_config_and_predictions(tmp_path):
    world = small_world("rssm")
    world.save(tmp_path / "world")
    loaded = load(tmp_path / "world")
    assert loaded.model.config == world.model.config
    action, noise = torch.zeros(5, dtype=torch.int64), torch.rand(5, world.model.noise_dim)
    (one, prediction), (other, loaded_prediction) = (
        model.step(model.initial(5), action, noise) for model in (world.model, loaded.model)
    )
    assert torch.equal(one["h"], other["h"])
    assert torch.equal(prediction.reward, loaded_prediction.reward)


@pytest.mark.parametrize("style", ["planet", "v2", "v3"])
def test_the_step_of_every_generation_compiles_to_one_graph(style):
    model = a_model(style).requires_grad_(False)
    state, action, noise = model.initial(3), torch.tensor([0, 1, 2]), noise_for(model, 3)
    torch._dynamo.reset()
    compiled = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    for temperature in (1.0, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)):
        got, prediction = compiled(state, action, noise, temperature)
        expected, plain_prediction = model.step(state, action, noise, temperature)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(tuple(prediction), tuple(plain_prediction))


def a_reward_head() -> RewardHead:
    objective = STYLES["v3"].objective
    return RewardHead(nn.Sequential(nn.Linear(4, objective.reward_outputs)), objective)


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1.0])
def test_two_hot_rewards_have_a_scale_that_the_bins_resolve(unit):
    """Around zero the bins are 0.17 apart: rewards of 1e-6 would all be the same class."""
    head = a_reward_head()
    rewards = unit * torch.randn(256, generator=torch.Generator().manual_seed(0))
    head.set_moments(rewards.mean().double(), rewards.std().double())
    seen = head.two_hot.encode(rewards / head.two_hot_unit)
    assert seen.std(0).max() > 0.2  # what the head is fitted to varies
    torch.testing.assert_close(head.expected(seen.log()), rewards, rtol=1e-2, atol=1e-4 * unit)
