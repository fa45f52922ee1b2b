"""The MDN-RNN on images, and on images and vectors together."""

from __future__ import annotations

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import MDNRNN, MDNRNNConfig, Segment, filter_states
from tests.small_worlds import STATISTICS

IMAGE = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
LARGE = gym.spaces.Box(0, 255, (60, 80, 1), np.uint8)
VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
BOTH = gym.spaces.Dict({"camera": IMAGE, "joints": VECTOR})
SMALL = MDNRNNConfig(hidden=16, trunk=16, head=16, latent=6, width=0.125, vision_frames=8)
BATCH, LENGTH = 3, 5


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def a_model(space: gym.Space = IMAGE, **settings) -> MDNRNN:
    torch.manual_seed(0)
    model = MDNRNN(space, gym.spaces.Discrete(3), replace(SMALL, **settings))
    if isinstance(space, gym.spaces.Dict):
        model.set_statistics(
            STATISTICS._replace(observation={"joints": STATISTICS.observation[""]})
        )
    return model


def observations(space: gym.Space, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(space, gym.spaces.Dict):
        return {key: observations(part, seed) for key, part in space.spaces.items()}
    shape = (BATCH, LENGTH + 1, *space.shape)
    if space.dtype == np.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def a_segment(space: gym.Space = IMAGE, seed: int = 0) -> Segment:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, 3:] = False
    return Segment(
        observation=observations(space, seed),
        action=torch.randint(0, 3, (BATCH, LENGTH), generator=generator),
        reward=torch.randn(BATCH, LENGTH, generator=generator),
        terminated=torch.rand(BATCH, LENGTH, generator=generator) < 0.3,
        mask=mask,
    )


def noise_for(model: MDNRNN) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(BATCH, LENGTH + 1, model.noise_dim, generator=generator)


def test_the_published_car_racing_has_the_published_parameters():
    car = gym.spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))
    model = MDNRNN(IMAGE, car, MDNRNN.presets["carracing"])
    assert count(model.vision) == 4_348_547
    assert count(model.lstm, model.mixture) == 422_368
    assert count(model.heads.reward) == count(model.heads.termination) == 257
    assert count(model) == 4_348_547 + 422_368 + 2 * 257
    shapes = {key: leaf.shape for key, leaf in model.initial(2).items()}
    assert shapes == {"z": (2, 32), "h": (2, 256), "c": (2, 256)}


def test_the_published_doom_has_the_published_parameters():
    doom = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    model = MDNRNN(IMAGE, doom, MDNRNN.presets["doom"])
    assert count(model.vision) == 4_446_915
    assert count(model.lstm, model.mixture, model.heads.termination) == 1_678_785
    assert count(model) == 4_446_915 + 1_678_785 + count(model.heads.reward)
    assert model.lstm.weight_ih.shape[1] == 64 + 1 + 1


def test_the_restart_flag_is_one_only_before_the_first_observation():
    model, segment = a_model(restart_flag=True).eval(), a_segment()
    assert (model.initial(2)["restart"] == 1).all()
    states = filter_states(model, segment, noise_for(model))
    assert (states["restart"] == 0).all()
    plain = {**model.initial(BATCH), "restart": torch.zeros(BATCH, 1)}
    first = model.observe(
        plain, segment.action[:, 0], segment.observation[:, 0], noise_for(model)[:, 0]
    )
    assert not torch.allclose(first["h"], states["h"][:, 0])


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("space", [IMAGE, LARGE, BOTH], ids=["image", "resized", "both"])
def test_the_loss_on_a_segment_is_that_of_filtering_step_by_step(space, restart):
    for settings in ({"trunk": 0, "head": 0}, {}):
        model = a_model(space, restart_flag=restart, **settings).eval().requires_grad_(False)
        segment, noise = a_segment(space), noise_for(model)
        terms = model.loss(segment, noise)[1]
        states, mask = filter_states(model, segment, noise), segment.mask
        z, h, encoded = states["z"], states["h"][:, 1:], model.encode_action(segment.action)
        expected = (z[:, 1:] - z[:, :-1] * model.vision.carried) / model.vision.delta_std
        likelihood = model._mixture(h, z[:, :-1], encoded).log_prob(expected)
        torch.testing.assert_close(terms["nll"], -likelihood[mask].mean(), rtol=1e-4, atol=1e-4)
        reward, end_bonus, logit = model._predict_reward_termination(
            h, z[:, :-1], z[:, 1:], encoded
        )
        error = torch.where(segment.terminated, reward + end_bonus, reward)
        error = error - (segment.reward - model.reward_mean) / model.reward_std
        torch.testing.assert_close(terms["reward"], error[mask].square().mean())
        chance = torch.where(segment.terminated, logit.sigmoid(), 1 - logit.sigmoid())
        torch.testing.assert_close(terms["termination"], -chance[mask].log().mean())


def test_the_loss_of_m_has_no_gradient_in_v():
    model, segment = a_model(BOTH), a_segment(BOTH)
    z = model.vision.encode_observation(segment.observation, noise_for(model)[..., : model.size])
    terms = model._dynamics_terms(segment, z)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in model.vision.parameters())
    assert any(p.grad is not None for p in model.lstm.parameters())


def test_v_is_fitted_first_and_m_after_it_on_a_frozen_v():
    model, segment = a_model(vision_updates=2).train(), a_segment()
    for update, expected in enumerate(
        [{"reconstruction", "kl"}] * 2 + [{"nll", "reward", "termination"}] * 2
    ):
        model.zero_grad()
        loss, terms = model.loss(segment, noise_for(model))
        loss.backward()
        assert terms.keys() == expected
        first = update < 2
        assert all((p.grad is not None) == first for p in model.vision.parameters())
        assert all((p.grad is None) == first for p in model.lstm.parameters())
        model.after_update()
    # Held-out losses have both terms in every phase, so that they are comparable.
    assert len(model.eval().loss(segment, noise_for(model))[1]) == 5


def test_m_starts_a_phase_of_its_own_and_every_fit_starts_with_v():
    model = a_model(vision_updates=2)
    assert model.phase_starts == (2,)
    assert a_model().phase_starts == ()
    for _ in range(3):
        model.after_update()
    model.before_fit()
    assert "nll" not in model.train().loss(a_segment(), noise_for(model))[1]


def test_a_frozen_v_encodes_each_frame_once_until_its_weights_change(monkeypatch):
    model, segment = a_model(BOTH), a_segment(BOTH)
    vision, noise = model.vision, noise_for(model)[..., : model.size]
    encoded_counts: list[int] = []
    plain = vision._posterior
    monkeypatch.setattr(
        vision, "_posterior", lambda key, x: encoded_counts.append(len(x)) or plain(key, x)
    )
    for k in range(3):
        cached = vision.encode_cached(segment.observation, noise)
        torch.testing.assert_close(cached, vision.encode_observation(segment.observation, noise))
        assert encoded_counts == [BATCH * (LENGTH + 1)] * (
            k + 2
        )  # `encode_observation` every time, `encode_cached` once
    camera = segment.observation["camera"].clone()
    camera[0, 0] = 7
    vision.encode_cached({**segment.observation, "camera": camera}, noise)
    assert encoded_counts[-1] == 1
    with torch.no_grad():
        vision.sights[0].vae.mean.weight.mul_(2.0)
    cached = vision.encode_cached(segment.observation, noise)
    torch.testing.assert_close(cached, vision.encode_observation(segment.observation, noise))


def test_the_divergence_is_reported_in_nats_and_weighted_by_kl_scale():
    model, light = a_model(), a_model(kl_scale=0.25)
    (loss, terms), (less, same) = (m.loss(a_segment(), noise_for(m)) for m in (model, light))
    assert torch.equal(terms["kl"], same["kl"])
    torch.testing.assert_close(loss - less, 0.75 * terms["kl"], rtol=1e-3, atol=1e-3)


def test_a_resumed_fit_continues_in_its_phase():
    model, other = a_model(vision_updates=1), a_model(vision_updates=1)
    model.after_update()
    other.load_state_dict(model.state_dict())
    assert "nll" in other.train().loss(a_segment(), noise_for(model))[1]


def test_padding_is_in_no_term_of_v():
    model, segment = a_model(vision_frames=100), a_segment()
    changed = segment.observation.clone()
    changed[1, 4:] = 255
    padded = segment._replace(observation=changed)
    one, other = (model.loss(s, noise_for(model))[1] for s in (segment, padded))
    for name in ("reconstruction", "kl"):
        torch.testing.assert_close(one[name], other[name])


def test_v_is_fitted_on_frames_evenly_spaced_over_the_batch_without_padding():
    model, segment = a_model(), a_segment()
    real = torch.nn.functional.pad(segment.mask, (1, 0), value=True)
    frames = model.vision.sample_frames(segment, noise_for(model)[..., :6], 8)[""]
    expected = model.vision.sights[0].pixels.to_float(segment.observation[real])
    places = [next(k for k, w in enumerate(expected) if torch.equal(w, i)) for i in frames.images]
    assert places == [k * 16 // 8 for k in range(8)]
    everything = model.vision.sample_frames(segment, noise_for(model)[..., :6], 99)[""]
    assert torch.equal(everything.images, expected)


def test_latents_are_sampled_from_their_posterior_with_their_own_noise():
    model = a_model().eval().requires_grad_(False)
    state, action = model.initial(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    seen, noise = a_segment().observation[:, 0], noise_for(model)[:, 0]
    first, again = (model.observe(state, action, seen, noise)["z"] for _ in range(2))
    assert torch.equal(first, again)
    middle = model.observe(state, action, seen, torch.full_like(noise, 0.5))["z"]
    part = model.vision._image_vae("")
    torch.testing.assert_close(middle, part.vae.encode(part.pixels.to_float(seen)).mean)
    assert not torch.equal(first, middle)


@pytest.mark.parametrize("space", [IMAGE, LARGE, BOTH], ids=["image", "resized", "both"])
def test_decoded_observations_are_in_the_space(space):
    model = a_model(space).eval().requires_grad_(False)
    states = filter_states(model, a_segment(space), noise_for(model))
    seen = model.decode({key: leaf[:, -1] for key, leaf in states.items()})
    for row in range(BATCH):
        one = (
            {key: values[row].numpy() for key, values in seen.items()}
            if isinstance(seen, dict)
            else seen[row].numpy()
        )
        assert space.contains(one)


def test_vectors_have_a_range_and_latents_have_none():
    model = a_model(BOTH).eval().requires_grad_(False)
    low, high = model.vision.low, model.vision.high
    assert high[:6].isinf().all()
    assert low[:6].isinf().all()
    assert high[6:].isfinite().all()
    assert (low < high).all()


def test_cached_posteriors_are_released_after_a_fit_and_never_copied():
    model = a_model(vision_updates=1).train()
    model.after_update()
    segment, noise = a_segment(), noise_for(model)
    model.loss(segment, noise)
    kept = model.vision._caches[""]
    assert kept
    assert not copy.deepcopy(model).vision._caches[""]
    model.after_fit()
    assert not model.vision._caches[""]
