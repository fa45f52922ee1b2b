"""DIAMOND against the published sizes and equations, its window of frames, and its actions."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models import DIAMOND, DIAMONDConfig, Segment, filter_states, imagine
from dreamgym.models.diamond import DiffusionConfig
from dreamgym.models.diamond.diffusion import Preconditioning, noise_levels, sample
from tests.small_worlds import STATISTICS, random_actions, small_diamond

IMAGES = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
PUBLISHED = DiffusionConfig()
ROWS, LENGTH = 3, 5


def a_model(action: str = "discrete", **settings) -> DIAMOND:
    """Return a small model in float64, with all weights random: some start near zero."""
    torch.manual_seed(0)
    model = small_diamond(action, **settings).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


def a_segment(model: DIAMOND, length: int = LENGTH) -> Segment:
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, length + 1, *IMAGES.shape)
    actions = random_actions(model.action_space, ROWS * length)
    return Segment(
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        actions.unflatten(0, (ROWS, length)),
        torch.randn(ROWS, length, generator=generator),
        torch.rand(ROWS, length, generator=generator) < 0.3,
        torch.ones(ROWS, length, dtype=torch.bool),
    )


def states_of(model: DIAMOND, segment: Segment) -> dict[str, Tensor]:
    noise = uniform(ROWS, segment.action.shape[1] + 1, model.noise_dim)
    return filter_states(model, segment, noise)


def normals(noise: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * noise - 1)


def pixels(frames: Tensor) -> Tensor:
    """Return (..., channels, height, width) in [-1, 1] of images (..., height, width, channels)."""
    return frames.double().movedim(-1, -3) / 127.5 - 1


# ---------------------------------------------------------------- sizes


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_size_has_the_parameters_of_the_published_code():
    """For images of 64 by 64 and 4 actions, of 13,536,456 with the actor's 3,229,637."""
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    model = DIAMOND(space, gym.spaces.Discrete(4), DIAMOND.presets["diamond"])
    second_bias = 4 * 512  # of torch's LSTM; it adds nothing to the first
    assert parameters(model.denoiser) == 4_405_955
    assert parameters(model.outcomes) + second_bias == 5_900_864
    assert parameters(model) + second_bias == 13_536_456 - 3_229_637


# ---------------------------------------------------------------- diffusion


@pytest.mark.parametrize("config", [PUBLISHED, DiffusionConfig(sigma_data=0.3, sigma_offset=0.0)])
def test_preconditioning_gives_the_network_inputs_and_targets_of_variance_one(config):
    """Karras et al. 2022, appendix B.6: the requirements that its table 1 was derived from."""
    sigma = torch.logspace(-2, 1, 7, dtype=torch.float64)
    c = Preconditioning.at(sigma, config)
    variance, of_data = sigma**2 + config.sigma_offset**2, config.sigma_data**2
    one = torch.ones_like(sigma)
    torch.testing.assert_close(c.c_in**2 * (of_data + variance), one)
    # The target ((1 - c_skip) x - c_skip n) / c_out of independent x and n.
    target = (1 - c.c_skip) ** 2 * of_data + c.c_skip**2 * variance
    torch.testing.assert_close(target / c.c_out**2, one)
    # The skip that makes c_out smallest, so that the network's errors are amplified least.
    for other in (c.c_skip * 0.99, c.c_skip * 1.01):
        assert ((1 - other) ** 2 * of_data + other**2 * variance > c.c_out**2).all()
    torch.testing.assert_close(c.c_noise, variance.sqrt().log() / 4)


def test_the_levels_of_three_steps_are_the_published_ones():
    assert noise_levels(PUBLISHED) == pytest.approx([5.0, 0.2831, 0.002, 0.0], rel=1e-3)
    assert noise_levels(replace(PUBLISHED, denoising_steps=1)) == pytest.approx([5.0, 0.0])


def test_many_steps_sample_the_distribution_of_the_data():
    """With the ideal denoiser of normal data, and start noise of the first level's scale."""
    config = DiffusionConfig(denoising_steps=400)
    start = 5.0 * normals(uniform(2000))
    sampled = sample(lambda x, level: 0.25 / (0.25 + level**2) * x, start, config)
    # The flow keeps the rank of a sample: start and end differ by the ratio of the scales.
    torch.testing.assert_close(sampled, start * 0.5 / math.sqrt(25.25), rtol=0.03, atol=1e-3)


def reference_step(model: DIAMOND, past: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
    """Return the next frame, arXiv 2405.12399, algorithm 1 and appendices A and C, written out.

    Args:
        model: small model in float64.
        past: (frames, channels, side, side) in [-1, 1].
        actions: (frames, A) encoded.
        noise: (channels, side, side) normals.
    """
    net, x = model.denoiser, noise
    second = ((5.0 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    for level, following in ((5.0, second), (second, 0.002), (0.002, 0.0)):
        variance = level**2 + 0.3**2
        c_skip, c_in = 0.25 / (variance + 0.25), (variance + 0.25) ** -0.5
        c_out = variance**0.5 * 0.5 * c_in
        angle = 2 * math.pi * math.log(variance**0.5) / 4 * net.noise.weight
        embedded = torch.cat([action @ net.action.weight.T for action in actions])
        condition = net.condition(torch.cat([angle.cos(), angle.sin()]) + embedded)
        stacked = torch.cat([*(past / 0.5), c_in * x])
        output = reference_unet(net, stacked[None], condition[None])[0]
        denoised = ((c_skip * x + c_out * output).clamp(-1, 1) + 1) * 127.5
        denoised = denoised.round() / 127.5 - 1
        x = x + (following - level) * (x - denoised) / level
    return x


def block(layer: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    y = x
    for norm, conv in ((layer.norm1, layer.conv1), (layer.norm2, layer.conv2)):
        scale, shift = norm.linear(condition)[..., None, None].chunk(2, 1)
        centred = y - y.mean((1, 2, 3), keepdim=True)
        y = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        y = y * (1 + scale) + shift
        y = conv(y * y.sigmoid())
    y = y + layer.project(x)
    return y if isinstance(layer.attention, nn.Identity) else attention(layer.attention, y)


def attention(layer: nn.Module, x: Tensor) -> Tensor:
    """One head of 8 channels; the published code adds to the normalised image."""
    x = layer.norm(x)
    tokens = layer.joint(x).flatten(2)[0].T
    query, key, value = tokens.chunk(3, 1)
    mixed = (query @ key.T / 8**0.5).softmax(1) @ value
    return x + layer.out(mixed.T.reshape(x.shape))


def reference_unet(net: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    """Two levels of one block each."""
    unet = net.unet
    a = net.inwards(x)
    b = block(unet.down[0][0], a, condition)
    c = unet.shrink[1](b)
    d = block(unet.down[1][0], c, condition)
    e = d
    for layer in unet.middle:
        e = block(layer, e, condition)
    e = block(unet.up[0][0], torch.cat([e, d], 1), condition)
    e = block(unet.up[0][1], torch.cat([e, c], 1), condition)
    e = unet.grow[1].conv(e.repeat_interleave(2, -1).repeat_interleave(2, -2))
    e = block(unet.up[1][0], torch.cat([e, b], 1), condition)
    e = block(unet.up[1][1], torch.cat([e, a], 1), condition)
    return net.outwards(F.silu(net.norm(e)))


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_a_step_is_the_published_algorithm(action):
    model = a_model(action)
    segment = a_segment(model)
    state = {key: leaf[:, -2] for key, leaf in states_of(model, segment).items()}
    noise = uniform(ROWS, model.noise_dim, seed=1)
    following, _ = model.step(state, segment.action[:, -1], noise)
    start = normals(noise[:, : 3 * 8 * 8]).unflatten(1, (3, 8, 8))
    past = pixels(segment.observation[:, -5:-1])
    actions = model.encode_action(segment.action[:, -4:]).double()
    for row in range(ROWS):
        expected = reference_step(model, past[row], actions[row], start[row])
        torch.testing.assert_close(
            pixels(model.decode(following))[row], expected, rtol=0, atol=1e-4
        )
        assert torch.equal(following["frames"][row, :-1], state["frames"][row, 1:])


def test_the_loss_is_the_published_one():
    """Equation 5, and cross-entropies; all targets of each segment."""
    model = a_model(targets=LENGTH)
    segment = a_segment(model)
    noise = uniform(ROWS, LENGTH + 1, model.noise_dim)
    total, terms = model.loss(segment, noise)
    net, errors = model.denoiser, []
    frames, actions = pixels(segment.observation), model.encode_action(segment.action).double()
    start, drawn = normals(noise[..., :192]).unflatten(-1, (3, 8, 8)), noise[..., 192:]
    for row in range(ROWS):
        for k in range(LENGTH):
            offset = 0.3 * normals(drawn[row, k, :3])[:, None, None]
            sigma = (-0.4 + 1.2 * normals(drawn[row, k, 5])).exp().clamp(0.002, 20)
            c = Preconditioning.at(sigma[None], PUBLISHED)
            noisy = frames[row, k + 1] + offset + sigma * start[row, k + 1]
            before = F.pad(frames[row, : k + 1], [0] * 6 + [4, 0])[-4:]
            acted = F.pad(actions[row, : k + 1], [0] * 2 + [4, 0])[-4:]
            embedded = net.action(acted).flatten()[None]
            stacked = before.flatten(0, 1)[None] / 0.5
            output = net(c.c_in * noisy[None], c.c_noise, stacked, embedded)
            target = (frames[row, k + 1] - c.c_skip * noisy) / c.c_out
            errors.append((output[0] - target).square().mean())
    torch.testing.assert_close(terms["frame"], torch.stack(errors).mean())
    assert float(total) == pytest.approx(float(sum(terms.values())))


def test_past_noise_is_told_to_the_network_and_absent_from_dreams():
    """As in GameNGen: in buckets of the level, of which dreams have the first."""
    model = a_model(diffusion=replace(PUBLISHED, context_noise=0.7), targets=1)
    segment = a_segment(model, length=1)
    plain = a_model(targets=1)
    weights = model.state_dict()
    table = weights.pop("denoiser.context_noise.weight")
    plain.load_state_dict(weights)

    def error(level: float, of: DIAMOND) -> Tensor:
        noise = uniform(ROWS, 2, model.noise_dim)
        noise[:, 0, 192 + 4] = level
        return of.loss(segment, noise)[1]["frame"]

    assert error(0.0, plain) == error(0.9, plain)
    assert not torch.equal(error(0.0, model), error(0.09, model)), "the same bucket, other noise"
    table.zero_()
    assert torch.equal(error(0.0, model), error(0.0, plain))
    state = {key: leaf[:, -1] for key, leaf in states_of(model, segment).items()}
    noise = uniform(ROWS, model.noise_dim)
    one, two = (of.step(state, segment.action[:, 0], noise)[0] for of in (model, plain))
    assert torch.equal(one["frames"], two["frames"])


# ---------------------------------------------------------------- the window, and the outcomes


def test_frames_that_are_not_set_have_no_influence():
    model = a_model()
    segment = a_segment(model, length=1)
    state = {key: leaf[:, -1] for key, leaf in states_of(model, segment).items()}
    assert state["length"].tolist() == [2] * ROWS
    other = {key: leaf.clone() for key, leaf in state.items()}
    other["frames"][:, :2] = 77
    noise = uniform(ROWS, model.noise_dim)
    one, two = (model.step(each, segment.action[:, 0], noise) for each in (state, other))
    assert torch.equal(one[0]["frames"][:, 2:], two[0]["frames"][:, 2:])
    assert torch.equal(one[1].reward, two[1].reward)


def test_steps_predict_the_outcomes_that_the_loss_is_computed_from():
    """With the frames that followed, instead of those dreamt, in the LSTM's input."""
    model = a_model()
    segment = a_segment(model)
    hidden = model.outcomes.trunk(states_of(model, segment)["h"][:, 1:])
    _, terms = model.loss(segment, uniform(ROWS, LENGTH + 1, model.noise_dim))
    reward = model.outcomes.reward.predict(hidden)
    error = ((segment.reward - reward) / STATISTICS.reward_std).square().mean()
    torch.testing.assert_close(terms["reward"], error.double())
    end = model.outcomes.termination(hidden).softmax(-1)[..., 1]
    chosen = torch.where(segment.terminated, end, 1 - end)
    torch.testing.assert_close(terms["termination"], -chosen.log().mean())


def test_rewards_of_atari_games_count_by_their_sign():
    config = DIAMOND.presets["diamond-16"]
    config = replace(config, objective=DIAMOND.presets["diamond"].objective)
    model = DIAMOND(IMAGES, gym.spaces.Discrete(3), config).eval()
    head = model.outcomes.reward
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    torch.testing.assert_close(
        head.expected(logits), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-3, rtol=0
    )
    hidden = torch.randn(4, config.hidden)
    rewards = torch.tensor([-7.0, 0.0, 0.25, 30.0])
    nn.init.normal_(head.net[-1].weight)
    expected = F.cross_entropy(head.net(hidden), torch.tensor([0, 1, 2, 2]), reduction="none")
    torch.testing.assert_close(head.loss(hidden, rewards), expected)


def test_other_numbers_of_denoising_steps_need_no_fit():
    model = a_model().float()
    state = {key: leaf[:, -1] for key, leaf in states_of(model, a_segment(model)).items()}
    action, noise = random_actions(model.action_space, ROWS), uniform(ROWS, model.noise_dim).float()
    one, three = (model.sampled_in(steps) for steps in (1, 3))
    assert one.config.diffusion.denoising_steps == 1
    frames = [m.step(state, action, noise)[0]["frames"] for m in (model, three, one)]
    assert torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[0], frames[2])


# ---------------------------------------------------------------- what it cannot take


def test_other_observations_are_refused_by_name():
    parts = gym.spaces.Dict({"a": IMAGES, "b": IMAGES})
    numbers = gym.spaces.Box(-1, 1, (4,), np.float32)
    for space, words in ((parts, "images alone"), (numbers, "does not hold images")):
        with pytest.raises(TypeError, match=words):
            DIAMOND(space, gym.spaces.Discrete(2), DIAMONDConfig())
    only = DIAMOND(gym.spaces.Dict({"a": IMAGES}), gym.spaces.Discrete(2), DIAMONDConfig())
    assert only.decode(only.initial(2))["a"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 36}, "work at 32, or another multiple of 8"),
        ({"image_size": 4}, "work at 8"),
        ({"channels": ()}, "at least one level"),
        ({"channels": (44, 44)}, "attention heads"),
        ({"condition": 12}, "not a multiple of 8"),
        ({"frames": 1}, "at least 2"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DIAMONDConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"denoising_steps": 0}, {"sigma_max": 1e-3}, {"sigma_data": 0.0}], ids=str
)
def test_levels_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DiffusionConfig(**settings)


# ---------------------------------------------------------------- actions

CELLS = 4


def dot(place: Tensor) -> Tensor:
    """Return images (..., 8, 8, 1) of a bright square in one of four cells."""
    frames = torch.zeros(*place.shape, 8, 8, 1, dtype=torch.uint8)
    bright = torch.arange(8) // 2 == place.unsqueeze(-1)
    frames[..., 2:4, :, 0] = 255 * bright.to(torch.uint8).unsqueeze(-2)
    return frames


def cell(images: Tensor) -> Tensor:
    """Return the brightest cell of images (..., 8, 8, 1)."""
    return images[..., 2:4, :, 0].float().mean(-2).unflatten(-1, (CELLS, 2)).mean(-1).argmax(-1)


def moves(rows: int, length: int, seed: int, space: gym.Space) -> tuple[Segment, Tensor]:
    """Return segments in which actions move a dot, and its places (B, L + 1)."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randint(-1, 2, (rows, length), generator=generator)
    jitter = 0.2 * torch.rand(rows, length, 1, generator=generator)
    is_box = isinstance(space, gym.spaces.Box)
    action = 0.9 * change.unsqueeze(-1) - 0.1 + jitter if is_box else change + 1
    places = [torch.randint(0, CELLS, (rows,), generator=generator)]
    for t in range(length):
        places.append((places[-1] + change[:, t]).clamp(0, CELLS - 1))
    place = torch.stack(places, 1)
    mask = torch.ones(rows, length, dtype=torch.bool)
    reward = (place[:, 1:] == 0).float()
    return Segment(dot(place), action, reward, ~mask, mask), place


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (1,), np.float32)],
    ids=["choice", "box"],
)
def test_dreams_follow_their_actions(space):
    """And not those of another row: users of the published code saw their actions ignored."""
    torch.manual_seed(0)
    config = DIAMONDConfig(
        image_size=8,
        frames=2,
        channels=(8, 8),
        condition=32,
        reward_channels=(8, 8),
        reward_condition=8,
        hidden=16,
        targets=4,
    )
    model = DIAMOND(gym.spaces.Box(0, 255, (8, 8, 1), np.uint8), space, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for k in range(UPDATES):
        noise = uniform(16, 5, model.noise_dim, seed=k).float()
        loss, _ = model.loss(moves(16, 4, k, space)[0], noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    segment, place = moves(64, 4, 10_000, space)
    state = {
        key: leaf[:, 0]
        for key, leaf in filter_states(
            model,
            Segment(segment.observation[:, :1], *(leaf[:, :0] for leaf in segment[1:])),
            uniform(64, 1, model.noise_dim).float(),
        ).items()
    }
    noise = uniform(64, 4, model.noise_dim).float()
    shares = []
    for actions in (segment.action, segment.action.roll(1, 0)):
        states, _ = imagine(model, state, actions, noise)
        decoded = model.decode({key: leaf.flatten(0, 1) for key, leaf in states.items()})
        found = cell(decoded).unflatten(0, (64, 4))
        shares.append(float((found == place[:, 1:]).float().mean()))
    assert shares[0] > 0.95
    assert shares[1] < 0.7


UPDATES = 80
