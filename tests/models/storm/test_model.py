"""STORM against the published sizes and equations, its window, and its cached step."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dreamgym.models import STORM, Segment, STORMConfig, filter_states
from dreamgym.models.base import select
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.nn.distributions import TwoHot, symexp, symlog
from dreamgym.models.storm import STORMObjective
from dreamgym.models.storm.model import newest
from tests.small_worlds import STATISTICS

VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
SMALL = STORMConfig(
    context=4, width=12, blocks=2, heads=3, mlp=10, stoch=5, classes=6, units=8, layers=1
)
PUBLISHED = replace(SMALL, pre_norm=False)
ROWS, STEPS = 6, 14


def a_model(config: STORMConfig = SMALL, action: gym.Space | None = None) -> STORM:
    torch.manual_seed(0)
    model = STORM(VECTOR, action or gym.spaces.Discrete(3), config)
    model.set_statistics(STATISTICS)
    return model.eval().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_segment(rows: int = ROWS, length: int = 4) -> Segment:
    return Segment(
        3 * random(rows, length + 1, 4) - 1.5,
        (3 * random(rows, length, seed=1)).long(),
        random(rows, length, seed=2),
        random(rows, length, seed=3) < 0.3,
        torch.ones(rows, length, dtype=torch.bool),
    )


def test_the_published_size_has_the_parameters_of_the_published_code():
    """All networks of the world model, for images of 64 by 64 and 18 actions."""
    with torch.device("meta"):
        image = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        model = STORM(image, gym.spaces.Discrete(18), STORM.presets["storm"])
    assert sum(p.numel() for p in model.parameters()) == 16_513_155
    assert model.feature_dim == 1024 + 512
    assert model.noise_dim == 32


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def reference(model: STORM, z: Tensor, action: Tensor) -> Tensor:
    """Return h (T, width) of one sequence, written out as in arXiv 2310.09615, appendix A."""
    net, config = model.transformer, model.config
    size, outputs = config.width // config.heads, []
    first, first_norm, _, second, second_norm = net.mix
    e = torch.cat([z, action], -1) @ first.weight.T
    e = norm(norm(e, first_norm).relu() @ second.weight.T, second_norm)
    x = norm(e + net.position[: len(e)], net.norm)
    for block in net.blocks:
        attention, outputs = block.attention, []
        inputs = norm(x, attention.norm) if config.pre_norm else x
        for t in range(len(x)):
            mixed = []
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                query = attention.query.weight[part] @ inputs[t]
                keys = inputs[: t + 1] @ attention.key.weight[part].T
                values = inputs[: t + 1] @ attention.value.weight[part].T
                mixed.append((keys @ query / size**0.5).softmax(0) @ values)
            y = x[t] + attention.out.weight @ torch.cat(mixed)
            y = y if config.pre_norm else norm(y, attention.norm)
            inner = norm(y, block.norm) if config.pre_norm else y
            hidden = (block.widen.weight @ inner + block.widen.bias).relu()
            y = y + block.narrow.weight @ hidden + block.narrow.bias
            outputs.append(y if config.pre_norm else norm(y, block.norm))
        x = torch.stack(outputs)
    return x


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["pre-norm", "published"])
def test_the_transformer_is_the_published_one(config):
    model = a_model(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.5)
    z = model.latent.one_hot((6 * random(1, 4, 5)).long()).double()
    action = random(1, 4, 3).double()
    got = model.transformer(z, action)[0]
    torch.testing.assert_close(got, reference(model, z[0], action[0]), rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_published_one():
    """Equations 5 and 6: summed squared errors, two-hot symlog rewards, free nats of the mean."""
    objective = STORMObjective(
        vectors="symlog", rewards="symlog-two-hot", bins=7, vector=1.0, dyn=0.5, rep=0.1,
        free_nats=1.0, free_nats_of="batch",
    )  # fmt: skip
    model = a_model(replace(PUBLISHED, objective=objective)).double()
    torch.nn.init.normal_(model.reward.net[-1].weight)
    segment, noise = a_segment(), random(ROWS, 5, 5).double()
    total, terms = model.loss(segment, noise)

    posterior = model.posterior(model.senses.encode([symlog(segment.observation.double())]))
    p = 0.99 * posterior.unflatten(-1, (5, 6)).softmax(-1) + 0.01 / 6
    classes = (noise.unsqueeze(-1) >= p.cumsum(-1)[..., :-1]).sum(-1)
    z = model.latent.one_hot(classes).double()
    actions = torch.nn.functional.one_hot(segment.action, 3).double()
    h = torch.stack([reference(model, *row) for row in zip(z[:, :-1], actions, strict=True)])
    q = 0.99 * model.prior(h).unflatten(-1, (5, 6)).softmax(-1) + 0.01 / 6
    kl = (p[:, 1:] * (p[:, 1:] / q).log()).sum((-1, -2)).mean().clamp(min=1.0)
    squares = (model.senses.decode_vectors(z) - symlog(segment.observation.double())).square()
    bins = torch.linspace(-20, 20, 7, dtype=torch.float64)
    target = symlog(segment.reward.double()).unsqueeze(-1)
    weights = (1 - (target - bins).abs() / (bins[1] - bins[0])).clamp(min=0)
    reward = -(weights * model.reward.net(h).log_softmax(-1)).sum(-1).mean()
    logit = model.termination(h).squeeze(-1)
    ends = torch.where(segment.terminated, logit.sigmoid(), 1 - logit.sigmoid())
    expected = squares.sum(-1).mean() + reward - ends.log().mean() + (0.5 + 0.1) * kl
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    assert terms["kl"] > 0


def test_a_two_hot_number_in_symlog_is_the_symexp_of_the_mean():
    two_hot = TwoHot(255, in_symlog=True).double()
    values = torch.tensor([-1e4, -3.0, 0.0, 0.5, 700.0], dtype=torch.float64)
    weights = two_hot.encode(values)
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(two_hot.mean(weights.log()), values, rtol=1e-6, atol=1e-6)
    logits = random(3, 255).double()
    bins = torch.linspace(-20, 20, 255, dtype=torch.float64)
    torch.testing.assert_close(two_hot.mean(logits), symexp((logits.softmax(-1) * bins).sum(-1)))


def test_a_step_predicts_from_what_the_loss_computes():
    model, segment, noise = a_model(), a_segment(), random(ROWS, 5, 5)
    _, prior, h, _ = model._unroll(segment, noise)
    states = filter_states(model, segment, noise)
    for t in range(4):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        following, prediction = model.step(state, segment.action[:, t], noise[:, t])
        torch.testing.assert_close(following["h"], h[:, t])
        torch.testing.assert_close(prediction.reward, model.reward.predict(h[:, t]))
        drawn = model.latent.draw(prior[:, t], noise[:, t])
        assert torch.equal(newest(following, "latents").long(), drawn)
        # The filter has computed the same output from the same tokens.
        torch.testing.assert_close(states["h"][:, t + 1], h[:, t])


def test_a_full_window_loses_its_older_half():
    model, segment, noise = a_model(), a_segment(length=7), random(ROWS, 8, 5)
    states = filter_states(model, segment, noise)
    assert states["length"][0].tolist() == [1, 2, 3, 4, 3, 4, 3, 4]
    full, after = ({key: leaf[:, t] for key, leaf in states.items()} for t in (3, 4))
    assert torch.equal(after["latents"][:, :2], full["latents"][:, 2:])
    assert not after["latents"][:, 3:].any()
    actions = model.encode_action(segment.action[:, 2:4])
    assert torch.equal(after["actions"][:, :2], actions)
    # Positions begin anew: the next output is that of the three tokens alone.
    following, _ = model.step(after, segment.action[:, 4], noise[:, 0])
    z = model.latent.one_hot(after["latents"][:, :3])
    expected = model.transformer(z, model.encode_action(segment.action[:, 2:5]))[:, -1]
    torch.testing.assert_close(following["h"], expected)


def test_places_that_are_not_set_have_no_influence():
    model, segment, noise = a_model(), a_segment(), random(ROWS, 5, 5)
    states = filter_states(model, segment, noise)
    state = {key: leaf[:, 1].clone() for key, leaf in states.items()}
    expected, _ = model.step(state, segment.action[:, 1], noise[:, 2])
    state["latents"][:, 2:], state["actions"][:, 2:] = 3, 7.0
    got, _ = model.step(state, segment.action[:, 1], noise[:, 2])
    torch.testing.assert_close(model.features(got), model.features(expected))


def test_a_segment_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="segment_length=4"):
        a_model().loss(a_segment(length=5), random(ROWS, 6, 5))


@pytest.mark.parametrize("prepared", [False, True])
def test_dreams_use_no_position_that_the_fit_has_not_seen(prepared):
    model = a_model(replace(SMALL, context=8)).train()
    for length in (3, 2):
        model.loss(a_segment(length=length), random(ROWS, length + 1, 5))
    model.eval().loss(a_segment(length=5), random(ROWS, 6, 5))  # held-out data teaches nothing
    used = model.prepare(ROWS, torch.device("cpu"), torch.float32) if prepared else model
    state, lengths = model.initial(ROWS), []
    for t in range(6):
        state, _ = used.step(state, a_segment().action[:, 0], random(ROWS, 5, seed=t))
        lengths.append(int(state["length"].max()))
    assert max(lengths) == 3
    assert lengths[-1] >= 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 10, "heads": 4}, "heads=4"),
        ({"classes": 300}, "classes=300"),
        ({"context": 1}, "context=1"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_make_no_model_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        STORMConfig(**given)


# ---------------------------------------------------------------- the cached step


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["pre-norm", "published"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(config, cached):
    model = a_model(config, gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
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
        torch.testing.assert_close(fast_state, plain_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast_prediction, prediction, rtol=1e-4, atol=1e-5)
        reset = torch.arange(ROWS) == t % (ROWS + 2)
        plain_state = select(reset, starts, plain_state)
        fast_state = select(reset, starts, fast_state)
    assert plain_state["length"].unique().numel() > 1


def test_keys_are_computed_once_and_the_state_alone_decides(monkeypatch):
    model = a_model(replace(SMALL, context=8))
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    filled = []
    fill = type(fast)._fill
    monkeypatch.setattr(
        type(fast), "_fill", lambda self, *args: (filled.append(len(args[-1])), fill(self, *args))
    )
    states, noise = filter_states(model, a_segment(), random(ROWS, 5, 5)), random(ROWS, 5)
    state = early = {key: leaf[:, 2] for key, leaf in states.items()}
    action = a_segment().action[:, 0]
    with torch.inference_mode():
        first, _ = fast.step(early, action, noise)
    for _ in range(4):
        state, _ = fast.step(state, action, noise)
    assert filled == [ROWS]
    other = {key: leaf.flip(0) for key, leaf in early.items()}
    fast.step(other, action, noise)
    again, _ = fast.step(early, action, noise)
    torch.testing.assert_close(again, dict(first))


def test_gradients_reach_the_actions_through_the_fast_form():
    model = a_model(SMALL, gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    action = torch.zeros(ROWS, 2, requires_grad=True)
    state = model.initial(ROWS)
    for t in range(2):
        state, prediction = fast.step(state, action, random(ROWS, 5, seed=t))
    prediction.reward.sum().backward()
    assert action.grad.abs().sum() > 0
