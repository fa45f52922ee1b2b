"""Delta-IRIS against the published sizes, its tokens of changes, its window and its cached step."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dreamgym
from dreamgym.models import DeltaIRIS, DeltaIRISConfig, filter_states
from dreamgym.models.base import select
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.models.iris import QuantiserConfig, TokenObjective, TransformerConfig
from dreamgym.models.iris.delta_vision import DeltaTokeniser
from dreamgym.models.nn.quantisers import MovingCodebook
from tests.models.iris.test_model import ROWS, STEPS, TOKENS, Dot, a_segment, parameters, random
from tests.small_worlds import random_actions, small_delta

MOVING = QuantiserConfig(levels=(), codes=9, width=4, decay=0.9)


def a_model(action: str = "discrete", **settings) -> DeltaIRIS:
    """Return a small model in which every weight matters; its own start at 0.02."""
    torch.manual_seed(0)
    model = small_delta(action, **settings).eval().requires_grad_(False)
    for parameter in model.transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def dynamics(model: DeltaIRIS) -> int:
    return parameters(model.transformer) + parameters(model.embed_frame)


def test_the_transformer_has_the_published_parameters():
    """Of Atari games with 4 actions, and of Crafter, which has 17 and two-hot rewards."""
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    atari = DeltaIRIS.presets["delta-iris"]
    crafter = DeltaIRISConfig(
        image_size=64,
        channels=atari.channels,
        halved=atari.halved,
        quantiser=atari.quantiser,
        transformer=TransformerConfig(context=21, width=512, blocks=3, heads=8),
        objective=TokenObjective(rewards="symlog-two-hot"),
    )
    with torch.device("meta"):
        assert dynamics(DeltaIRIS(space, gym.spaces.Discrete(4), atari)) == 3_577_257
        assert dynamics(DeltaIRIS(space, gym.spaces.Discrete(17), crafter)) == 11_948_457


# ---------------------------------------------------------------- tokens


def test_a_moving_codebook_compares_directions_and_follows_them():
    torch.manual_seed(0)
    book = MovingCodebook(MOVING)
    z = 3 * random(50, 4) - 1.5
    unit = z / z.norm(dim=1, keepdim=True)
    quantised = book(z)
    tokens = quantised.tokens
    assert torch.equal(tokens, (unit @ book.codes.T).argmax(1))
    torch.testing.assert_close(quantised.vectors, book.codes[tokens])
    torch.testing.assert_close(quantised.commitment, (book.codes[tokens] - unit).square().mean(1))
    before = book.codes.clone()
    book.follow(z, tokens)
    used = int(tokens.mode().values)
    mean = 0.9 * before[used] + 0.1 * unit[tokens == used].sum(0)
    torch.testing.assert_close(book.codes[used], mean / mean.norm())
    torch.testing.assert_close(book.codes.norm(dim=1), torch.ones(9))


def test_codes_out_of_use_are_replaced_by_vectors_of_the_batch():
    torch.manual_seed(0)
    book = MovingCodebook(QuantiserConfig(levels=(), codes=8, width=4, decay=0.5, revive=0.1))
    z = torch.randn(64, 4)
    book.codes.copy_(book.codes[:1] + 1e-3 * book.codes)  # all but alike
    book.sums.copy_(book.codes)
    for _ in range(20):
        book.follow(z, book(z).tokens)
    counts = book(z).tokens.bincount(minlength=8)
    assert (counts > 0).all()


def test_the_parts_of_a_grid_are_its_tokens():
    """A decoder that copies the grid finds each token's numbers in its own part of it."""
    torch.manual_seed(0)
    config = DeltaIRISConfig(image_size=16, channels=(8, 8), halved=(True, False), latent=3)
    tokeniser = DeltaTokeniser(1, 2, config)
    numbers, seen = tokeniser.before.in_features, {}
    assert numbers == 3 * 16
    tokeniser.after = nn.Identity()
    tokeniser.decoder.register_forward_pre_hook(lambda _, inputs: seen.update(grid=inputs[0]))
    vectors = torch.arange(4.0).view(1, 4, 1).expand(1, 4, numbers)
    images, action = torch.zeros(1, 1, 16, 16), torch.zeros(1, 2)
    tokeniser.decode(vectors, images, action)
    grid = seen["grid"][0, :3]
    halves = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert torch.equal(grid, halves.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, 8, 8))
    # And the encoder divides the grid in the same way.
    tokeniser.encoder, tokeniser.before = nn.Identity(), nn.Identity()
    tokeniser.size = 8
    tokeniser.action_image = nn.Linear(2, 64, bias=False)
    images = halves.repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None]
    parts = tokeniser.latents((images + 1) / 2, action, (images + 1) / 2)
    parts = parts.unflatten(-1, (3, 16))[:, :, [0, 2]]
    assert torch.equal(parts, torch.arange(4.0).view(1, 4, 1, 1).expand_as(parts))


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_a_step_draws_each_token_from_what_the_loss_computes_for_it(action):
    model = a_model(action).double()
    segment = a_segment(model)
    states = filter_states(model, segment, random(ROWS, 5, TOKENS))
    state = {key: leaf[:, 2] for key, leaf in states.items()}
    noise = random(ROWS, TOKENS, seed=4).double()
    following, prediction = model.step(state, segment.action[:, 2], noise, 0.7)
    # The loss's sequence of the first three frames, whose last tokens are filled in one by one.
    frames = model._frames(segment.observation)
    actions = model._encode_action(segment.action)
    tokens = model._encode(frames, actions, cached=False)[:, :3]
    assert torch.equal(tokens[:, :2], state["tokens"][:, :2].long())
    embedded = model._embed(frames[:, :3].flatten(0, 1)).unflatten(0, (ROWS, 3))
    torch.testing.assert_close(embedded, state["embedded"][:, :3])
    for k in range(TOKENS):
        outputs = model.transformer(model._sequence(embedded, actions[:, :3], tokens))
        outputs = outputs.unflatten(1, (3, TOKENS + 2))[:, 2]
        probabilities = (model.transformer.logits(outputs[:, 1 + k]) / 0.7).softmax(-1)
        tokens[:, 2, k] = (noise[:, k : k + 1] >= probabilities.cumsum(-1)[:, :-1]).sum(-1)
    assert torch.equal(following["tokens"][:, 2].long(), tokens[:, 2])
    reward, end = model.transformer.outcome(outputs[:, 1])
    torch.testing.assert_close(prediction.reward, reward)
    torch.testing.assert_close(prediction.termination, end)
    # The next frame is the tokeniser's, from the frame before.
    vectors = model.tokeniser.quantiser.lookup(tokens[:, 2])
    before = frames[:, 2].double() / 255
    decoded = model.tokeniser.decode(vectors, before, actions[:, 2]).clamp(0, 1)
    assert torch.equal(following["frame"], (255 * decoded).round().to(torch.uint8))
    torch.testing.assert_close(following["embedded"][:, 3], model._embed(following["frame"]))


def test_a_full_window_loses_its_older_half_with_its_changes():
    model = a_model()
    segment = a_segment(model, length=6)
    states = filter_states(model, segment, random(ROWS, 7, TOKENS))
    assert states["length"][0].tolist() == [1, 2, 3, 4, 3, 4, 3]
    full, after = ({key: leaf[:, t] for key, leaf in states.items()} for t in (3, 4))
    assert torch.equal(after["embedded"][:, :2], full["embedded"][:, 2:])
    assert torch.equal(after["tokens"][:, 0], full["tokens"][:, 2])
    encoded = model._encode(
        model._frames(segment.observation), model._encode_action(segment.action), cached=False
    )
    assert torch.equal(after["tokens"][:, :2].long(), encoded[:, 2:4])
    assert not after["tokens"][:, 2:].any()
    assert not full["tokens"][:, 3].any(), "the newest frame has not changed yet"


@pytest.mark.parametrize("quantiser", [QuantiserConfig(levels=(4, 4)), MOVING], ids=["fsq", "vq"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(quantiser, cached):
    model = a_model("box", quantiser=quantiser)
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    states = filter_states(model, a_segment(model), random(ROWS, 5, TOKENS))
    starts = {key: leaf[:, 0] for key, leaf in states.items()}
    state, lengths = starts, set()
    for t in range(STEPS):
        action = random_actions(model.action_space, ROWS, seed=t)
        noise = random(ROWS, TOKENS, seed=100 + t)
        plain, prediction = model.step(state, action, noise, 0.8)
        if cached:
            state, fast_prediction = fast.step(state, action, noise, 0.8)
        else:
            with forbid_host_sync():
                state, fast_prediction = fast.step(state, action, noise, 0.8)
        for key, leaf in plain.items():
            close(state[key], leaf)
        torch.testing.assert_close(fast_prediction, prediction, rtol=1e-4, atol=1e-5)
        state = select(torch.arange(ROWS) == t % (ROWS + 2), starts, state)
        lengths |= {tuple(state["length"].tolist())}
    assert any(len({*each}) > 1 for each in lengths)


def close(got: Tensor, expected: Tensor) -> None:
    """Compare leaves; frames up to the rounding of a pixel."""
    if got.dtype == torch.uint8:
        assert (got.int() - expected.int()).abs().max() <= 1
    else:
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_keys_are_computed_once(monkeypatch):
    model = a_model(transformer=TransformerConfig(context=9, width=16, blocks=2, heads=2))
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    filled, fill = [], type(fast)._fill
    monkeypatch.setattr(
        type(fast), "_fill", lambda self, *args: (filled.append(len(args[-1])), fill(self, *args))
    )
    states = filter_states(model, a_segment(model), random(ROWS, 5, TOKENS))
    state = early = {key: leaf[:, 2] for key, leaf in states.items()}
    action, noise = random_actions(model.action_space, ROWS), random(ROWS, TOKENS)
    for _ in range(5):
        state, _ = fast.step(state, action, noise)
    assert filled == [ROWS]
    other = {key: leaf.roll(1, 0) for key, leaf in early.items()}
    fast.step(select(torch.arange(ROWS) == 2, other, state), action, noise)
    assert filled == [ROWS, 1]


# ---------------------------------------------------------------- fits


def test_a_moving_codebook_follows_in_fits_only():
    model = a_model(quantiser=MOVING).requires_grad_(True)
    segment, codes = a_segment(model), model.tokeniser.quantiser.codes.clone()
    _, terms = model.loss(segment, random(ROWS, 5, TOKENS))
    assert {"reconstruction", "commitment", "tokens"} <= {*terms}
    assert "codebook" not in terms
    assert torch.equal(model.tokeniser.quantiser.codes, codes)
    model.train().loss(segment, random(ROWS, 5, TOKENS))
    assert not torch.equal(model.tokeniser.quantiser.codes, codes)


def test_a_fit_learns_frames_actions_and_rewards(tmp_path):
    path = dreamgym.record(Dot(), steps=400, out=tmp_path / "dot.h5", seed=0)
    config = DeltaIRISConfig(
        image_size=8,
        channels=(8, 8),
        halved=(True, False),
        latent=4,
        token_side=1,
        quantiser=QuantiserConfig(levels=(4, 4)),
        transformer=TransformerConfig(context=4, width=32, blocks=1, heads=2),
        tokeniser_frames=32,
        tokeniser_updates=120,
    )
    settings = {"updates": 300, "segment_length": 4, "learning_rate": 5e-3, "evaluate_every": 300}
    fit = dreamgym.default_config("delta-iris", model=config, **settings)
    quality = dreamgym.fit(path, family="delta-iris", config=fit).quality
    error = quality["open_loop"]["5"]
    assert error["rmse"] < 0.6 * error["repeat_last"]
    assert quality["action_sensitivity"] > 1.3
    assert quality["reward_rmse"] < 0.5 * quality["reward_spread"]
    assert 1.5 < quality["code_perplexity"] < 16, "of the 16 codes"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"halved": (True,)}, "3 channels"),
        ({"image_size": 34}, "cannot be halved 2 times"),
        ({"token_side": 3}, "token_side"),
        ({"transformer": TransformerConfig(width=32)}, "64 pixels of a grid"),
        ({"channels": (), "halved": ()}, "at least one level"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DeltaIRISConfig(**settings)
