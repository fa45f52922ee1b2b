"""TD-MPC2 against the published sizes and equations, and as the model of a planner."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import dreamgym
from dreamgym.models import TDMPC2, Acts, Decodes, Segment, TDMPC2Config, Values
from dreamgym.models.nn.distributions import normal, symexp, symlog
from dreamgym.models.splitmix import uniforms, words
from dreamgym.models.statistics import Moments
from dreamgym.train.planners import make_planner
from dreamgym.train.planners.registry import PLANNER_PRESETS
from tests.small_worlds import STATISTICS

VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
ARM = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))
SMALL = TDMPC2Config(latent=8, group=4, encoder=10, mlp=12, values=3, bins=9)
ROWS, LENGTH = 5, 3

ACTION_SPACES = {
    "box": ARM,
    "integers": gym.spaces.Box(-2, 5, (3,), np.int64),
    "one number": gym.spaces.Box(-1.0, 1.0, (), np.float32),
    "choice": gym.spaces.Discrete(4, start=-1),
    "choices": gym.spaces.MultiDiscrete([2, 4]),
}


def a_model(config: TDMPC2Config = SMALL, action: gym.Space = ARM) -> TDMPC2:
    torch.manual_seed(0)
    model = TDMPC2(VECTOR, action, config)
    model.set_statistics(STATISTICS)
    return model.eval()


def randomised(model: TDMPC2) -> TDMPC2:
    """Return the model in float64 with weights and targets that differ and are not small."""
    torch.manual_seed(1)
    for tensor in (*model.parameters(), *model.target.buffers()):
        torch.nn.init.normal_(tensor, 0.1, 0.4)
    return model.double()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_segment() -> Segment:
    action = torch.as_tensor(ARM.low) + random(ROWS, LENGTH, 2, seed=1) * 2
    return Segment(
        4 * random(ROWS, LENGTH + 1, 4) - 2,
        action.clamp(torch.as_tensor(ARM.low), torch.as_tensor(ARM.high)),
        3 * random(ROWS, LENGTH, seed=2) - 1,
        random(ROWS, LENGTH, seed=3) < 0.3,
        torch.ones(ROWS, LENGTH, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("name", "latent", "mlp", "count", "total"),
    [("tdmpc2-1m", 128, 384, 2, 1_198_257), ("tdmpc2-5m", 512, 512, 5, 4_932_704)],
)
def test_the_published_sizes_have_the_parameters_of_the_published_code(
    name, latent, mlp, count, total
):
    """For cartpole-swingup, with 5 numbers and one action, without the head of terminations."""
    space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
    with torch.device("meta"):
        action = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        model = TDMPC2(space, action, TDMPC2.presets[name])
    normed = lambda inputs, outputs: inputs * outputs + 3 * outputs  # noqa: E731
    dense = lambda inputs, outputs: inputs * outputs + outputs  # noqa: E731
    body = normed(latent + 1, mlp) + normed(mlp, mlp)
    parts = {
        "encoder": normed(5, 256) + normed(256, latent),
        "dynamics": body + normed(mlp, latent),
        "reward": body + dense(mlp, 101),
        "policy_net": normed(latent, mlp) + normed(mlp, mlp) + dense(mlp, 2),
        "q": count * (body + dense(mlp, 101)),
    }
    for part, expected in parts.items():
        assert sum(p.numel() for p in getattr(model, part).parameters()) == expected, part
    assert sum(parts.values()) == total
    assert sum(p.numel() for n, p in model.named_parameters() if "termination" not in n) == total


# ---------------------------------------------------------------- the loss


def layer_norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return centred / scale * layer.weight + layer.bias


def run(layers: torch.nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers as published: Mish after every norm but a last one, which has SimNorm."""
    layers = list(layers)
    for place, layer in enumerate(layers):
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.T + layer.bias
        elif isinstance(layer, torch.nn.LayerNorm):
            x = layer_norm(x, layer)
            if place + 2 < len(layers):
                x = x * (1 + x.exp()).log().tanh()
            else:
                groups = x.unflatten(-1, (-1, 4)).exp()
                x = (groups / groups.sum(-1, keepdim=True)).flatten(-2)
    return x


BINS = torch.linspace(-10, 10, 9, dtype=torch.float64)


def two_hot_loss(logits: Tensor, value: Tensor) -> Tensor:
    weights = (1 - (symlog(value).unsqueeze(-1) - BINS).abs() / 2.5).clamp(min=0)
    return -(weights * logits.log_softmax(-1)).sum(-1)


def mean_of(logits: Tensor) -> Tensor:
    return symexp((logits.softmax(-1) * BINS).sum(-1))


def squashed(model: TDMPC2, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = run(model.policy_net.net, z).chunk(2, -1)
    log_std = -10 + 6 * (raw.tanh() + 1)
    base = torch.distributions.Normal(mean, log_std.exp())
    before = mean + log_std.exp() * normal(noise)
    action = before.tanh()
    log_density = base.log_prob(before) - (1 - action.square() + 1e-6).log()
    return action, -log_density.sum(-1)


def test_the_loss_is_the_published_one():
    """Equations 3 to 6, with the coefficients of the published code, written as loops."""
    config = replace(SMALL, vectors="raw", range_margin=None, entropy=0.1)
    model, segment = randomised(a_model(config)), a_segment()
    segment = Segment(segment.observation.double(), segment.action.double(), *segment[2:])
    model.spread.fill_(1.7)
    model.updates.fill_(6)
    total, _ = model.loss(segment, torch.empty(ROWS, LENGTH + 1, 0))

    drawn = uniforms(words(torch.tensor(6), ROWS), 4 * (LENGTH + 1)).view(ROWS, LENGTH + 1, 4)
    drawn = drawn.double()
    pair = uniforms(torch.tensor(6), 3).argsort()[:2].tolist()
    action = model.encode_action(segment.action).double()
    real = run(model.encoder, segment.observation)
    join = lambda *leaves: torch.cat(leaves, -1)  # noqa: E731
    z, expected = real[:, 0], 0.0
    for t in range(LENGTH + 1):
        proposed, entropy = squashed(model, z.detach(), drawn[:, t, 2:])
        values = [run(model.q.networks[k], join(z, proposed)) for k in pair]
        gain = torch.stack([mean_of(logits) for logits in values]).mean(0) / 1.7 + 0.1 * entropy
        expected = expected - 0.5**t * gain.mean() / (LENGTH + 1)
        if t == LENGTH:
            break
        both = join(z, action[:, t])
        following, _ = squashed(model, real[:, t + 1], drawn[:, t + 1, :2])
        targets = [run(model.target.networks[k], join(real[:, t + 1], following)) for k in pair]
        least = torch.stack([mean_of(logits) for logits in targets]).amin(0)
        target = segment.reward[:, t] + 0.99 * ~segment.terminated[:, t] * least
        z = run(model.dynamics, both)
        losses = 20 * (z - real[:, t + 1]).square().mean(-1)
        losses = losses + 0.1 * two_hot_loss(run(model.reward, both), segment.reward[:, t])
        for network in model.q.networks:
            losses = losses + 0.1 * two_hot_loss(run(network, both), target) / 3
        logit = run(model.termination, join(both, z)).squeeze(-1)
        ended = segment.terminated[:, t].double()
        losses = losses - ended * logit.sigmoid().log() - (1 - ended) * (-logit).sigmoid().log()
        expected = expected + 0.5**t * losses.mean() / LENGTH
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_each_gradient_reaches_only_what_it_is_for():
    off = {"consistency": 0.0, "reward": 0.0, "value": 0.0, "termination": 0.0}
    for only, reached in {
        "policy": {"policy_net"},
        "consistency": {"encoder", "dynamics", "policy_net"},
        "value": {"encoder", "dynamics", "q", "policy_net"},
    }.items():
        weights = off | ({} if only == "policy" else {only: 1.0})
        model = a_model(replace(SMALL, range_margin=None, **weights))
        model.loss(a_segment(), torch.empty(ROWS, LENGTH + 1, 0))[0].backward()
        got = {n.split(".")[0] for n, p in model.named_parameters() if p.grad.abs().sum() > 0}
        assert got == reached, only


def test_targets_do_not_drop_out():
    model = a_model(replace(SMALL, dropout=0.5)).train()
    latent, action = torch.rand(8, SMALL.latent), model.encode_action(torch.zeros(8, 1))
    assert model.q.training
    torch.testing.assert_close(model.target(latent, action), model.target(latent, action))


def test_targets_and_the_spread_of_values_follow_slowly():
    model = a_model(replace(SMALL, target_rate=0.25)).train()
    assert not any(name.startswith("target") for name, _ in model.named_parameters())
    before = model.target.networks[0][0].weight.clone()
    with torch.no_grad():
        model.q.networks[0][0].weight += 1.0
        model.loss(a_segment(), torch.empty(ROWS, LENGTH + 1, 0))
        model.new_spread.fill_(5.0)
        model.after_update()
    torch.testing.assert_close(model.target.networks[0][0].weight, before + 0.25)
    assert model.spread == pytest.approx(2.0)
    assert model.updates == 1


def test_values_are_learnt_for_rows_that_end_and_rows_that_go_on():
    """Every reward is 1: the value is 1 where the first number is positive, elsewhere 2."""
    config = TDMPC2Config(
        latent=16, encoder=32, mlp=32, discount=0.5, target_rate=0.5, value=1.0, rho=1.0
    )
    model = TDMPC2(VECTOR, gym.spaces.Discrete(2), config).train()
    model.set_statistics(STATISTICS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for update in range(180):
        sign = (random(32, seed=update) < 0.5).float() * 2 - 1
        observation = sign.view(-1, 1, 1).expand(-1, 3, 4).contiguous()
        segment = Segment(
            observation,
            torch.zeros(32, 2, dtype=torch.int64),
            torch.ones(32, 2),
            (sign > 0).unsqueeze(1).expand(-1, 2),
            torch.ones(32, 2, dtype=torch.bool),
        )
        loss, _ = model.loss(segment, torch.empty(32, 3, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
    model.eval()
    with torch.no_grad():
        seen = torch.tensor([[1.0] * 4, [-1.0] * 4])
        action, noise = torch.zeros(2, dtype=torch.int64), torch.empty(2, 0)
        state = model.observe(model.initial(2), action, seen, noise)
        _, prediction = model.step(state, action, noise)
        value = model.value(state)
    assert prediction.termination[0] > 0.9
    assert prediction.termination[1] < 0.1
    assert value[0] == pytest.approx(1.0, abs=0.25)
    assert value[1] == pytest.approx(2.0, abs=0.25)


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize("name", ACTION_SPACES)
@torch.no_grad()
def test_the_policy_acts_within_every_space_and_uses_its_noise(name):
    space = ACTION_SPACES[name]
    model = randomised(a_model(action=space)).float()
    z = model.observe(model.initial(1), torch.zeros(1, *(space.shape or ())), random(1, 4), None)
    state = {"z": z["z"].expand(64, -1)}
    actions = model.policy(state, random(64, 1))
    dtype = torch.float32 if space.dtype == np.float32 else torch.int64
    assert actions.dtype == dtype
    assert actions.shape == (64, *(space.shape or ()))
    assert all(space.contains(np.asarray(row)) for row in actions.numpy().astype(space.dtype))
    assert len(actions.unique(dim=0)) > 1
    torch.testing.assert_close(model.policy(state, random(64, 1)), actions)


def test_a_number_that_never_changed_keeps_its_value():
    moments = Moments(
        mean=torch.tensor([1.0, 0.5]), std=torch.tensor([0.5, 0.2]),
        low=torch.tensor([1.0, 0.0]), high=torch.tensor([1.0, 1.0]),
        delta_std=torch.tensor([1.0, 1.0]),
    )  # fmt: skip
    model = a_model()
    model.set_statistics(STATISTICS._replace(action=moments))
    actions = model.policy({"z": random(8, 8)}, random(8, 1))
    assert actions.isfinite().all()
    assert (actions[:, 0] == actions[0, 0]).all()


def test_values_are_in_the_units_of_the_rewards():
    model = a_model()
    model.set_statistics(STATISTICS._replace(reward_std=torch.tensor(1e-3)))
    with torch.no_grad():
        for network in model.q.networks:
            network[-1].weight.zero_()
            network[-1].bias.copy_(torch.where(torch.arange(9) == 5, 50.0, 0.0))
    expected = 1e-3 * float(symexp(torch.tensor(2.5)))
    torch.testing.assert_close(model.value({"z": random(3, 8)}), torch.full((3,), expected))


@pytest.mark.parametrize(
    ("action", "planner"),
    [(ARM, "td-mpc2"), (gym.spaces.Discrete(4), "categorical-cem")],
    ids=["mppi", "categorical"],
)
def test_a_planner_takes_value_and_proposals_from_the_model(action, planner):
    model = a_model(action=action).requires_grad_(False)
    assert isinstance(model, Values)
    assert isinstance(model, Acts)
    config = PLANNER_PRESETS.get(planner)
    if config is not None:
        config = replace(config, discount=model.config.discount, candidates=32, elites=8)
    planner = make_planner(model, config or planner, value=model, proposal=model)
    state = {"z": model.encoder(random(2, 4))}
    plan = planner.plan(state, keys=torch.arange(2))
    assert plan.actions.shape[:2] == (2, planner.config.horizon)
    assert all(action.contains(first) for first in plan.actions[:, 0].numpy().astype(action.dtype))
    assert plan.value.isfinite().all()


# ---------------------------------------------------------------- settings and fits


def test_without_a_probe_dreams_have_no_observations():
    model = a_model(replace(SMALL, range_margin=None))
    assert not isinstance(model, Decodes)
    with pytest.raises(AttributeError, match="range_margin"):
        model.decode(model.initial(1))


def test_a_task_without_terminations_needs_no_head_for_them():
    model = a_model(replace(SMALL, termination=0.0))
    _, prediction = model.step({"z": random(3, 8)}, random(3, 2), torch.zeros(3, 0))
    assert torch.equal(prediction.termination, torch.zeros(3))
    _, terms = model.loss(a_segment(), torch.zeros(ROWS, LENGTH + 1, 0))
    assert "termination" not in terms
    assert not [name for name, _ in model.named_parameters() if "termination" in name]


def test_a_model_that_was_fitted_keeps_the_unit_of_its_rewards():
    model = a_model()
    small = STATISTICS._replace(reward_std=torch.tensor(1e-4))
    model.set_statistics(small)
    torch.testing.assert_close(model.unit, torch.tensor(1e-4))
    model.updates += 1
    model.set_statistics(STATISTICS)
    torch.testing.assert_close(model.unit, torch.tensor(1e-4))


def test_images_are_refused():
    image = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(TypeError, match="'camera' of the observation is an image"):
        TDMPC2(gym.spaces.Dict({"camera": image}), gym.spaces.Discrete(2), SMALL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latent": 10}, "group=8"),
        ({"bins": 100}, "bins=100"),
        ({"discount": 0.0}, "discount"),
        ({"dropout": 1.0}, "dropout"),
        ({"value": -1.0}, "value"),
    ],
)
def test_settings_that_make_no_model_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TDMPC2Config(**given)


def test_a_fit_keeps_the_last_weights_and_the_encoder_has_its_own_rate(tmp_path):
    dreamgym.record("Pendulum-v1", steps=400, out=tmp_path / "data.h5", seed=0, progress=None)
    config = dreamgym.default_config(
        "tdmpc2", updates=6, evaluate_every=2, batch_size=8, model=replace(SMALL, encoder_rate=1e-9)
    )
    before = TDMPC2(
        gym.spaces.Box(-1.0, 1.0, (3,), np.float32), gym.spaces.Box(-2.0, 2.0, (1,)), SMALL
    )
    world = dreamgym.fit(tmp_path / "data.h5", family="tdmpc2", config=config)
    assert world.model.updates == 6
    weight = world.model.encoder[0].weight
    assert weight.shape == before.encoder[0].weight.shape
    assert world.model.dynamics[0].bias.abs().max() > 1e-4
    assert world.model.encoder[0].bias.abs().max() < 1e-6
