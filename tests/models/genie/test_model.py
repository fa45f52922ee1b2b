"""Genie: MaskGIT against its equations, latent actions, the window, the cached step, the phases."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dreamgym
from dreamgym.data import Dataset
from dreamgym.data.policies import RandomPolicy
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError, TransferError, WorldError
from dreamgym.models import (
    Ensemble,
    Genie,
    GenieConfig,
    KnownReward,
    ModelSpec,
    Segment,
    filter_states,
)
from dreamgym.models.base import select
from dreamgym.models.genie.modules import LatentActions
from dreamgym.models.genie.sampling import draw_frame, masked_after
from dreamgym.models.nn.image_tokens import Tokeniser
from dreamgym.models.nn.quantisers import QuantiserConfig
from dreamgym.models.weights import shape_mismatch
from dreamgym.models.wrappers import EnsembleConfig
from dreamgym.train import TrainConfig
from dreamgym.transfer import export_policy
from dreamgym.transfer.latent import check_env_spaces
from dreamgym.trust import report
from dreamgym.world.held_out import open_for
from tests.contract.test_models import (  # noqa: F401 - collected here, with the model below
    test_a_long_dream_depends_on_its_actions,
    test_a_row_does_not_depend_on_its_neighbours,
    test_a_step_draws_nothing_from_the_global_generator,
    test_a_step_leaves_its_arguments_as_they_were,
    test_a_temperature_for_each_row_is_that_number_in_its_row,
    test_decoded_observations_are_in_the_space,
    test_every_leaf_is_batch_first_and_keeps_its_shape,
    test_predictions_have_one_number_a_row_in_their_ranges,
    test_prepare_is_the_same_function,
    test_same_noise_same_result_and_other_noise_another,
)
from tests.small_worlds import random_actions, small_genie, world_of

IMAGES = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
ROWS, STEPS, TOKENS, CODES = 5, 12, 4, 16
CODEBOOK = QuantiserConfig(levels=(), codes=5, width=4)
MOVING = replace(CODEBOOK, width=8, decay=0.8)


def a_model(action: str = "discrete", **settings) -> Genie:
    """Return a small model in which every weight of the dynamics matters."""
    torch.manual_seed(0)
    model = small_genie(action, **settings).eval().requires_grad_(False)
    for parameter in model.dynamics.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def model() -> Genie:
    """A model played in latent actions, for the tests of the contract that are imported here."""
    return a_model("box").in_latent_actions().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def a_segment(model: Genie, length: int = 4) -> Segment:
    actions = random_actions(model.data_action_space, ROWS * length)
    return Segment(
        (256 * random(ROWS, length + 1, *IMAGES.shape)).to(torch.uint8),
        actions.unflatten(0, (ROWS, length)),
        random(ROWS, length, seed=2) - 0.5,
        random(ROWS, length, seed=3) < 0.3,
        torch.ones(ROWS, length, dtype=torch.bool),
    )


# ---------------------------------------------------------------- MaskGIT


@pytest.mark.parametrize(("tokens", "steps"), [(16, 4), (256, 25), (16, 16), (5, 3), (1, 1)])
def test_the_schedule_is_the_cosine_of_the_paper(tokens, steps):
    """ceil(gamma(k / K) N) with gamma(r) = cos(pi r / 2), and at least one token a step."""
    counts, before = [], tokens
    for k in range(1, steps + 1):
        ratio = np.cos(np.float64(np.pi) / 2 * k / steps)
        nearest = np.round(ratio * tokens)
        exact = np.isclose(ratio * tokens, nearest, rtol=0, atol=1e-9)
        before = min(int(nearest if exact else np.ceil(ratio * tokens)), before - 1)
        counts.append(before)
    assert masked_after(tokens, steps) == counts
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


def test_a_frame_is_drawn_as_the_equations_say_row_by_row():
    """All masked tokens are drawn, and the least confident are masked again; in float64."""
    weight = 3 * random(TOKENS, CODES + 1, TOKENS, CODES).double()
    noise, tau = random(ROWS, 3, TOKENS, seed=1).double(), [0.5, 0.7, 1.0, 1.3, 2.0]

    def logits(tokens: Tensor) -> Tensor:
        return torch.stack([sum(weight[n, row[n]] for n in range(TOKENS)) for row in tokens])

    drawn = draw_frame(logits, CODES, noise, torch.tensor(tau))
    for row in range(ROWS):
        tokens = [CODES] * TOKENS
        for k in range(3):
            scores = sum(weight[n, tokens[n]] for n in range(TOKENS)).numpy() / tau[row]
            confidence = {}
            for n in [n for n in range(TOKENS) if tokens[n] == CODES]:
                p = np.exp(scores[n]) / np.exp(scores[n]).sum()
                tokens[n] = int((noise[row, k, n].item() >= p.cumsum()[:-1]).sum())
                confidence[n] = p[tokens[n]]
            scheduled = math.ceil(math.cos(math.pi / 2 * (k + 1) / 3) * TOKENS - 1e-9)
            left = min(scheduled, len(confidence) - 1)
            for n in sorted(confidence, key=confidence.get)[:left]:
                tokens[n] = CODES
        assert drawn[row].tolist() == tokens


def test_a_step_draws_from_what_the_loss_is_computed_of():
    """The logits of masked tokens in a fit are those of a dream from the same past."""
    model = a_model().double()
    segment = a_segment(model, length=6)
    states = filter_states(model, segment, random(ROWS, 7, model.noise_dim))
    tokens = model._encode(segment.observation)
    observed = torch.ones(ROWS, 7, dtype=torch.bool)
    latents = torch.stack([states["latents"][:, t, -1] for t in range(7)], 1)
    actions = torch.stack([states["actions"][:, t, -1] for t in range(7)], 1)
    assert (latents[:, 0] == model.latent_actions.count).all()
    outputs, keys = model.dynamics(tokens, latents, actions, observed)
    shown = torch.where(random(ROWS, 6, TOKENS) < 0.5, CODES, tokens[:, 1:])
    rows = (leaf.flatten(0, 1).unsqueeze(1) for leaf in (shown, latents[:, 1:], actions[:, 1:]))
    known, each = model.dynamics.known_to_each(observed), model.dynamics.of_each(keys)
    folded, _ = model.dynamics(*rows, known, each)
    folded = folded.view(ROWS, 6, TOKENS + 1, -1)
    for t in range(6):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        torch.testing.assert_close(state["h"], outputs[:, t, -1])
        one = (leaf[:, t : t + 1] for leaf in (shown, latents[:, 1:], actions[:, 1:]))
        expected, _ = model.dynamics(*one, model._seen(state), model.before(state))
        torch.testing.assert_close(folded[:, t], expected[:, 0])


# ---------------------------------------------------------------- latent actions


def moving_squares(seed: int, rows: int = 8, length: int = 8) -> tuple[Tensor, Tensor]:
    """Return images (N, 2, 1, 16, 16) before and after moves to one of four sides, and these."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.randint(0, 4, (rows, length), generator=generator)
    moves = torch.tensor([[0, 2], [0, -2], [2, 0], [-2, 0]])
    place = [torch.randint(0, 12, (rows, 2), generator=generator)]
    for t in range(length):
        place.append((place[-1] + moves[action[:, t]]).clamp(0, 11))
    corner, pixels = torch.stack(place, 1).unsqueeze(-1), torch.arange(16)
    inside = (pixels >= corner) & (pixels < corner + 5)
    frames = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).float().unsqueeze(2)
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], 2)
    return pairs.flatten(0, 1), action.flatten()


def information(one: Tensor, other: Tensor) -> float:
    """Return the mutual information of two variables with few values, in nats."""
    joint = torch.zeros(int(one.max()) + 1, int(other.max()) + 1)
    joint.index_put_((one, other), torch.ones(len(one)), accumulate=True)
    joint /= joint.sum()
    entropies = [float(torch.special.entr(p).sum()) for p in (joint.sum(0), joint.sum(1), joint)]
    return entropies[0] + entropies[1] - entropies[2]


@pytest.mark.parametrize("codes", [QuantiserConfig(levels=(2, 2, 2)), MOVING], ids=["fsq", "vq"])
def test_latent_actions_are_the_moves_that_nobody_told(codes):
    """Chance is 0.02 nats, and four moves are 1.39."""
    torch.manual_seed(0)
    config = GenieConfig(
        image_size=16, action_frames=1, action_patch=4, action_width=16, action_blocks=1,
        latent_actions=replace(codes, codes=8),
    )  # fmt: skip
    model = LatentActions(1, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for k in range(80):
        terms = model.terms(moving_squares(k)[0], config.objective)
        optimizer.zero_grad()
        weighted = [0.02 * v if "commitment" in name else v for name, v in terms.items()]
        torch.stack(weighted).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    images, action = moving_squares(10_000, rows=64)
    latents = model.infer(images)
    assert information(latents, action) > 0.5
    # Under the code of another change, the next frame is predicted worse.
    vectors = model.quantiser.lookup(latents)
    errors = [
        (model.predict(images[:, :-1], codes) - images[:, -1]).square().mean()
        for codes in (vectors, vectors.roll(1, 0))
    ]
    assert errors[1] > 1.3 * errors[0]


def test_the_latent_action_changes_the_frame_and_the_real_one_chooses_it():
    model = a_model()
    latent = model.in_latent_actions()
    segment = a_segment(model)
    states = filter_states(model, segment, random(ROWS, 5, model.noise_dim))
    state = {key: leaf[:, -1] for key, leaf in states.items()}
    noise = random(ROWS, model.noise_dim)
    drawn = [
        latent.step(state, torch.full((ROWS,), k), noise)[0]["tokens"][:, -1] for k in range(8)
    ]
    assert all(len({tuple(frame[row].tolist()) for frame in drawn}) > 2 for row in range(ROWS))
    # By the distribution of the map, at the first uniform.
    action = segment.action[:, 0]
    following, _ = model.step(state, action, noise)
    logits = model.action_map(torch.cat([state["h"], model.encode_action(action)], -1))
    expected = (noise[:, :1] >= logits.softmax(-1).cumsum(-1)).sum(-1)
    assert torch.equal(following["latents"][:, -1].long(), expected)
    same, _ = latent.step(state, expected, noise)
    assert torch.equal(same["tokens"], following["tokens"])


def test_a_frame_is_filtered_with_the_latent_action_of_what_its_tokens_show():
    model = a_model(action_frames=2)
    segment = a_segment(model)
    states = filter_states(model, segment, random(ROWS, 5, model.noise_dim))
    tokens = model._encode(segment.observation)
    for t in range(1, 5):
        seen = [max(0, t - 2), t - 1, t]
        images = [
            (model.tokeniser.decode(model.tokeniser.quantiser.lookup(tokens[:, k])).clamp(0, 1))
            for k in seen
        ]
        rounded = (torch.stack(images, 1) * 255).round() / 255
        expected = model.latent_actions.infer(rounded)
        assert torch.equal(states["latents"][:, t, -1].long(), expected)
    mask = torch.ones(ROWS, 4, dtype=torch.bool)
    assert torch.equal(model._infer(tokens, mask), states["latents"][:, -1, -4:].long())
    assert torch.equal(model._infer(tokens, mask, cached=True), model._infer(tokens, mask))


# ---------------------------------------------------------------- worlds in latent actions


def test_a_world_is_played_in_latent_actions_and_saved_so(tmp_path):
    model = a_model("box")
    world = world_of(model)
    played = world.with_model(model.in_latent_actions())
    assert played.action_space == gym.spaces.Discrete(8)
    played.save(tmp_path / "played")
    loaded = dreamgym.load(tmp_path / "played")
    assert loaded.action_space == gym.spaces.Discrete(8)
    assert loaded.model.data_action_space == model.action_space
    envs = DreamVectorEnv(loaded, 3, device="cpu")
    envs.reset(seed=0)
    observations, *_ = envs.step(np.array([0, 3, 7]))
    assert envs.single_action_space == gym.spaces.Discrete(8)
    assert np.isfinite(observations).all()
    back = loaded.with_model(loaded.model.in_real_actions())
    assert back.action_space == model.action_space
    weights, expected = back.model.state_dict(), model.state_dict()
    assert all(torch.equal(weights[name], leaf) for name, leaf in expected.items())
    assert model.double().in_latent_actions().dtype == torch.float64
    wrapped = played.with_model(KnownReward(played.model, lambda seen, action, after: action + 0.5))
    assert wrapped.action_space == gym.spaces.Discrete(8)
    envs = DreamVectorEnv(wrapped, 2, device="cpu")
    envs.reset(seed=0)
    assert envs.step(np.array([2, 6]))[1].tolist() == [2.5, 6.5]
    with pytest.raises(WorldError, match="has the spaces"):
        world.with_model(a_model("discrete").in_latent_actions())
    assert wrapped.model.takes_data_actions is False


def test_a_world_in_latent_actions_is_not_measured_against_real_ones(tmp_path):
    """Although the spaces may be equal: here both are Discrete(8)."""
    space = gym.spaces.Discrete(8)
    model = Genie(IMAGES, space, a_model().config)
    played = world_of(model.in_latent_actions())
    assert played.action_space == space
    settings = TrainConfig(real_share=0.5, view="observation")
    refusals = {
        WorldError: [
            lambda: open_for(played, "none.h5").__enter__(),
            lambda: report(played, "none.h5", env=Slide),
        ],
        TransferError: [
            lambda: check_env_spaces(Slide(), played),
            lambda: dreamgym.transfer_policy(RandomPolicy(space), played, env=Slide),
            lambda: export_policy(None, played, out=tmp_path / "out"),
        ],
        TrainingError: [
            lambda: dreamgym.train_policy(
                played, algo="DQN", steps=8, config=settings, real_data="none.h5"
            )
        ],
    }
    for error, calls in refusals.items():
        for call in calls:
            with pytest.raises(error, match=r"take latent actions \(Discrete\(8\)\)"):
                call()


def test_members_with_latent_actions_of_their_own_make_no_ensemble():
    member = ModelSpec(family="genie", config=replace(a_model().config, action_space="latent"))
    with pytest.raises(ValueError, match="actions of its own"):
        Ensemble(IMAGES, gym.spaces.Discrete(3), EnsembleConfig(member=member, members=2, elites=2))


def test_a_fit_in_latent_actions_is_refused():
    model = a_model().in_latent_actions()
    with pytest.raises(ValueError, match="fit with action_space='real'"):
        model.loss(a_segment(model), random(ROWS, 5, model.noise_dim))


# ---------------------------------------------------------------- the window and the cached step


def test_places_that_are_not_set_have_no_influence():
    model = a_model("box")
    states = filter_states(model, a_segment(model), random(ROWS, 5, model.noise_dim))
    state = {key: leaf[:, 1].clone() for key, leaf in states.items()}
    action, noise = a_segment(model).action[:, 1], random(ROWS, model.noise_dim)
    observation = a_segment(model).observation[:, 4]
    expected = [
        model.step(state, action, noise)[0],
        model.observe(state, action, observation, noise),
    ]
    state["tokens"][:, :-2], state["latents"][:, :-2], state["actions"][:, :-2] = 3, 2, 7.0
    got = [model.step(state, action, noise)[0], model.observe(state, action, observation, noise)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(model.features(one), model.features(other))


@pytest.mark.parametrize("kind", ["real", "latent"])
@torch.no_grad()
def test_the_fast_step_is_the_plain_one_in_rows_that_are_reset_apart(kind, monkeypatch):
    model = a_model("box")
    states = filter_states(model, a_segment(model), random(ROWS, 5, model.noise_dim))
    starts = {key: leaf[:, 1] for key, leaf in states.items()}
    model = model if kind == "real" else model.in_latent_actions()
    fast = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    recomputed, before = [], Genie.before
    monkeypatch.setattr(
        Genie,
        "before",
        lambda self, state: (recomputed.append(len(state["length"])), before(self, state))[1],
    )
    plain_state = fast_state = starts
    for t in range(STEPS):
        action = random_actions(model.action_space, ROWS, seed=t)
        noise = random(ROWS, model.noise_dim, seed=100 + t)
        fast_state, fast_prediction = fast.step(fast_state, action, noise, 0.8)
        expected = [ROWS] if not t else [1] * ((t - 1) % (ROWS + 2) < ROWS)
        assert recomputed == expected, "only rows that were reset are computed again"
        plain_state, prediction = model.step(plain_state, action, noise, 0.8)
        recomputed.clear()
        torch.testing.assert_close(fast_state, plain_state, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(fast_prediction, prediction, rtol=1e-3, atol=1e-3)
        reset = torch.arange(ROWS) == t % (ROWS + 2)
        plain_state, fast_state = (select(reset, starts, s) for s in (plain_state, fast_state))
    assert plain_state["length"].unique().numel() > 1


# ---------------------------------------------------------------- fits


def test_the_phases_freeze_what_they_have_fitted_and_encode_once(monkeypatch):
    model = a_model(tokeniser_updates=2, action_updates=2).train().requires_grad_(True)
    assert model.phase_starts == (2, 4)
    assert model.selects_by_loss
    counts = {"encode": [], "infer": []}
    for kind, name in ((Tokeniser, "encode"), (LatentActions, "infer")):
        method = getattr(kind, name)

        def counted(self, images, *rest, method=method, name=name):
            counts[name].append(len(images))
            return method(self, images, *rest)

        monkeypatch.setattr(kind, name, counted)
    segment, names = a_segment(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        loss, terms = model.loss(segment, random(ROWS, 5, model.noise_dim))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
        names.append({*terms})
        fitted = [
            any(p.grad is not None for p in part.parameters())
            for part in (model.tokeniser, model.latent_actions, model.dynamics)
        ]
        assert fitted == [len(names) <= 2, 2 < len(names) <= 4, len(names) > 4]
    heads = {"tokens", "action_map", "reward", "termination"}
    assert names == 2 * [{"reconstruction"}] + 2 * [{"latent_actions"}] + 2 * [heads]
    assert counts == {"encode": [ROWS * 5], "infer": [ROWS * 4]}
    evaluated = {*model.eval().loss(segment, random(ROWS, 5, model.noise_dim))[1]}
    assert evaluated == {"reconstruction", "latent_actions", *heads}
    model.before_fit()
    assert {*model.train().loss(segment, random(ROWS, 5, model.noise_dim))[1]} == {"reconstruction"}
    together = a_model(tokeniser_updates=1)
    assert together.phase_starts == (1,)
    assert not together.selects_by_loss
    together.train().after_update()
    terms = {*together.loss(segment, random(ROWS, 5, model.noise_dim))[1]}
    assert terms == {"latent_actions", *heads}


def test_a_codebook_of_latent_actions_has_its_losses():
    moving = {"action_commitment"}
    for config, names in ((CODEBOOK, {"action_codebook", *moving}), (MOVING, moving)):
        model = a_model(latent_actions=config).train()
        terms = model.loss(a_segment(model), random(ROWS, 5, model.noise_dim))[1]
        assert {name for name in terms if name.startswith("action_")} == {*names, "action_map"}
        assert model.latent_actions.count == 5


def test_diagnostics_say_how_many_codes_are_used_and_whether_they_matter():
    model = a_model()
    segment, noise = a_segment(model, length=5), random(ROWS, 6, model.noise_dim)
    segment.mask[0, 2:] = False
    codes = model.diagnostics(segment, noise).codes
    tokens, latents = codes["tokens"], codes["latent_actions"]
    assert tokens.shares.shape == (CODES,)
    assert latents.shares.shape == (8,)
    assert float(latents.shares.sum()) == pytest.approx(1)
    inferred = model._infer(model._encode(segment.observation), segment.mask)[segment.mask]
    share = inferred.bincount(minlength=8).double() / len(inferred)
    entropy = -sum(float(p * p.log()) for p in share if p)
    assert float(latents.perplexity) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert latents.effect.shape == (ROWS - 1,), "of the segments that are long enough"
    # Without any way for the latent action to matter, there is no effect.
    nn.init.zeros_(model.dynamics.embed_latent.weight)
    assert not model.diagnostics(segment, noise).codes["latent_actions"].effect.any()


class Slide(gym.Env):
    """A bright square that slides along a row; a reward at its left end."""

    observation_space = gym.spaces.Box(0, 255, (8, 8, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(7)), 0
        return self.image(), {}

    def image(self):
        frame = np.zeros((8, 8, 1), np.uint8)
        frame[3:5, self.cell : self.cell + 2] = 255
        return frame

    def step(self, action):
        self.cell = min(max(self.cell + int(action) - 1, 0), 6)
        self.steps += 1
        return self.image(), float(self.cell == 0), False, self.steps == 15, {}


class Watched(gym.Env):
    """The same as a video: its moves are random, and there is a single action."""

    observation_space = Slide.observation_space
    action_space = gym.spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.inner = Slide()
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(self.np_random.integers(3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Slide, Watched])
def test_a_fit_learns_latent_actions_that_control_its_dreams(kind, tmp_path):
    path = dreamgym.record(kind(), steps=600, out=tmp_path / "slide.h5", seed=0)
    config = GenieConfig(
        image_size=8, channels=(8, 8, 8), latent=8, quantiser=QuantiserConfig(levels=(4, 4)),
        context=2, width=32, blocks=2, heads=2, action_frames=1, action_patch=2, action_width=16,
        action_blocks=1, steps=2, tokeniser_updates=120, action_updates=60,
    )  # fmt: skip
    settings = {"updates": 380, "learning_rate": 5e-3, "evaluate_every": 380}
    fit = dreamgym.default_config("genie", model=config, **settings)
    world = dreamgym.fit(path, family="genie", config=fit)
    quality = world.quality
    assert quality["code_perplexity_latent_actions"] > 1.5
    assert quality["code_effect_latent_actions"] > 1.0
    assert not any("do not control dreams" in alarm for alarm in quality["alarms"])
    if kind is Slide:
        assert quality["action_sensitivity"] > 1.2
        assert quality["reward_rmse"] < 0.6 * quality["reward_spread"]
    with Dataset(path) as data:
        frames = torch.from_numpy(np.stack([data.episode(k).observations for k in range(40)]))
    moved = (frames.flatten(2).long() * torch.arange(64)).sum(2).diff(dim=1).sign() + 1
    tokens, mask = world.model._encode(frames), torch.ones(moved.shape, dtype=torch.bool)
    assert information(world.model._infer(tokens, mask).flatten(), moved.flatten()) > 0.1
    envs = DreamVectorEnv(world.with_model(world.model.in_latent_actions()), 2, device="cpu")
    envs.reset(seed=0)
    assert envs.step(np.array([1, 2]))[0].shape == (2, world.model.feature_dim)


# ---------------------------------------------------------------- what it cannot take


def test_other_observations_are_refused_by_name():
    parts = gym.spaces.Dict({"a": IMAGES, "b": IMAGES})
    numbers = gym.spaces.Box(-1, 1, (4,), np.float32)
    for space, words in ((parts, "genie family takes images alone"), (numbers, "not hold images")):
        with pytest.raises(TypeError, match=words):
            Genie(space, gym.spaces.Discrete(2), GenieConfig())


def test_the_preset_of_coinrun_has_the_sizes_of_the_public_reproduction():
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    with torch.device("meta"):
        model = Genie(space, gym.spaces.Discrete(15), Genie.presets["genie-coinrun"])
    assert (model.tokeniser.tokens, model.tokeniser.quantiser.count) == (256, 1024)
    assert model.latent_actions.count == 6
    assert model.noise_dim == 1 + 25 * 256
    assert len(model.dynamics.transformer.blocks) == 12


def test_a_small_model_of_frames_with_many_tokens_can_be_loaded():
    """Loading stops where a network is much larger than the weights in its file."""
    config = GenieConfig(image_size=96, channels=(8, 8), width=32, blocks=2, latent=8)
    space = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)

    def build() -> Genie:
        return Genie(space, gym.spaces.Discrete(2), config)

    with torch.device("meta"):
        shapes = {name: tuple(leaf.shape) for name, leaf in build().state_dict().items()}
    assert config.tokens == 48**2
    assert shape_mismatch(build, shapes) == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 12, "heads": 4}, "heads=4"),
        ({"steps": 17}, "a frame has 16 tokens"),
        ({"action_patch": 5}, "cannot be cut into patches of 5"),
        ({"action_frames": 13}, "the last 12 frames"),
        ({"action_width": 97}, "3 groups"),
        ({"min_mask_rate": 1.0}, "min_mask_rate"),
        ({"tokeniser_updates": 0}, "give both or neither"),
        ({"action_space": "imagined"}, "action_space='imagined'"),
        ({"image_size": 36}, "work at 32"),
        ({"latent_actions": QuantiserConfig(levels=(32, 32, 32))}, "32768 latent actions"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        GenieConfig(**settings)
