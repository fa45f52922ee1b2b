"""DINO-WM with a tiny random DINOv2."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PretrainedError, WorldError
from dreamgym.models import DINOWM, GoalReward, Segment
from dreamgym.models.base import filter_states
from dreamgym.models.dino_wm.modules import Predictor
from dreamgym.models.patches import PatchObjective
from tests import frozen_encoders
from tests.data.samples import dict_cartpole
from tests.small_worlds import (
    ACTION_SPACES,
    STATISTICS,
    dino_config,
    random_actions,
    random_observations,
    world_of,
)

IMAGE = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
BOTH = gym.spaces.Dict({"camera": IMAGE, "joints": gym.spaces.Box(-3.0, 3.0, (4,), np.float32)})
BATCH, LENGTH, PATCHES, WIDTH = 3, 3, 4, 24

# The encoder is a module of transformers, which some machines lack.
needs_encoder = pytest.mark.skipif(
    not frozen_encoders.INSTALLED, reason="transformers is not installed"
)


def a_model(space: gym.Space = BOTH, action: str = "box", **settings) -> DINOWM:
    torch.manual_seed(0)
    model = DINOWM(space, ACTION_SPACES[action], dino_config(**settings))
    moments = {"joints": STATISTICS.vector} if space is BOTH else {}
    model.set_statistics(STATISTICS._replace(observation=moments))
    return model.eval()


def a_segment(model: DINOWM, length: int = LENGTH, seed: int = 0) -> Segment:
    flat = random_observations(model.observation_space, BATCH * (length + 1), seed)
    parts = {key: leaf.unflatten(0, (BATCH, length + 1)) for key, leaf in flat.items()}
    actions = random_actions(model.action_space, BATCH * length, seed)
    return Segment(
        observation=parts,
        action=actions.unflatten(0, (BATCH, length)),
        reward=torch.zeros(BATCH, length),
        terminated=torch.zeros(BATCH, length, dtype=torch.bool),
        mask=torch.ones(BATCH, length, dtype=torch.bool),
    )


def no_noise(length: int = LENGTH) -> Tensor:
    return torch.zeros(BATCH, length + 1, 0)


def test_the_published_predictor_has_the_authors_parameters():
    """Counted from the layers in their code, for patches of 384 + 10 + 10 numbers."""
    config = DINOWM.presets["dino-wm"]
    with torch.device("meta"):
        predictor = Predictor(14 * 14, 404, config)
    width, inner, hidden = 404, 16 * 64, 2048
    attention = 2 * width + width * 3 * inner + inner * width + width
    feed_forward = 2 * width + width * hidden + hidden + hidden * width + width
    positions = 3 * 196 * width
    expected = positions + 6 * (attention + feed_forward) + 2 * width
    assert sum(p.numel() for p in predictor.parameters()) == expected == 20_122_600


def test_patches_see_their_own_frame_and_those_before_it():
    torch.manual_seed(0)
    predictor = Predictor(PATCHES, WIDTH, replace(DINOWM.presets["dino-wm"], blocks=1)).eval()
    frames = torch.randn(1, 3, PATCHES, WIDTH)
    output = predictor(frames)
    changed = frames.clone()
    changed[:, 1, -1] = torch.randn(WIDTH)
    difference = (predictor(changed) - output).abs().amax(-1)[0]
    assert (difference[0] == 0).all()
    assert (difference[1:] > 1e-3).all()
    torch.testing.assert_close(predictor(frames[:, :2]), output[:, :2])


@needs_encoder
def test_a_state_holds_the_patches_of_the_last_frames_with_their_vectors():
    model, segment = a_model(), a_segment(a_model(), length=5)
    states = filter_states(model, segment, no_noise(5))
    patches = model.senses.encode(segment.observation)
    assert patches.shape == (BATCH, 6, PATCHES, WIDTH)
    vectors = model.embed_vectors(model.senses.vector_targets(segment.observation))
    for t, frames in ((0, [0]), (1, [0, 1]), (5, [3, 4, 5])):
        held = states["patches"][:, t].unflatten(-1, (PATCHES, -1))
        assert states["length"][:, t].tolist() == [len(frames)] * BATCH
        torch.testing.assert_close(held[:, : len(frames), :, :WIDTH], patches[:, frames])
        for patch in range(PATCHES):
            mixed = held[:, : len(frames), patch, WIDTH:]
            torch.testing.assert_close(mixed, vectors[:, frames])
        assert (held[:, len(frames) :] == 0).all()


@needs_encoder
@pytest.mark.parametrize("seen", [1, 2, 3, 5])
def test_a_step_is_the_authors_rollout(seen):
    """The predictor on as many frames as there are, the last action in the place of the newest."""
    model, segment = a_model(), a_segment(a_model(), length=5)
    states = filter_states(model, segment, no_noise(5))
    state = {key: leaf[:, seen - 1] for key, leaf in states.items()}
    first = max(0, seen - 3)
    patches = model.senses.encode(segment.observation)[:, first:seen]
    joints = model.senses.vector_targets(segment.observation)[:, first:seen]
    actions = model.encode_action(segment.action[:, first:seen])
    parts = [model.embed_vectors(joints), model.embed_action(actions)]
    tiled = [part.unsqueeze(2).repeat(1, 1, PATCHES, 1) for part in parts]
    output = model.predictor(torch.cat([patches, *tiled], -1))[:, -1, :, :-10]
    following, _ = model.step(state, segment.action[:, seen - 1], torch.zeros(BATCH, 0))
    torch.testing.assert_close(model.newest(following)["patches"], output.flatten(1))


@needs_encoder
def test_the_loss_of_one_window_is_the_authors():
    model = a_model(objective=PatchObjective(rollout_steps=1))
    segment = a_segment(model)
    _, terms = model.loss(segment, no_noise())
    frames = model.entry(segment.observation)["patches"]
    predicted = model.predict(frames[:, :-1], model.encode_action(segment.action))
    torch.testing.assert_close(terms["prediction"], (predicted - frames[:, 1:]).square().mean())
    assert set(terms) == {"prediction", "reward", "termination", "vector", "image"}


@needs_encoder
def test_a_rollout_is_predicted_from_predictions():
    model = a_model(objective=PatchObjective(rollout_steps=3))
    segment = a_segment(model, length=5)
    _, terms = model.loss(segment, no_noise(5))
    states = filter_states(model, segment, no_noise(5))
    frames = model.entry(segment.observation)["patches"]
    errors = []
    for depth in (1, 2):
        found = []
        for t in range(2, 5 - depth):
            state = {key: leaf[:, t] for key, leaf in states.items()}
            for k in range(depth + 1):
                state, _ = model.step(state, segment.action[:, t + k], torch.zeros(BATCH, 0))
            error = model.newest(state)["patches"] - frames[:, t + depth + 1]
            found.append(error.square().mean())
        errors.append(torch.stack(found).mean())
    torch.testing.assert_close(terms["rollout"], torch.stack(errors).mean())


@needs_encoder
def test_each_image_is_encoded_once_in_a_fit(monkeypatch):
    model, counted = a_model(), []
    tokens = model.senses.encoder.tokens

    def count(images: Tensor) -> Tensor:
        counted.append(len(images))
        return tokens(images)

    monkeypatch.setattr(model.senses.encoder, "tokens", count)
    segment = a_segment(model)
    losses = [model.loss(segment, no_noise())[0] for _ in range(2)]
    assert sum(counted) == BATCH * (LENGTH + 1)
    assert torch.equal(*losses)
    model.after_fit()
    assert len(model.senses.cache) == 0
    model.entry(segment.observation)
    assert len(model.senses.cache) == 0, "what is observed outside of fits must not be kept"


@needs_encoder
def test_windows_are_as_long_as_those_that_were_fitted():
    model, segment = a_model().train(), a_segment(a_model(), length=2)
    model.loss(segment, no_noise(2))
    model.eval().loss(a_segment(model), no_noise())
    assert int(model.window()) == 2
    states = filter_states(model, a_segment(model, length=5), no_noise(5))
    assert states["length"].max() == 2


@needs_encoder
def test_the_squared_distance_to_a_goal_is_the_authors_objective():
    model, segment = a_model(), a_segment(a_model())
    states = filter_states(model, segment, no_noise())
    one, last = ({k: leaf[:, t] for k, leaf in states.items()} for t in (0, -1))
    # The embedded vectors of a predicted frame differ from patch to patch.
    two, _ = model.step(last, segment.action[:, -1], torch.zeros(BATCH, 0))
    distance = (model.goal_features(one) - model.goal_features(two)).square().sum(-1)
    patches = [model.newest(each)["patches"].unflatten(-1, (PATCHES, -1)) for each in (one, two)]
    error = (patches[0] - patches[1]).square()
    expected = error[..., :WIDTH].mean((1, 2)) + error[:, 0, WIDTH:].mean(-1)
    torch.testing.assert_close(distance, expected)
    goal = {key: leaf[0].numpy() for key, leaf in random_observations(BOTH, 1).items()}
    wrapped = GoalReward(model, goal)
    _, prediction = wrapped.step(one, segment.action[:, 0], torch.zeros(BATCH, 0))
    assert (prediction.reward < 0).all()


@needs_encoder
def test_a_dream_whose_vectors_leave_the_data_ends():
    narrow = STATISTICS.vector._replace(
        low=STATISTICS.vector.mean - 1e-5,
        high=STATISTICS.vector.mean + 1e-5,
        delta_std=torch.full((4,), 1e-6),
    )
    for margin in (0.3, None):
        model, segment = a_model(range_margin=margin), a_segment(a_model())
        model.set_statistics(STATISTICS._replace(observation={"joints": narrow}))
        state = {k: v[:, -1] for k, v in filter_states(model, segment, no_noise()).items()}
        _, prediction = model.step(state, segment.action[:, 0], torch.zeros(BATCH, 0))
        assert bool((prediction.termination == 1).all()) == (margin is not None)
        assert bool((prediction.reward == -30).all()) == (margin is not None)


@needs_encoder
def test_it_learns_what_an_action_does_to_the_patches():
    """Images that the action makes light or dark: better than repeating the last frame."""
    generator = torch.Generator().manual_seed(0)
    model = a_model(IMAGE, "discrete").train()
    action = torch.randint(0, 3, (16, 4), generator=generator)
    images = torch.full((16, 5, *IMAGE.shape), 100, dtype=torch.uint8)
    images[:, 1:, :8] = (120 * action).to(torch.uint8)[..., None, None, None]
    zeros = torch.zeros(16, 4)
    segment = Segment(images, action, zeros, zeros.bool(), ~zeros.bool())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        loss, terms = model.loss(segment, torch.zeros(16, 5, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames = model.entry(images)["patches"]
    repeated = (frames[:, 1:] - frames[:, :-1]).square().mean()
    assert terms["prediction"] < 0.2 * repeated
    assert terms["rollout"] < 0.2 * repeated
    assert terms["image"] < 0.02


@needs_encoder
def test_images_and_vectors_from_a_fit_to_a_dream(tmp_path):
    data = dreamgym.record(dict_cartpole(), steps=60, out=tmp_path / "d.h5", seed=0)
    config = dreamgym.default_config(
        "dino-wm", updates=2, batch_size=2, segment_length=3, model=dino_config()
    )
    world = dreamgym.fit(data, tmp_path / "w", family="dino-wm", config=config)
    assert len(world.model.senses.cache) == 0
    assert {"termination_ece", "action_sensitivity"} <= {*world.quality}
    needed = f"which are not in this folder: {frozen_encoders.folder('dinov2')} (licence"
    assert needed in (tmp_path / "w" / "README.md").read_text()
    env = DreamVectorEnv(dreamgym.load(tmp_path / "w"), 2, view="observation", output="numpy")
    env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)


@needs_encoder
def test_a_world_names_its_encoder_and_refuses_another(tmp_path, monkeypatch):
    saved = world_of(a_model().requires_grad_(False)).save(tmp_path / "w")
    config = json.loads((saved / "world.json").read_text())["config"]
    assert config["encoder"] == frozen_encoders.folder("dinov2")
    tensors = dreamgym.load(saved).model.state_dict()
    assert [name for name in tensors if "senses.encoder" in name] == ["senses.encoder.fingerprint"]
    other = {**config, "encoder": frozen_encoders.folder("dinov2", seed=1)}
    rewrite(saved, other)
    with pytest.raises(WorldError, match="differ from those that this model was fitted with"):
        dreamgym.load(saved)


@needs_encoder
@pytest.mark.parametrize(
    "change", [{"blocks": 1 << 24}, {"context": 1 << 28}, {"mlp": 1 << 28}, {"hidden": 1 << 20}]
)
def test_a_hostile_config_is_refused_before_a_model_is_built(change, tmp_path):
    saved = world_of(a_model().requires_grad_(False)).save(tmp_path / "w")
    config = json.loads((saved / "world.json").read_text())["config"]
    rewrite(saved, config | change)
    with pytest.raises(WorldError, match="does not fit the config"):
        dreamgym.load(saved)


def rewrite(folder, config) -> None:
    path = folder / "world.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))


def image(*shape: int) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gym.spaces.Box(-1, 1, (4,)), "takes one image.* has 0"),
        (gym.spaces.Dict({"a": IMAGE, "b": IMAGE}), "has 2; select the key of one camera"),
        (image(16, 16, 1), "3 colours.*1 channels"),
        (image(4, 16, 16, 3), "3 colours.*without stacking"),
    ],
    ids=["vectors", "two cameras", "grey", "stacked"],
)
def test_spaces_are_refused_before_an_encoder_is_loaded(space, words):
    with pytest.raises(TypeError, match=words):
        DINOWM(space, ACTION_SPACES["box"], DINOWM.config_type(encoder="not/there"))


@needs_encoder
@pytest.mark.parametrize(("kind", "side", "nearest"), [("dinov2", 30, 28), ("vjepa2", 42, 28)])
def test_sizes_that_the_encoder_cannot_take_are_refused(kind, side, nearest):
    config = dino_config(encoder=frozen_encoders.folder(kind), image_size=side)
    with pytest.raises(ValueError, match=rf"image_size={side}.*pass (image_size=)?{nearest}"):
        DINOWM(IMAGE, ACTION_SPACES["box"], config)


@needs_encoder
def test_an_encoder_with_positions_of_one_size_of_image_is_named():
    encoder, side = frozen_encoders.folder("vit"), 2 * frozen_encoders.SIDE
    model = DINOWM(IMAGE, ACTION_SPACES["box"], dino_config(encoder=encoder, image_size=side))
    images = random_observations(IMAGE, 2)
    with pytest.raises(PretrainedError, match=rf"{side}x{side} pixels.*pass the image_size"):
        model.senses.encode(images)


def test_there_is_no_encoder_without_pretrained_weights(tmp_path):
    with pytest.raises(ValueError, match="no encoder without pretrained weights"):
        DINOWM.config_type(encoder="")
    with pytest.raises(PretrainedError, match=r"cannot be loaded|pip install"):
        DINOWM(IMAGE, ACTION_SPACES["box"], DINOWM.config_type(encoder=str(tmp_path)))


@needs_encoder
def test_without_a_decoder_there_are_no_observations():
    model = a_model(decoder=False)
    assert not model.decodes
    with pytest.raises(AttributeError, match="decoder=True"):
        model.decode(model.initial(1))
