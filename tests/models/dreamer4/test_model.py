"""Dreamer 4 against the published equations, its window, and its cached step."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dreamgym.models import Dreamer4, Dreamer4Config, Segment, filter_states
from dreamgym.models.base import select
from dreamgym.models.dreamer4 import Dreamer4Objective
from dreamgym.models.dreamer4.modules import Level, Tokenizer
from dreamgym.models.nn.block_causal import TimeAttention
from dreamgym.models.nn.distributions import normal
from dreamgym.models.splitmix import uniforms
from tests.small_worlds import STATISTICS

VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
SMALL = Dreamer4Config(
    patch=4, latents=4, channels=3, packing=2, tokenizer_width=16, tokenizer_blocks=1, context=2,
    width=16, blocks=4, time_every=2, heads=2, finest=8, steps=4,
    objective=Dreamer4Objective(image_size=8, bootstrapped=0.5),
)  # fmt: skip
WINDOW = 4
ROWS, STEPS, LENGTH = 6, 10, 7
NUMBERS = 2 * 6


def a_model(
    config: Dreamer4Config = SMALL, action: gym.Space | None = None, space: gym.Space = VECTOR
) -> Dreamer4:
    torch.manual_seed(0)
    model = Dreamer4(space, action or gym.spaces.Discrete(3), config)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.05, 0.3)
    return model.eval().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_segment(rows: int = ROWS, length: int = LENGTH, space: gym.Space = VECTOR) -> Segment:
    observation = 3 * random(rows, length + 1, 4) - 1.5
    if space is IMAGE:
        observation = (256 * random(rows, length + 1, *IMAGE.shape)).to(torch.uint8)
    return Segment(
        observation,
        (3 * random(rows, length, seed=1)).long(),
        random(rows, length, seed=2),
        random(rows, length, seed=3) < 0.3,
        torch.ones(rows, length, dtype=torch.bool),
    )


# ---------------------------------------------------------------- the published equations


def test_the_loss_of_the_dynamics_is_the_published_one():
    """Shortcut forcing (arXiv 2509.24527), in velocities and one observation at a time."""
    model, segment = a_model().double(), a_segment()
    mask = segment.mask.clone()
    mask[0, 2:] = False
    segment, noise = segment._replace(mask=mask), random(ROWS, LENGTH + 1, NUMBERS).double()
    _, terms = model.loss(segment, noise)

    u = uniforms((noise[..., 0] * 2**24).long(), 3).double()
    z1 = model.tokenizer.encode(model.tokenizer.targets(segment.observation))
    z0 = normal(noise).unflatten(-1, (2, 6))
    actions = torch.zeros(ROWS, LENGTH + 1, 3).double()
    actions[:, 1:] = torch.nn.functional.one_hot(segment.action, 3)
    known = torch.ones(ROWS, LENGTH + 1, dtype=torch.bool)
    d, tau = torch.full((ROWS, LENGTH + 1), 1 / 8), torch.zeros(ROWS, LENGTH + 1)
    for b in range(ROWS):
        for t in range(LENGTH + 1):
            if b < ROWS / 2:
                d[b, t] = [1 / 4, 1 / 2, 1][int(u[b, t, 0] * 3)]
            tau[b, t] = int(u[b, t, 1] / d[b, t]) * d[b, t]
    assert d.unique().tolist() == [1 / 8, 1 / 4, 1 / 2, 1]

    def f(noisy: Tensor, signal: Tensor, size: Tensor) -> Tensor:
        level = Level((8 * signal).long(), (8 * size).log2().round().long())
        return model.dynamics(noisy, level, actions, known)[0]

    def per(x: Tensor) -> Tensor:
        return x.double()[..., None, None]

    noisy = (1 - per(tau)) * z0 + per(tau) * z1
    predicted, total, real = f(noisy, tau, d), [], segment.mask
    half = torch.where(d > 1 / 8, d / 2, d)
    b1 = (f(noisy, tau, half) - noisy) / (1 - per(tau))
    moved, later = noisy + b1 * per(half), torch.where(d > 1 / 8, tau + half, tau)
    b2 = (f(moved, later, half) - moved) / (1 - per(later))
    for b in range(ROWS):
        for t in range(LENGTH + 1):
            if t and not real[b, t - 1]:
                continue
            left = 1 - tau[b, t]
            if d[b, t] == 1 / 8:
                error = (predicted[b, t] - z1[b, t]).square().sum()
            else:
                velocity = (predicted[b, t] - noisy[b, t]) / left
                error = left**2 * (velocity - (b1 + b2)[b, t] / 2).square().sum()
            total.append((0.9 * tau[b, t] + 0.1) * error)
    expected = torch.stack(total).mean()
    torch.testing.assert_close(terms["dynamics"].double(), expected, rtol=1e-6, atol=1e-6)


def test_attention_over_time_is_the_published_one():
    """Rotary places, normalised queries and keys, and a soft cap, written out."""
    torch.manual_seed(0)
    layer = TimeAttention(8, 2).double().requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 1.0, 2.0)
    x, context = random(1, 5, 3, 8).double(), 2
    got, (keys, _) = layer(x, context, None, torch.ones(1, 5, dtype=torch.bool))
    assert keys.shape == (1, 3, 2, 5, 4)

    def unit(v: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
        return v / (v.square().mean() + norm.eps).sqrt() * norm.weight

    def turned(v: Tensor, place: int) -> Tensor:
        pairs = torch.complex(v[:2], v[2:]) * torch.exp(
            1j * place * torch.tensor([1.0, 10_000**-0.5]).double()
        )
        return torch.cat([pairs.real, pairs.imag])

    for s in range(3):
        rows = [
            (layer.project.weight @ unit(x[0, t, s], layer.norm)).view(3, 2, 4) for t in range(5)
        ]
        for t in range(5):
            mixed = []
            for head in range(2):
                query, scores = turned(unit(rows[t][0, head], layer.norm_query), t), []
                seen = range(max(0, t - context), t + 1)
                for j in seen:
                    key = turned(unit(rows[j][1, head], layer.norm_key), j)
                    scores.append(50 * torch.tanh(query @ key / 2 / 50))
                weights = torch.stack(scores).softmax(0)
                mixed.append(sum(w * rows[j][2, head] for w, j in zip(weights, seen, strict=True)))
            expected = x[0, t, s] + layer.out.weight @ torch.cat(mixed)
            torch.testing.assert_close(got[0, t, s], expected, rtol=1e-5, atol=1e-5)


def test_the_token_of_the_features_is_seen_by_no_other():
    model = a_model()
    z, actions = random(2, 3, 2, 6), random(2, 3, 3)
    level = Level(*torch.ones(2, 2, 3, dtype=torch.int64))
    known = torch.ones(2, 3, dtype=torch.bool)
    before, h, _ = model.dynamics(z, level, actions, known)
    model.dynamics.learnt[-1] += 1
    after, other, _ = model.dynamics(z, level, actions, known)
    assert torch.equal(before, after)
    assert (h != other).any(-1).all()
    moved = model.dynamics(z, level, actions + 1, known)[1]
    assert (moved != other).any(-1).all()


def test_patches_are_parts_of_the_image_and_hidden_ones_have_no_influence():
    model = a_model(space=IMAGE).tokenizer
    image = random(2, 3, 8, 8)
    patches = model._patches(image)
    assert torch.equal(patches[:, 1], image[:, :, :4, 4:].flatten(1))
    assert torch.equal(model._image(patches, 3, 2, 2), image)
    changed = image.clone()
    changed[:, :, :4, 4:] = 0.7
    hidden = torch.tensor([[False, True, False, False]]).expand(2, -1)
    assert torch.equal(model.encode([image], hidden), model.encode([changed], hidden))
    assert not torch.equal(model.encode([image]), model.encode([changed]))
    assert model.encode([image]).abs().max() <= 1


def test_latents_of_the_tokenizer_see_everything_and_patches_see_no_latents():
    model = Tokenizer(IMAGE, SMALL)
    assert model.allowed[:4].all()
    assert not model.allowed[4:, :4].any()
    assert model.allowed[4:, 4:].all()


def test_the_tokenizer_comes_first_and_is_then_frozen():
    model = a_model(replace(SMALL, tokenizer_updates=2)).train().requires_grad_(True)
    segment, noise = a_segment(), random(ROWS, LENGTH + 1, NUMBERS)
    trained = []
    for _ in range(3):
        model.zero_grad()
        total, terms = model.loss(segment, noise)
        total.backward()
        model.after_update()
        trained.append({n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None})
        assert terms
    assert trained == [{"tokenizer"}] * 2 + [{"dynamics", "reward", "termination"}]
    assert {*model.eval().loss(segment, noise)[1]} == {
        "vector", "dynamics", "reward", "termination"
    }  # fmt: skip
    assert model.phase_starts == (2,)


# ---------------------------------------------------------------- a step


def test_a_step_denoises_in_equal_parts_and_predicts_what_the_loss_computes():
    model, segment, noise = a_model(), a_segment(), random(ROWS, LENGTH + 1, NUMBERS)
    states = filter_states(model, segment, noise)
    z = model.tokenizer.encode(model.tokenizer.targets(segment.observation))
    assert torch.equal(states["z"][:, :, -1], z)
    assert states["z"].shape[2] == model.config.window == WINDOW
    actions = torch.zeros(ROWS, LENGTH + 1, 3)
    actions[:, 1:] = torch.nn.functional.one_hot(segment.action, 3)
    known, ones = (
        torch.ones(ROWS, LENGTH + 1, dtype=torch.bool),
        torch.ones(ROWS, LENGTH + 1).long(),
    )
    _, h, _ = model.dynamics(z, Level(7 * ones, 0 * ones), actions, known)
    # Episodes are longer than the window, which is all that an output depends on.
    torch.testing.assert_close(states["h"], h, rtol=1e-4, atol=1e-4)

    t = LENGTH - 1
    state = {key: leaf[:, t] for key, leaf in states.items()}
    following, prediction = model.step(state, segment.action[:, t], noise[:, 0], 0.5)
    drawn = normal(noise[:, 0]).view(ROWS, 2, 6) * 0.5**0.5
    for k in range(4):
        noisy = torch.cat([z[:, : t + 1], drawn.unsqueeze(1)], 1)
        signal, step = 7 * ones, 0 * ones
        signal[:, -1], step[:, -1] = 2 * k, 1
        predicted = model.dynamics(noisy, Level(signal, step), actions, known)[0][:, -1]
        drawn = drawn + (predicted - drawn) / (1 - k / 4) / 4
    torch.testing.assert_close(following["z"][:, -1], drawn.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    ended = torch.cat([z[:, : t + 1], drawn.clamp(-1, 1).unsqueeze(1)], 1)
    h = model.dynamics(ended, Level(7 * ones, 0 * ones), actions, known)[1][:, -1]
    torch.testing.assert_close(following["h"], h, rtol=1e-4, atol=1e-4)
    inside = prediction.termination != 1
    torch.testing.assert_close(
        prediction.reward[inside], model.reward.predict(h)[inside], rtol=1e-4, atol=1e-4
    )


def test_observations_that_are_not_there_have_no_influence():
    model, segment, noise = a_model(), a_segment(), random(ROWS, LENGTH + 1, NUMBERS)
    states = filter_states(model, segment, noise)
    state = {key: leaf[:, 1].clone() for key, leaf in states.items()}
    expected, _ = model.step(state, segment.action[:, 1], noise[:, 2])
    state["z"][:, :-2], state["actions"][:, :-2] = 0.7, 7.0
    got, _ = model.step(state, segment.action[:, 1], noise[:, 2])
    torch.testing.assert_close(model.features(got), model.features(expected))


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vectors", "images"])
@torch.no_grad()
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(space, monkeypatch):
    config = replace(SMALL, range_margin=None)
    model = a_model(config, gym.spaces.Box(-1.0, 1.0, (2,), np.float32), space)
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    segment = a_segment(space=space)
    starts = model.observe(
        model.initial(ROWS), torch.zeros(ROWS, 2), segment.observation[:, 0], random(ROWS, NUMBERS)
    )
    recomputed = []
    before = type(model).before
    monkeypatch.setattr(
        type(model),
        "before",
        lambda self, state: (recomputed.append(len(state["z"])), before(self, state))[1],
    )
    plain_state = fast_state = starts
    for t in range(STEPS):
        action, noise = 2 * random(ROWS, 2, seed=t) - 1, random(ROWS, NUMBERS, seed=100 + t)
        fast_state, fast_prediction = fast.step(fast_state, action, noise, 0.8)
        expected = [ROWS] if not t else [1] * ((t - 1) % (ROWS + 2) < ROWS)
        assert recomputed == expected, "only rows that were reset are computed again"
        plain_state, prediction = model.step(plain_state, action, noise, 0.8)
        recomputed.clear()
        torch.testing.assert_close(fast_state, plain_state, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(fast_prediction, prediction, rtol=1e-3, atol=1e-3)
        reset = torch.arange(ROWS) == t % (ROWS + 2)
        plain_state = select(reset, starts, plain_state)
        fast_state = select(reset, starts, fast_state)
        # The caller may change what it was given.
        fast_state["h"] += 0.0
    assert plain_state["length"].unique().numel() > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 12, "heads": 4}, "heads=4"),
        ({"packing": 3}, "packing=3"),
        ({"finest": 6}, "finest=6"),
        ({"steps": 16}, "steps=16"),
        ({"time_every": 3}, "time_every=3"),
    ],
)
def test_settings_that_make_no_model_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Dreamer4Config(**given)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="8 pixels cannot be cut into patches of 3"):
        Dreamer4(IMAGE, gym.spaces.Discrete(2), replace(SMALL, patch=3))


# ---------------------------------------------------------------- a fit


def a_lesson(seed: int) -> Segment:
    """Return episodes that show the last action, and reward the one before the last."""
    action = torch.randint(0, 3, (16, LENGTH), generator=torch.Generator().manual_seed(seed))
    observation = torch.zeros(16, LENGTH + 1, 4)
    observation[:, 1:, 0] = action - 1.0
    reward = torch.nn.functional.pad(action[:, :-1] - 1.0, (1, 0))
    ended = torch.zeros(16, LENGTH, dtype=torch.bool)
    return Segment(observation, action, reward, ended, ~ended)


def test_a_short_fit_learns_to_draw_observations_and_delayed_rewards():
    objective = Dreamer4Objective(rewards="raw", vectors="raw")
    config = replace(SMALL, width=32, blocks=2, context=3, range_margin=None, objective=objective)
    torch.manual_seed(0)
    model = Dreamer4(VECTOR, gym.spaces.Discrete(3), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for k in range(100):
        loss, _ = model.loss(a_lesson(k), random(16, LENGTH + 1, NUMBERS, seed=k))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    model.eval().requires_grad_(False)
    lesson, noise = a_lesson(10_000), random(16, LENGTH + 1, NUMBERS)
    states = filter_states(model, lesson, noise)
    rewards, drawn = [], []
    for t in range(1, LENGTH):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        following, prediction = model.step(state, lesson.action[:, t], noise[:, t])
        rewards.append((prediction.reward - lesson.reward[:, t]).square())
        drawn.append((model.decode(following)[:, 0] - lesson.observation[:, t + 1, 0]).square())
    assert torch.stack(rewards).mean() < 0.2 * lesson.reward[:, 1:].var()
    assert torch.stack(drawn).mean() < 0.2 * lesson.observation[:, 1:, 0].var()
