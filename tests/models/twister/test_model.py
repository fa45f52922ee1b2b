"""TWISTER against the published sizes and equations, its window, and its cached step."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dreamgym.models import TWISTER, Segment, TWISTERConfig, filter_states
from dreamgym.models.base import select
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.nn.augment import random_resized_crop
from dreamgym.models.nn.distributions import symlog
from dreamgym.models.splitmix import uniforms
from dreamgym.models.twister import TWISTERObjective
from dreamgym.models.twister.model import info_nce
from tests.small_worlds import STATISTICS

VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
LOSSES = TWISTERObjective(
    image_size=8, vectors="symlog", rewards="symlog-two-hot", bins=7, vector=1.0, dyn=0.5, rep=0.1,
    free_nats=1.0, contrastive_steps=3, contrastive=0.7, contrastive_decay=0.75,
)  # fmt: skip
SMALL = TWISTERConfig(
    context=2, width=12, blocks=2, heads=3, mlp=10, stoch=5, classes=6, units=8, layers=1,
    image_depth=2, objective=LOSSES,
)  # fmt: skip
PUBLISHED = replace(SMALL, pre_norm=False)
WINDOW = 5
ROWS, STEPS, LENGTH = 6, 14, 8


def a_model(
    config: TWISTERConfig = SMALL, action: gym.Space | None = None, space: gym.Space = VECTOR
) -> TWISTER:
    torch.manual_seed(0)
    model = TWISTER(space, action or gym.spaces.Discrete(3), config)
    model.set_statistics(STATISTICS)
    return model.eval().requires_grad_(False)


def spread(model: TWISTER) -> TWISTER:
    """Give every weight a value that has an influence, in float64."""
    for parameter in model.double().parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.5)
    return model


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


def padded(segment: Segment) -> Segment:
    """Return a segment whose first two rows end early."""
    mask = segment.mask.clone()
    mask[0, 1:], mask[1, 4:] = False, False
    return segment._replace(mask=mask)


def test_the_published_size_has_the_parameters_of_the_published_code():
    """All networks of the world model, for images of 64 by 64 and 18 actions."""
    with torch.device("meta"):
        image = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        model = TWISTER(image, gym.spaces.Discrete(18), TWISTER.presets["twister"])
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert sum(p.numel() for p in model.parameters()) == 41_581_699
    assert counts["transformer"] + counts["prior"] + len(model.first) == 10_789_376
    assert counts["senses"] + counts["posterior"] == 4_885_952 + 4_888_515
    assert (counts["reward"], counts["termination"]) == (1_181_439, 1_051_137)
    assert counts["predictors"] == 18_785_280
    assert model.feature_dim == 1024 + 512
    assert model.noise_dim == 32
    assert model.config.window == 4 * 8 + 1


# ---------------------------------------------------------------- the published equations


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def wave(distance: int, width: int) -> Tensor:
    """Return the sinusoidal encoding of a distance (arXiv 1706.03762, section 3.5)."""
    pairs = [distance / 10_000 ** (2 * (i // 2) / width) for i in range(width)]
    return torch.tensor(
        [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(pairs)], dtype=torch.float64
    )


def reference(model: TWISTER, z: Tensor, action: Tensor) -> Tensor:
    """Return h (T, width) of one sequence, written out; arXiv 1901.02860, section 3.3."""
    net, config = model.transformer, model.config
    size = config.width // config.heads
    first, first_norm, _, second, second_norm = net.mix
    hidden = norm(torch.cat([z, action], -1) @ first.weight.T, first_norm)
    x = norm(hidden * hidden.sigmoid() @ second.weight.T, second_norm)
    for block in net.blocks:
        attention, outputs = block.attention, []
        inputs = norm(x, attention.norm) if config.pre_norm else x
        query, key, value = (p(inputs) for p in (attention.query, attention.key, attention.value))
        for t in range(len(x)):
            mixed = []
            for head in range(config.heads):
                part, scores = slice(head * size, (head + 1) * size), []
                seen = range(max(0, t - config.context), t + 1)
                for j in seen:
                    at = attention.distance(wave(t - j, config.width))[part]
                    content = (query[t, part] + attention.by_content[head]) @ key[j, part]
                    place = (query[t, part] + attention.by_distance[head]) @ at
                    scores.append((content + place) / size**0.5)
                mixed.append(torch.stack(scores).softmax(0) @ value[seen.start : t + 1, part])
            y = x[t] + attention.out(torch.cat(mixed))
            y = y if config.pre_norm else norm(y, attention.norm)
            inner = norm(y, block.norm) if config.pre_norm else y
            y = y + block.narrow(block.widen(inner).relu())
            outputs.append(y if config.pre_norm else norm(y, block.norm))
        x = torch.stack(outputs)
    return x


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["pre-norm", "published"])
def test_the_transformer_is_the_published_one(config):
    model = spread(a_model(config))
    z = model.latent.one_hot((6 * random(1, 9, 5)).long()).double()
    action = random(1, 9, 3).double()
    got = model.transformer(z, action)[0]
    torch.testing.assert_close(got, reference(model, z[0], action[0]), rtol=1e-6, atol=1e-6)


def contrastive(model: TWISTER, segment: Segment, noise: Tensor) -> Tensor:
    """Return the contrastive loss (AC-CPC), summed over single pairs as in arXiv 2503.04416."""
    objective, stoch = model.config.objective, model.config.stoch
    is_image = segment.observation.dtype == torch.uint8
    drawn = uniforms((noise[..., 0] * 2**24).long(), 2 * stoch + 4 * is_image).double()
    u = model._unroll(segment, noise)
    imagined = model.latent.one_hot(model.latent.draw(u.prior, drawn[..., :stoch])).double()
    views = u.targets[0]
    if is_image:
        views = random_resized_crop(views, drawn[..., 2 * stoch :], objective.smallest_crop)
    seen = model.posterior(model.senses.encode([views]))
    seen = model.latent.one_hot(model.latent.draw(seen, drawn[..., stoch : 2 * stoch])).double()
    actions = torch.nn.functional.one_hot(segment.action, 3).double()
    real = torch.cat([torch.ones(len(noise), 1, dtype=torch.bool), segment.mask], 1)
    weights, total = [0.75**k for k in range(objective.contrastive_steps)], 0.0
    for k, weight in enumerate(weights):
        of_features, of_latents = model.predictors.of_features[k], model.predictors.of_latents[k]
        pairs = [
            (b, t) for b in range(len(noise)) for t in range(noise.shape[1] - k) if real[b, t + k]
        ]
        others = torch.stack([of_latents(seen[b, t + k]) for b, t in pairs])
        losses = []
        for own, (b, t) in enumerate(pairs):
            parts = [imagined[b, t], u.h[b, t], *(actions[b, t + i] for i in range(k))]
            alike = (others @ of_features(torch.cat(parts))).exp()
            losses.append(-(alike[own] / alike.sum()).log())
        total = total + weight / sum(weights) * torch.stack(losses).mean()
    return total


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vectors", "images"])
def test_the_contrastive_loss_is_that_of_single_pairs(space, monkeypatch):
    model = spread(a_model(PUBLISHED, space=space))
    targets = model.senses.targets
    monkeypatch.setattr(model.senses, "targets", lambda seen: [x.double() for x in targets(seen)])
    for predictor in model.predictors.parameters():
        torch.nn.init.normal_(predictor, 0.0, 0.3)
    segment, noise = padded(a_segment(space=space)), random(ROWS, LENGTH + 1, 5).double()
    _, terms = model.loss(segment, noise)
    expected = contrastive(model, segment, noise)
    torch.testing.assert_close(terms["contrastive"].double(), expected, rtol=1e-6, atol=1e-6)
    chance = math.log(ROWS * (LENGTH + 1))
    assert abs(float(expected) - chance) > 1e-3


def test_padding_is_nothing_to_be_told_apart_from():
    predicted, actual, mask = random(3, 4, 5), random(3, 4, 5, seed=1), random(3, 4, seed=2) < 0.6
    kept = [info_nce(predicted, torch.where(mask.unsqueeze(-1), actual, x), mask) for x in (0, 9.0)]
    assert torch.equal(kept[0][mask], kept[1][mask])
    assert info_nce(predicted, actual, torch.zeros_like(mask)).isfinite().all()


def test_the_loss_is_the_published_one():
    """Summed squared errors, two-hot symlog rewards, free nats of each step, AC-CPC."""
    model = spread(a_model(PUBLISHED))
    segment, noise = a_segment(), random(ROWS, LENGTH + 1, 5).double()
    total, terms = model.loss(segment, noise)

    observation = symlog(segment.observation.double())
    posterior = model.posterior(model.senses.encode([observation]))
    p = 0.99 * posterior.unflatten(-1, (5, 6)).softmax(-1) + 0.01 / 6
    classes = (noise.unsqueeze(-1) >= p.cumsum(-1)[..., :-1]).sum(-1)
    z = model.latent.one_hot(classes).double()
    first = model.latent.one_hot(model.prior(model.first).unflatten(-1, (5, 6)).argmax(-1))
    tokens = torch.cat([first.double().expand(ROWS, 1, -1), z[:, :-1]], 1)
    actions = torch.nn.functional.one_hot(segment.action, 3).double()
    actions = torch.cat([torch.zeros(ROWS, 1, 3), actions], 1).double()
    h = torch.stack([reference(model, *row) for row in zip(tokens, actions, strict=True)])
    q = 0.99 * model.prior(h).unflatten(-1, (5, 6)).softmax(-1) + 0.01 / 6
    kl = (p * (p / q).log()).sum((-1, -2)).clamp(min=1.0).mean()
    features = torch.cat([z, h], -1)[:, 1:]
    squares = (model.senses.decode_vectors(z) - observation).square()
    bins = torch.linspace(-20, 20, 7, dtype=torch.float64)
    target = symlog(segment.reward.double()).unsqueeze(-1)
    weights = (1 - (target - bins).abs() / (bins[1] - bins[0])).clamp(min=0)
    reward = -(weights * model.reward.net(features).log_softmax(-1)).sum(-1).mean()
    logit = model.termination(features).squeeze(-1)
    ends = torch.where(segment.terminated, logit.sigmoid(), 1 - logit.sigmoid())
    expected = squares.sum(-1).mean() + reward - ends.log().mean() + (0.5 + 0.1) * kl
    expected = expected + 0.7 * contrastive(model, segment, noise)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert terms["kl"] > 0


def test_weights_of_the_steps_sum_to_one():
    weights = TWISTER.presets["twister"].objective.step_weights
    assert len(weights) == 10
    assert sum(weights) == pytest.approx(1)
    assert [b / a for a, b in itertools.pairwise(weights)] == pytest.approx([0.75] * 9)


def test_a_segment_shorter_than_the_contrastive_steps_has_a_loss():
    total, terms = a_model().loss(a_segment(length=1), random(ROWS, 2, 5))
    assert total.isfinite()
    assert terms["contrastive"] > 0


def test_without_the_contrastive_loss_there_are_no_networks_for_it():
    model = a_model(replace(SMALL, objective=replace(LOSSES, contrastive=0.0))).train()
    model.requires_grad_(True)
    total, terms = model.loss(a_segment(), random(ROWS, LENGTH + 1, 5))
    total.backward()
    assert "contrastive" not in terms
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- the window


def test_a_step_predicts_from_what_the_loss_computes_in_episodes_longer_than_the_window():
    model, segment, noise = a_model(), a_segment(length=12), random(ROWS, 13, 5)
    unrolled, states = model._unroll(segment, noise), filter_states(model, segment, noise)
    assert states["length"][0].tolist() == [2, 3, 4, *[WINDOW] * 10]
    assert states["latents"].shape[2] == model.config.window == WINDOW
    torch.testing.assert_close(states["h"], unrolled.h)
    assert torch.equal(model.latent.one_hot(states["latents"][:, :, -1]), unrolled.z.round())
    for t in range(12):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        following, prediction = model.step(state, segment.action[:, t], noise[:, t])
        torch.testing.assert_close(following["h"], unrolled.h[:, t + 1])
        drawn = model.latent.draw(unrolled.prior[:, t + 1], noise[:, t])
        assert torch.equal(following["latents"][:, -1].long(), drawn)
        features = torch.cat([model.latent.one_hot(drawn), unrolled.h[:, t + 1]], -1)
        torch.testing.assert_close(prediction.reward, model.reward.predict(features))


def test_tokens_that_are_not_set_have_no_influence():
    model, segment, noise = a_model(), a_segment(), random(ROWS, LENGTH + 1, 5)
    states = filter_states(model, segment, noise)
    state = {key: leaf[:, 1].clone() for key, leaf in states.items()}
    expected, _ = model.step(state, segment.action[:, 1], noise[:, 2])
    state["latents"][:, :-3], state["actions"][:, :-3] = 3, 7.0
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    for form in (model, fast):
        got, _ = form.step(state, segment.action[:, 1], noise[:, 2])
        torch.testing.assert_close(model.features(got), model.features(expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 4}, "heads=4"),
        ({"classes": 300}, "classes=300"),
        ({"context": 0}, "context=0"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_make_no_model_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TWISTERConfig(**given)


@pytest.mark.parametrize(
    "given",
    [{"contrastive_steps": 0}, {"contrastive_decay": 0.0}, {"smallest_crop": 1.5}],
)
def test_losses_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        TWISTERObjective(**given)


# ---------------------------------------------------------------- the cached step


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["pre-norm", "published"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(config, cached):
    model = spread(a_model(config, gym.spaces.Box(-1.0, 1.0, (2,), np.float32))).float()
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    starts = model.observe(
        model.initial(ROWS), torch.zeros(ROWS, 2), random(ROWS, 4), random(ROWS, 5)
    )
    plain_state = fast_state = starts
    for t in range(STEPS):
        action, noise = 2 * random(ROWS, 2, seed=t) - 1, random(ROWS, 5, seed=100 + t)
        plain_state, prediction = model.step(plain_state, action, noise, 0.8)
        if cached:
            fast_state, fast_prediction = fast.step(fast_state, action, noise, 0.8)
        else:
            with forbid_host_sync():
                fast_state, fast_prediction = fast.step(fast_state, action, noise, 0.8)
        torch.testing.assert_close(fast_state, plain_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast_prediction, prediction, rtol=1e-4, atol=1e-4)
        reset = torch.arange(ROWS) == t % (ROWS + 2)
        plain_state = select(reset, starts, plain_state)
        fast_state = select(reset, starts, fast_state)
    assert plain_state["length"].unique().numel() > 1


def test_keys_are_computed_once_and_the_state_alone_decides(monkeypatch):
    model = a_model()
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    filled = []
    fill = type(fast)._fill
    monkeypatch.setattr(
        type(fast), "_fill", lambda self, *args: (filled.append(len(args[-1])), fill(self, *args))
    )
    states, noise = filter_states(model, a_segment(), random(ROWS, LENGTH + 1, 5)), random(ROWS, 5)
    state = early = {key: leaf[:, 2] for key, leaf in states.items()}
    action = a_segment().action[:, 0]
    with torch.inference_mode():
        first, _ = fast.step(early, action, noise)
    state = dict(first)
    for _ in range(4):
        state, _ = fast.step(state, action, noise)
    assert filled == [ROWS]
    # The caller may change what it was given.
    state["latents"][0] = early["latents"][0]
    state["h"] += 1
    changed, _ = fast.step(state, action, noise)
    expected, _ = model.step(state, action, noise)
    torch.testing.assert_close(changed, expected)
    assert filled == [ROWS, 1]
    again, _ = fast.step(early, action, noise)
    torch.testing.assert_close(again, dict(first))


def test_gradients_reach_the_actions_through_the_fast_form():
    model = a_model(SMALL, gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    action = torch.zeros(ROWS, 2, requires_grad=True)
    state = model.initial(ROWS)
    gradients = []
    for form in (model, fast):
        state = model.observe(
            model.initial(ROWS), torch.zeros(ROWS, 2), random(ROWS, 4), random(ROWS, 5)
        )
        for t in range(2):
            state, prediction = form.step(state, action, random(ROWS, 5, seed=t))
        gradients += torch.autograd.grad(
            state["h"].square().sum() + prediction.termination.sum(), action
        )
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------- a fit


def a_lesson(seed: int) -> Segment:
    """Return episodes that show the last action, and reward the one before the last."""
    action = torch.randint(0, 3, (16, LENGTH), generator=torch.Generator().manual_seed(seed))
    observation = torch.zeros(16, LENGTH + 1, 4)
    observation[:, 1:, 0] = action - 1.0
    reward = torch.nn.functional.pad(action[:, :-1] - 1.0, (1, 0))
    ended = torch.zeros(16, LENGTH, dtype=torch.bool)
    return Segment(observation, action, reward, ended, ~ended)


def test_a_short_fit_learns_delayed_rewards_and_tells_observations_apart():
    objective = TWISTERObjective(rewards="raw", vectors="raw", contrastive_steps=3)
    model = a_model(replace(SMALL, width=24, mlp=32, objective=objective))
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for k in range(80):
        loss, _ = model.loss(a_lesson(k), random(16, LENGTH + 1, 5, seed=k))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    model.eval().requires_grad_(False)
    lesson, noise = a_lesson(10_000), random(16, LENGTH + 1, 5)
    _, terms = model.loss(lesson, noise)
    states = filter_states(model, lesson, noise)
    errors = []
    for t in range(1, LENGTH):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        _, prediction = model.step(state, lesson.action[:, t], noise[:, t], 0.1)
        errors.append((prediction.reward - lesson.reward[:, t]).square())
    assert torch.stack(errors).mean() < 0.2 * lesson.reward[:, 1:].var()
    # Among all observations of the batch, a third are like the right one: log 3 nats less.
    assert terms["contrastive"] < math.log(16 * (LENGTH + 1)) - 0.9
