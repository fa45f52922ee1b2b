"""V-JEPA 2-AC with a tiny random V-JEPA 2."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import VJEPA2AC, Segment, VJEPA2ACConfig
from dreamgym.models.base import filter_states
from dreamgym.models.patches import PatchObjective
from dreamgym.models.vjepa2_ac.modules import droid_pose
from tests import frozen_encoders
from tests.data.samples import dict_cartpole
from tests.small_worlds import STATISTICS, random_actions, random_observations, vjepa2_config

IMAGE = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
POSES = gym.spaces.Dict({"camera": IMAGE, "pose": gym.spaces.Box(-3.0, 3.0, (7,), np.float32)})
JOINTS = gym.spaces.Dict({"camera": IMAGE, "joints": gym.spaces.Box(-3.0, 3.0, (4,), np.float32)})
MOVES = gym.spaces.Box(-0.5, 0.5, (7,), np.float32)
BATCH, PATCHES, WIDTH = 3, 4, 24
DROID = {"pose": "droid", "units": "raw"}

needs_encoder = pytest.mark.skipif(
    not frozen_encoders.INSTALLED, reason="transformers is not installed"
)


def a_model(space: gym.Space = POSES, **settings) -> VJEPA2AC:
    torch.manual_seed(0)
    model = VJEPA2AC(space, MOVES, vjepa2_config(**settings))
    moments = {"joints": STATISTICS.vector} if space is JOINTS else {}
    model.set_statistics(STATISTICS._replace(observation=moments))
    return model.eval()


def a_segment(model: VJEPA2AC, length: int) -> Segment:
    flat = random_observations(model.observation_space, BATCH * (length + 1), 0)
    parts = {key: leaf.unflatten(0, (BATCH, length + 1)) for key, leaf in flat.items()}
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    actions = random_actions(model.action_space, BATCH * length).unflatten(0, (BATCH, length))
    return Segment(parts, actions, torch.zeros(BATCH, length), ~mask, mask)


def no_noise(length: int) -> torch.Tensor:
    return torch.zeros(BATCH, length + 1, 0)


def layer_normed(patches: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(patches, (WIDTH,))


@needs_encoder
@pytest.mark.parametrize("seen", [1, 3, 4, 6])
def test_a_step_is_the_authors(seen):
    """Layer-normed patches of the frames, raw actions and poses; the pose by arithmetic."""
    model, segment = a_model(**DROID), a_segment(a_model(**DROID), 6)
    states = filter_states(model, segment, no_noise(6))
    state = {key: leaf[:, seen - 1] for key, leaf in states.items()}
    part = slice(max(0, seen - model.config.context), seen)
    patches = layer_normed(model.senses.encode(segment.observation)[:, part])
    poses, actions = segment.observation["pose"][:, part], segment.action[:, part]
    output = layer_normed(model.predictor(patches, actions, poses)[:, -1])
    following, prediction = model.step(state, actions[:, -1], torch.zeros(BATCH, 0))
    newest = model.newest(following)
    torch.testing.assert_close(newest["patches"], output.flatten(1))
    torch.testing.assert_close(newest["vectors"], droid_pose(poses[:, -1], actions[:, -1]))
    assert prediction.reward.shape == (BATCH,)


@needs_encoder
def test_the_loss_is_teacher_forcing_and_two_steps_of_predictions():
    model, segment = a_model(**DROID), a_segment(a_model(**DROID), 4)
    _, terms = model.loss(segment, no_noise(4))
    patches = layer_normed(model.senses.encode(segment.observation))
    poses, actions = segment.observation["pose"], segment.action
    forced = layer_normed(model.predictor(patches[:, :-1], actions, poses[:, :-1]))
    torch.testing.assert_close(terms["prediction"], (forced - patches[:, 1:]).abs().mean())
    window = torch.stack([patches[:, 0], forced[:, 0]], 1)
    second = layer_normed(model.predictor(window, actions[:, :2], poses[:, :2]))[:, -1]
    rolled = torch.stack([forced[:, 0], second], 1)
    torch.testing.assert_close(terms["rollout"], (rolled - patches[:, 1:3]).abs().mean())
    assert set(terms) == {"prediction", "rollout", "reward", "termination", "image"}


@needs_encoder
def test_one_step_needs_no_rollout_and_more_steps_go_on():
    lengths = {}
    for steps in (1, 2, 4):
        model = a_model(objective=PatchObjective(rollout_steps=steps))
        _, terms = model.loss(a_segment(model, 4), no_noise(4))
        lengths[steps] = terms.get("rollout")
    assert lengths[1] is None
    assert lengths[2] != lengths[4]


@needs_encoder
def test_a_head_learns_how_the_vectors_follow():
    """From a Dict of an image and joints; a dream that leaves their range ends."""
    model = a_model(JOINTS).train()
    segment = a_segment(model, 4)
    joints = segment.observation["joints"].clone()
    for t in range(4):
        joints[:, t + 1] = joints[:, t] + segment.action[:, t, :4]
    segment = segment._replace(observation=segment.observation | {"joints": joints})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    errors = []
    for _ in range(60):
        loss, terms = model.loss(segment, no_noise(4))
        errors.append(float(terms["vector"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.1 * errors[0]
    narrow = STATISTICS.vector._replace(
        low=STATISTICS.vector.mean - 1e-5,
        high=STATISTICS.vector.mean + 1e-5,
        delta_std=torch.full((4,), 1e-6),
    )
    model.eval().set_statistics(STATISTICS._replace(observation={"joints": narrow}))
    state = {k: v[:, -1] for k, v in filter_states(model, segment, no_noise(4)).items()}
    _, prediction = model.step(state, segment.action[:, 0], torch.zeros(BATCH, 0))
    assert (prediction.termination == 1).all()
    assert (prediction.reward == -30).all()


@needs_encoder
def test_images_and_vectors_from_a_fit_to_a_dream(tmp_path):
    data = dreamgym.record(dict_cartpole(), steps=60, out=tmp_path / "d.h5", seed=0)
    config = dreamgym.default_config("vjepa2-ac", updates=2, batch_size=2, model=vjepa2_config())
    world = dreamgym.fit(data, tmp_path / "w", family="vjepa2-ac", config=config)
    assert world.model.config.encoder == frozen_encoders.folder("vjepa2")
    env = DreamVectorEnv(dreamgym.load(tmp_path / "w"), 2, view="observation", output="numpy")
    env.reset(seed=0)
    observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)


@needs_encoder
def test_segments_longer_than_the_context_are_refused():
    model = a_model()
    with pytest.raises(ValueError, match="context of 4: fit with segment_length=4 or less"):
        model.loss(a_segment(model, 5), no_noise(5))


@pytest.mark.parametrize(
    ("space", "actions"),
    [(POSES, gym.spaces.Box(-1, 1, (6,))), (JOINTS, MOVES), (POSES, gym.spaces.Discrete(7))],
    ids=["six numbers", "four joints", "choices"],
)
def test_poses_need_seven_numbers_and_as_many_actions(space, actions):
    config = replace(VJEPA2ACConfig(encoder="not/there"), **DROID)
    with pytest.raises(TypeError, match=r"7 numbers beside the image.*pose='learned'"):
        VJEPA2AC(space, actions, config)
