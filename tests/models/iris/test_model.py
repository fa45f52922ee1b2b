"""IRIS against the published sizes and equations, its window, its cached step, and its phases."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dreamgym
from dreamgym.errors import FitError
from dreamgym.models import IRIS, IRISConfig, Segment, filter_states
from dreamgym.models.base import select
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.iris import QuantiserConfig, TokenObjective, TransformerConfig
from dreamgym.models.nn.image_tokens import Tokeniser
from dreamgym.models.nn.quantisers import Codebook, FiniteScalars
from tests.small_worlds import STATISTICS, random_actions, small_iris

IMAGES = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
ROWS, STEPS, TOKENS = 6, 14, 4
CODEBOOK = QuantiserConfig(levels=(), codes=9, width=4)


def a_model(action: str = "discrete", **settings) -> IRIS:
    """Return a small model in which every weight matters; its own start at 0.02."""
    torch.manual_seed(0)
    model = small_iris(action, **settings).eval().requires_grad_(False)
    for parameter in model.transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_segment(model: IRIS, length: int = 4, rows: int = ROWS) -> Segment:
    actions = random_actions(model.action_space, rows * length)
    return Segment(
        (256 * random(rows, length + 1, *IMAGES.shape)).to(torch.uint8),
        actions.unflatten(0, (rows, length)),
        random(rows, length, seed=2) - 0.5,
        random(rows, length, seed=3) < 0.3,
        torch.ones(rows, length, dtype=torch.bool),
    )


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_size_has_the_parameters_of_the_published_code():
    """For images of 64 by 64 and 4 actions; each further action has a vector of 256."""
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    with torch.device("meta"):
        four, nine = (IRIS(space, gym.spaces.Discrete(n), IRIS.presets["iris"]) for n in (4, 9))
    assert parameters(four.tokeniser) == 4_027_523
    assert parameters(four.transformer) == 8_447_493
    assert parameters(nine) - parameters(four) == 5 * 256
    assert four.noise_dim == four.tokeniser.tokens == 16
    state = four.initial(1)
    assert state["tokens"].shape == (1, 19, 16)
    assert state["tokens"].element_size() == 2


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("levels", [(4, 3), (8, 6, 5), (2,)])
def test_every_finite_scalar_code_is_its_own_nearest(levels):
    quantiser = FiniteScalars(levels)
    tokens = torch.arange(math.prod(levels))
    codes = quantiser.lookup(tokens)
    assert len(codes.unique(dim=0)) == quantiser.count == len(tokens)
    assert codes.abs().max() == 1
    # Vectors that tanh turns into the codes.
    quantised = quantiser((codes * 0.999).atanh())
    assert torch.equal(quantised.tokens, tokens)
    torch.testing.assert_close(quantised.vectors, codes)
    assert int(quantiser(torch.full((len(levels),), 50.0)).tokens) == len(tokens) - 1


def test_a_codebook_takes_the_nearest_vector_and_passes_gradients_on():
    book = Codebook(7, 3)
    nn.init.normal_(book.codes)
    z = (3 * random(5, 3) - 1.5).requires_grad_()
    quantised = book(z)
    nearest = torch.cdist(z, book.codes).argmin(1)
    assert torch.equal(quantised.tokens, nearest)
    torch.testing.assert_close(quantised.vectors, book.codes[nearest])
    weight = random(5, 3, seed=1)
    (quantised.vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert book.codes.grad is None
    (of_codes,) = torch.autograd.grad(quantised.codebook.sum(), book.codes)
    assert of_codes[nearest].abs().sum() > 0


def test_an_image_has_as_many_tokens_as_its_smallest_level_has_pixels():
    torch.manual_seed(0)
    tokeniser = Tokeniser(1, IRISConfig(image_size=32, channels=(8, 8, 8), latent=4))
    assert tokeniser.tokens == 64
    tokens = tokeniser.encode(random(2, 1, 32, 32))
    assert tokens.shape == (2, 64)
    assert tokeniser.decode(tokeniser.quantiser.lookup(tokens)).shape == (2, 1, 32, 32)


# ---------------------------------------------------------------- the transformer


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def reference(model: IRIS, tokens: Tensor, actions: Tensor) -> Tensor:
    """Return the outputs of one sequence (F frames, and the action after each), written out."""
    net, heads = model.transformer, model.config.transformer.heads
    entries = []
    for frame, action in zip(tokens, actions, strict=True):
        entries += [*net.embed_token.weight[frame.long()], net.embed_action.weight @ action]
    x = torch.stack(entries) + net.position[: len(entries)]
    size = x.shape[1] // heads
    for block in net.blocks:
        inputs = norm(x, block.norm_attention)
        joint = inputs @ block.joint.weight.T + block.joint.bias
        query, key, value = joint.chunk(3, -1)
        y = []
        for t in range(len(x)):
            mixed = []
            for each in range(heads):
                part = slice(each * size, (each + 1) * size)
                scores = key[: t + 1, part] @ query[t, part] / size**0.5
                mixed.append(scores.softmax(0) @ value[: t + 1, part])
            y.append(x[t] + block.out.weight @ torch.cat(mixed) + block.out.bias)
        y = torch.stack(y)
        hidden = F.gelu(norm(y, block.norm_mlp) @ block.widen.weight.T + block.widen.bias)
        x = y + hidden @ block.narrow.weight.T + block.narrow.bias
    return norm(x, net.norm)


def two_layers(layers: nn.Sequential, x: Tensor) -> Tensor:
    first, _, second = layers
    hidden = (x @ first.weight.T + first.bias).relu()
    return hidden @ second.weight.T + second.bias


def test_the_loss_is_the_published_one():
    """Cross-entropies of tokens, reward's sign and end, and the autoencoder's with a codebook."""
    objective = TokenObjective(rewards="sign", absolute=1.0, squared=0.0, worst=0.0)
    model = a_model(quantiser=CODEBOOK, objective=objective).double()
    segment = a_segment(model)
    total, terms = model.loss(segment, random(ROWS, 5, TOKENS))

    images = segment.observation.flatten(0, 1).double().movedim(-1, 1) / 255
    z = model.tokeniser.latents(images)
    codes = model.tokeniser.quantiser.codes
    tokens = torch.cdist(z, codes.expand(len(z), -1, -1)).argmin(-1)
    decoded = model.tokeniser.decode(codes[tokens])
    expected = {
        "reconstruction": (decoded - images).abs().mean(),
        "codebook": (codes[tokens] - z).square().mean(),
        "commitment": (codes[tokens] - z).square().mean(),
    }
    tokens = tokens.unflatten(0, (ROWS, 5))
    actions = F.pad(model.encode_action(segment.action), (0, 0, 0, 1)).double()
    net, losses = model.transformer, {"tokens": [], "reward": [], "termination": []}
    for row in range(ROWS):
        outputs = reference(model, tokens[row], actions[row])
        for t in range(4):
            acted = (t + 1) * (TOKENS + 1) - 1
            for k in range(TOKENS):
                logits = two_layers(net.token, outputs[acted + k])
                losses["tokens"].append(-logits.log_softmax(0)[tokens[row, t + 1, k]])
            sign = int(segment.reward[row, t].sign()) + 1
            logits = two_layers(net.reward.net, outputs[acted])
            losses["reward"].append(-logits.log_softmax(0)[sign])
            logits = two_layers(net.termination, outputs[acted])
            losses["termination"].append(-logits.log_softmax(0)[int(segment.terminated[row, t])])
    expected |= {name: torch.stack(each).mean() for name, each in losses.items()}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    torch.testing.assert_close(total, sum(expected.values()))


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_a_step_draws_each_token_from_what_the_loss_computes_for_it(action):
    model = a_model(action).double()
    segment = a_segment(model)
    states = filter_states(model, segment, random(ROWS, 5, TOKENS))
    state = {key: leaf[:, 2] for key, leaf in states.items()}
    noise = random(ROWS, TOKENS, seed=4).double()
    following, prediction = model.step(state, segment.action[:, 2], noise, 0.7)
    actions = model.encode_action(segment.action[:, :3]).double()
    for row in range(ROWS):
        frames = [*state["tokens"][row, :3].long()]
        drawn = torch.zeros(TOKENS, dtype=torch.int64)
        padded = F.pad(actions[row], (0, 0, 0, 1))
        for k in range(TOKENS):  # later tokens of the drawn frame have no influence
            outputs = reference(model, torch.stack([*frames, drawn]), padded)
            probabilities = (model.transformer.logits(outputs[3 * 5 - 1 + k]) / 0.7).softmax(0)
            drawn[k] = int((noise[row, k] >= probabilities.cumsum(0)).sum())
        assert torch.equal(following["tokens"][row, 3].long(), drawn)
        acted = outputs[3 * 5 - 1]
        reward = two_layers(model.transformer.reward.net, acted)[0]
        reward = reward * STATISTICS.reward_std + STATISTICS.reward_mean
        torch.testing.assert_close(prediction.reward[row], reward, check_dtype=False)
        end = two_layers(model.transformer.termination, acted).softmax(0)[1]
        torch.testing.assert_close(prediction.termination[row], end)


# ---------------------------------------------------------------- the window


def test_a_full_window_loses_its_older_half():
    model = a_model()
    segment = a_segment(model, length=6)
    states = filter_states(model, segment, random(ROWS, 7, TOKENS))
    assert states["length"][0].tolist() == [1, 2, 3, 4, 3, 4, 3]
    full, after = ({key: leaf[:, t] for key, leaf in states.items()} for t in (3, 4))
    assert torch.equal(after["tokens"][:, :2], full["tokens"][:, 2:])
    assert not after["tokens"][:, 3:].any()
    assert torch.equal(after["actions"][:, :2], model.encode_action(segment.action[:, 2:4]))


def test_places_that_are_not_set_have_no_influence():
    model = a_model()
    states = filter_states(model, a_segment(model), random(ROWS, 5, TOKENS))
    state = {key: leaf[:, 1].clone() for key, leaf in states.items()}
    action, noise = a_segment(model).action[:, 1], random(ROWS, TOKENS)
    expected, _ = model.step(state, action, noise)
    state["tokens"][:, 2:], state["actions"][:, 2:] = 3, 7.0
    got, _ = model.step(state, action, noise)
    torch.testing.assert_close(model.features(got), model.features(expected))


def test_features_are_the_codes_of_the_newest_two_frames():
    model = a_model()
    empty = model.initial(ROWS)
    assert not model.features(empty).any()
    segment = a_segment(model)
    states = filter_states(model, segment, random(ROWS, 5, TOKENS))
    first, second = ({key: leaf[:, t] for key, leaf in states.items()} for t in (0, 1))
    codes = model.features(first)[:, : model.feature_dim // 2]
    assert not model.features(first)[:, model.feature_dim // 2 :].any()
    assert torch.equal(model.features(second)[:, model.feature_dim // 2 :], codes)


@pytest.mark.parametrize("prepared", [False, True])
def test_dreams_use_no_position_that_the_fit_has_not_seen(prepared):
    model = a_model().train()
    for length in (3, 2):
        model.loss(a_segment(model, length), random(ROWS, length + 1, TOKENS))
    model.eval().loss(a_segment(model), random(ROWS, 5, TOKENS))  # held-out data teaches nothing
    used = model.prepare(ROWS, torch.device("cpu"), torch.float32) if prepared else model
    state, lengths = model.initial(ROWS), []
    for t in range(6):
        action = random_actions(model.action_space, ROWS)
        state, _ = used.step(state, action, random(ROWS, TOKENS, seed=t))
        lengths.append(int(state["length"].max()))
    assert max(lengths) == 3
    assert lengths[-1] >= 2


# ---------------------------------------------------------------- the cached step


@pytest.mark.parametrize("quantiser", [QuantiserConfig(levels=(4, 4)), CODEBOOK], ids=["fsq", "vq"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(quantiser, cached):
    model = a_model("box", quantiser=quantiser)
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    states = filter_states(model, a_segment(model), random(ROWS, 5, TOKENS))
    starts = {key: leaf[:, 1] for key, leaf in states.items()}
    plain_state = fast_state = starts
    lengths = set()
    for t in range(STEPS):
        action = random_actions(model.action_space, ROWS, seed=t)
        noise = random(ROWS, TOKENS, seed=100 + t)
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
        lengths |= {tuple(plain_state["length"].tolist())}
    assert any(len({*each}) > 1 for each in lengths)


def test_keys_are_computed_once_and_the_state_alone_decides(monkeypatch):
    model = a_model(transformer=TransformerConfig(context=9, width=16, blocks=2, heads=2))
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    filled, fill = [], type(fast)._fill
    monkeypatch.setattr(
        type(fast), "_fill", lambda self, *args: (filled.append(len(args[-1])), fill(self, *args))
    )
    states = filter_states(model, a_segment(model), random(ROWS, 5, TOKENS))
    state = early = {key: leaf[:, 2] for key, leaf in states.items()}
    action, noise = random_actions(model.action_space, ROWS), random(ROWS, TOKENS)
    with torch.inference_mode():
        first, _ = fast.step(early, action, noise)
    for _ in range(4):
        state, _ = fast.step(state, action, noise)
    assert filled == [ROWS]
    other = {key: leaf.roll(1, 0) for key, leaf in early.items()}
    fast.step(select(torch.arange(ROWS) == 2, other, state), action, noise)
    assert filled == [ROWS, 1]
    again, _ = fast.step(early, action, noise)
    torch.testing.assert_close(again, dict(first))


def test_gradients_reach_the_actions_through_the_fast_form():
    model = a_model("box")
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    action = torch.zeros(ROWS, 2, requires_grad=True)
    state = model.initial(ROWS)
    for t in range(2):
        state, prediction = fast.step(state, action, random(ROWS, TOKENS, seed=t))
    prediction.reward.sum().backward()
    assert action.grad.abs().sum() > 0


# ---------------------------------------------------------------- fits


def test_the_tokeniser_is_frozen_after_its_updates_and_encodes_each_frame_once(monkeypatch):
    model = a_model(tokeniser_updates=2).train().requires_grad_(True)
    assert model.phase_starts == (2,)
    assert model.selects_by_loss
    encoded, encode = [], Tokeniser.encode
    monkeypatch.setattr(
        Tokeniser,
        "encode",
        lambda self, images: (encoded.append(len(images)), encode(self, images))[1],
    )
    segment, names = a_segment(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        loss, terms = model.loss(segment, random(ROWS, 5, TOKENS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
        names.append({*terms})
        frozen = all(p.grad is None for p in model.tokeniser.parameters())
        assert frozen == (len(names) > 2)
    assert names == 2 * [{"reconstruction"}] + 2 * [{"tokens", "reward", "termination"}]
    assert encoded == [ROWS * 5]
    assert {"reconstruction", "tokens"} <= {*model.eval().loss(segment, random(ROWS, 5, TOKENS))[1]}
    model.before_fit()
    assert {*model.train().loss(segment, random(ROWS, 5, TOKENS))[1]} == {"reconstruction"}
    assert not a_model().selects_by_loss


CELLS = 4


class Dot(gym.Env):
    """A bright square that moves between four cells; a reward in the first."""

    observation_space = gym.spaces.Box(0, 255, (8, 8, 1), np.uint8)

    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(CELLS)), 0
        return self.image(), {}

    def image(self):
        frame = np.zeros((8, 8, 1), np.uint8)
        frame[2:4, 2 * self.cell : 2 * self.cell + 2] = 255
        return frame

    def step(self, action):
        self.cell = min(max(self.cell + int(action) - 1, 0), CELLS - 1)
        self.steps += 1
        return self.image(), float(self.cell == 0), False, self.steps == 15, {}


def test_a_fit_learns_frames_actions_and_rewards(tmp_path):
    path = dreamgym.record(Dot(), steps=400, out=tmp_path / "dot.h5", seed=0)
    config = IRISConfig(
        image_size=8,
        channels=(8, 8, 8),
        latent=8,
        quantiser=QuantiserConfig(levels=(4, 4)),
        transformer=TransformerConfig(context=5, width=32, blocks=1, heads=2),
        tokeniser_frames=32,
        tokeniser_updates=120,
    )
    settings = {"updates": 300, "segment_length": 4, "learning_rate": 5e-3, "evaluate_every": 300}
    fit = dreamgym.default_config("iris", model=config, **settings)
    quality = dreamgym.fit(path, family="iris", config=fit).quality
    error = quality["open_loop"]["5"]
    assert error["rmse"] < 0.6 * error["repeat_last"]
    assert quality["action_sensitivity"] > 1.3
    assert quality["reward_rmse"] < 0.5 * quality["reward_spread"]
    assert 1.5 < quality["code_perplexity"] < 16, "of the 16 codes"


def test_a_fit_that_ends_before_the_transformer_begins_is_refused(tmp_path):
    path = dreamgym.record(Dot(), steps=100, out=tmp_path / "dot.h5", seed=0)
    with pytest.raises(FitError, match=r"updates=20 .*begins, at 500"):
        dreamgym.fit(path, family="iris", config=dreamgym.default_config("iris", updates=20))


# ---------------------------------------------------------------- what it cannot take


def test_other_observations_are_refused_by_name():
    parts = gym.spaces.Dict({"a": IMAGES, "b": IMAGES})
    numbers = gym.spaces.Box(-1, 1, (4,), np.float32)
    for space, words in ((parts, "iris family takes images alone"), (numbers, "not hold images")):
        with pytest.raises(TypeError, match=words):
            IRIS(space, gym.spaces.Discrete(2), IRISConfig())
    only = IRIS(gym.spaces.Dict({"a": IMAGES}), gym.spaces.Discrete(2), IRISConfig())
    assert only.decode(only.initial(2))["a"].shape == (2, 8, 8, 3)


def test_a_segment_beyond_the_context_is_refused():
    model = a_model()
    with pytest.raises(ValueError, match="segment_length=4"):
        model.loss(a_segment(model, length=5), random(ROWS, 6, TOKENS))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IRISConfig(image_size=36), "work at 32, or another multiple of 8"),
        (lambda: IRISConfig(channels=()), "at least one level"),
        (lambda: TransformerConfig(width=10, heads=4), "heads=4"),
        (lambda: TransformerConfig(context=1), "context=1"),
        (lambda: TransformerConfig(dropout=1.0), "dropout"),
        (lambda: QuantiserConfig(levels=(1,)), "at least 2"),
        (lambda: QuantiserConfig(levels=(), codes=1 << 16), "at most 32768"),
        (lambda: QuantiserConfig(decay=1.0), "decay"),
        (lambda: replace(IRISConfig(), tokeniser_frames=0), "tokeniser_frames"),
        (lambda: TokenObjective(tokens=-1.0), "tokens"),
    ],
)
def test_settings_that_make_no_model_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
