"""Cosmos 3: blocks of actions through diffusers' own pipeline, which is tiny and random here."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dreamgym
from dreamgym.data import Dataset, FrameSkip, SkippedDataset
from dreamgym.dream import DreamVectorEnv
from dreamgym.errors import PretrainedError, WorldError
from dreamgym.fitting import FitConfig, OptimizerConfig
from dreamgym.models import Cosmos3, Cosmos3Config, GoalReward, KnownReward, ModelSpec
from dreamgym.models.cosmos3 import load_cosmos3
from dreamgym.models.nn.distributions import quick_normal
from dreamgym.models.splitmix import uniforms
from dreamgym.models.wrappers import EnsembleConfig
from dreamgym.world.world import World
from tests import tiny_cosmos
from tests.small_worlds import (
    BLOCKS,
    FRAMES,
    TENSORS,
    cosmos_config,
    random_actions,
    random_observations,
    small_world,
    world_of,
)
from tests.tiny_cosmos import ACTION, BLOCK, SIDE

needs_diffusers = pytest.mark.skipif(not tiny_cosmos.INSTALLED, reason=tiny_cosmos.REASON)

SKIP = FrameSkip(steps=BLOCK)


class Room(gym.Env):
    """A spot that actions of two numbers move over a picture; its height is the reward."""

    observation_space = FRAMES
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(8, 24, 2)
        return self.picture(), {}

    def step(self, action):
        self.place = np.clip(self.place + 2 * np.asarray(action), 2, 29)
        return self.picture(), float(self.place[0] / SIDE), False, False, {}

    def picture(self):
        row, column = self.place.astype(int)
        picture = np.full(FRAMES.shape, 40, np.uint8)
        picture[row - 2 : row + 3, column - 2 : column + 3] = (250, 120, 0)
        return picture


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("room") / "room.h5"
    env = gym.wrappers.TimeLimit(Room(), 16)
    return dreamgym.record(env, steps=160, out=path, seed=0)


@pytest.fixture
def model() -> Cosmos3:
    return load_cosmos3(FRAMES, BLOCKS, cosmos_config())


def start(model: Cosmos3, rows: int = 2) -> dict:
    observation = random_observations(FRAMES, rows)
    return model.observe(model.initial(rows), torch.zeros(rows, 8), observation, noise(model, rows))


def noise(model: Cosmos3, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, model.noise_dim, generator=torch.Generator().manual_seed(seed))


@needs_diffusers
@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_is_the_last_frame_of_the_published_pipeline(steps):
    """With the first frame encoded by hand, and the same start noise behind it."""
    import diffusers

    settings = {"prompt": "Move.", "view": "third_person_view", "guidance": 2.0, "flow_shift": 5.0}
    model = load_cosmos3(FRAMES, BLOCKS, cosmos_config(steps=steps, **settings))
    pipeline = diffusers.Cosmos3OmniPipeline.from_pretrained(tiny_cosmos.folder())
    pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(
        pipeline.scheduler.config, flow_shift=5.0, use_karras_sigmas=False
    )
    pipeline.set_progress_bar_config(disable=True)
    state, actions, drawn = start(model), random_actions(BLOCKS, 2), noise(model)
    after, _ = model.step(state, actions, drawn, 0.25)
    for row in range(2):
        condition = diffusers.CosmosActionCondition(
            mode="forward_dynamics",
            chunk_size=BLOCK,
            domain_name="pusht",
            resolution_tier=256,
            raw_actions=actions[row].view(BLOCK, ACTION),
            image=state["frame"][row].float() / 255,
            view_point="third_person_view",
        )
        with torch.no_grad():
            clip = torch.cat([condition.image.unsqueeze(1)] * (BLOCK + 1), 1).mul(2).sub(1)
            # The canvas of 256 pixels, filled up by repeating the frame's edge.
            canvas = torch.nn.functional.pad(clip, (0, 256 - SIDE) * 2, mode="replicate")
            first = pipeline._encode_video(canvas.unsqueeze(0))[:, :, :1, :1, :1]
        key = (int(drawn[row, 0] * 2**24) << 24) | int(drawn[row, 1] * 2**24)
        behind = 0.5 * quick_normal(uniforms(torch.tensor(key), 4)).view(1, 4, 1, 1, 1)
        frames = pipeline(
            prompt="Move.",
            action=condition,
            latents=torch.cat([first, behind], 2),
            fps=10.0,
            num_inference_steps=steps,
            guidance_scale=2.0,
            use_system_prompt=False,
            output_type="pt",
        ).video
        assert frames.shape == (BLOCK + 1, 3, SIDE, SIDE)
        assert torch.equal(after["frame"][row], (frames[-1] * 255).round().to(torch.uint8))


@needs_diffusers
def test_every_action_of_a_block_counts_and_so_does_the_frame(model):
    state, actions, drawn = start(model, 1), random_actions(BLOCKS, 1), noise(model, 1)
    plain = model.step(state, actions, drawn)[0]["frame"]
    for k in range(BLOCK):
        changed = actions.clone()
        changed[:, ACTION * k : ACTION * (k + 1)] *= -1
        assert not torch.equal(model.step(state, changed, drawn)[0]["frame"], plain), k
    other = {"frame": 255 - state["frame"]}
    assert not torch.equal(model.step(other, actions, drawn)[0]["frame"], plain)


@needs_diffusers
def test_dreams_go_from_block_to_block_without_reward_and_end(model):
    env = DreamVectorEnv(world_with(model), 2, device="cpu", view="observation", **TENSORS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observation, _ = env.reset(seed=0)
        for step in range(2):
            before = observation
            observation, reward, terminated, _, _ = env.step(random_actions(BLOCKS, 2, step))
            assert observation.shape == (2, *FRAMES.shape)
            assert observation.dtype == torch.uint8
            assert not torch.equal(observation, before)
            assert not reward.any()
            assert not terminated.any()
    assert env.stepper.execution == "eager"


def world_with(model: Cosmos3) -> World:
    return small_world("cosmos3").with_model(model)


@needs_diffusers
def test_compiling_is_refused_with_one_warning(model):
    env = DreamVectorEnv(world_with(model), 2, device="cpu", compile=True, **TENSORS)
    env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="cannot be compiled here.*syncs with the host"):
        env.step(random_actions(BLOCKS, 2))
    assert env.stepper.execution == "eager"


@needs_diffusers
def test_a_world_of_a_published_pipeline_is_made_saved_and_loaded(room, tmp_path, monkeypatch):
    """Neither making nor loading it takes a step: of the published size, one takes seconds."""
    with Dataset(room) as dataset:
        data = SkippedDataset(dataset, SKIP)
        model = load_cosmos3(data.observation_space, data.action_space, cosmos_config())
        goal = GoalReward(model, data.episode(0).observations[-1])
        with monkeypatch.context() as patched:
            patched.setattr(Cosmos3, "step", None)
            config = FitConfig(starts=8, horizon=3, held_out=0.3)
            dreamgym.from_model(goal, data, tmp_path / "w", config=config)
            world = dreamgym.load(tmp_path / "w")
    assert (world.horizon, world.frame_skip, world.starts.size) == (3, SKIP, 8)
    assert "open_loop" not in world.quality
    card = (tmp_path / "w" / "README.md").read_text()
    assert f"which are not in this folder: {tiny_cosmos.folder()} (licence unknown" in card
    # Only the heads are in the folder.
    assert (tmp_path / "w" / "model.safetensors").stat().st_size < 50_000
    env = gym.make_vec(
        "dreamgym/World-v0", 2, world=str(tmp_path / "w"), view="observation", device="cpu"
    )
    env.reset(seed=0)
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.single_action_space.shape == (BLOCK * ACTION,)
    assert observation.shape == (2, *FRAMES.shape)
    assert (reward < 0).all()


@needs_diffusers
def test_a_fit_trains_the_heads_without_asking_the_pipeline(room, monkeypatch):
    model = load_cosmos3(FRAMES, BLOCKS, cosmos_config(cells=8, hidden=64))
    monkeypatch.setattr(type(model.pipeline), "predict", None)
    config = FitConfig(
        model=model,
        refit_normalisers=True,
        updates=200,
        batch_size=16,
        segment_length=2,
        evaluate_every=200,
        starts=8,
        device="cpu",
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    with Dataset(room) as dataset:
        data = SkippedDataset(dataset, SKIP)
        world = dreamgym.fit(data, family="cosmos3", config=config)
    # In units of the rewards' variance, which is what a constant prediction misses.
    assert world.provenance["history"][-1]["reward"] < 0.3
    assert "open_loop" not in world.quality


@needs_diffusers
def test_a_reward_of_the_user_sees_the_frames_around_a_block(room, model):
    known = KnownReward(model, lambda before, action, after: brightness(after) - brightness(before))
    with Dataset(room) as dataset:
        data = SkippedDataset(dataset, SKIP)
        world = dreamgym.from_model(known, data, config=FitConfig(starts=8))
    env = DreamVectorEnv(world, 2, device="cpu", view="observation", **TENSORS)
    before, _ = env.reset(seed=0)
    after, reward, *_ = env.step(random_actions(BLOCKS, 2))
    assert reward.any()
    torch.testing.assert_close(reward, brightness(after) - brightness(before))


def brightness(observation: torch.Tensor) -> torch.Tensor:
    return observation.flatten(1).float().mean(1)


@needs_diffusers
def test_an_ensemble_dreams():
    member = ModelSpec(family="cosmos3", config=cosmos_config())
    config = EnsembleConfig(member=member, members=2, elites=2)
    model = ModelSpec(family="ensemble", config=config).build(FRAMES, BLOCKS)
    env = DreamVectorEnv(
        world_of(model.requires_grad_(False)), 2, device="cpu", view="observation", **TENSORS
    )
    before, _ = env.reset(seed=0)
    after, *_ = env.step(random_actions(BLOCKS, 2))
    assert not torch.equal(after, before)


@needs_diffusers
def test_copies_and_pickles_step_alike(model):
    state, actions, drawn = start(model), random_actions(BLOCKS, 2), noise(model)
    expected, _ = model.step(state, actions, drawn)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(other.step(state, actions, drawn)[0]["frame"], expected["frame"])


@needs_diffusers
def test_images_are_resized_to_whole_latents():
    space = gym.spaces.Box(0, 255, (3, 40, 40), np.uint8)
    with pytest.raises(ValueError, match=r"40 by 40 .*latents of 32.*image_size=\(32, 32\)"):
        Cosmos3(space, BLOCKS, cosmos_config())
    model = load_cosmos3(space, BLOCKS, cosmos_config(image_size=(SIDE, SIDE)))
    state = model.observe(
        model.initial(1), torch.zeros(1, 8), random_observations(space, 1), noise(model, 1)
    )
    assert state["frame"].shape == (1, 3, SIDE, SIDE)
    after, _ = model.step(state, random_actions(BLOCKS, 1), noise(model, 1))
    assert space.contains(model.decode(after)[0].numpy())


@needs_diffusers
def test_a_dict_of_one_image_is_as_the_image(model):
    inside = load_cosmos3(gym.spaces.Dict(camera=FRAMES), BLOCKS, cosmos_config())
    images, drawn = random_observations(FRAMES, 1), noise(model, 1)
    state = inside.observe(inside.initial(1), torch.zeros(1, 8), {"camera": images}, drawn)
    assert torch.equal(inside.decode(state)["camera"], images)
    actions = random_actions(BLOCKS, 1)
    after, _ = inside.step(state, actions, drawn)
    expected, _ = model.step(start(model, 1), actions, drawn)
    assert torch.equal(after["frame"], expected["frame"])


@needs_diffusers
def test_frames_that_do_not_fit_into_the_canvas_are_refused():
    space = gym.spaces.Box(0, 255, (288, 288, 3), np.uint8)
    model = load_cosmos3(space, BLOCKS, cosmos_config())
    with pytest.raises(ValueError, match=r"tier=256: .*8 by 8 latents, expected 9 by 9"):
        model.step(model.initial(1), random_actions(BLOCKS, 1), noise(model, 1))


@needs_diffusers
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Discrete(3), "a Box of floats"),
        (gym.spaces.Box(-1, 1, (7,), np.float32), "k x 2 numbers, got 7"),
        (gym.spaces.Box(-1, 1, (12,), np.float32), "k a multiple of 4: .*got 12"),
        (gym.spaces.Box(-1, 1, (2,), np.float32), r"FrameSkip\(steps=16\)"),
    ],
)
def test_actions_that_are_no_blocks_are_refused(space, message):
    with pytest.raises(TypeError, match=message):
        Cosmos3(FRAMES, space, cosmos_config())


@needs_diffusers
@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1, 1, (4,), np.float32),
        gym.spaces.Box(0, 255, (32, 32, 1), np.uint8),
        gym.spaces.Dict(a=FRAMES, b=FRAMES),
    ],
)
def test_other_observations_are_refused(space):
    with pytest.raises(TypeError, match="cosmos3"):
        Cosmos3(space, BLOCKS, cosmos_config())


@needs_diffusers
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "moon"}, "moon.*expected one of"),
        ({"tier": 100}, "100.*expected one of"),
        ({"steps": 0}, "steps=0"),
        ({"fps": 0.0}, "fps=0.0"),
        ({"flow_shift": 0.0}, "flow_shift=0.0"),
        ({"image_size": (32,)}, r"image_size=\(32,\)"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"pipeline": ""}, "pretrained weights"),
        ({"view": "from_above"}, "view='from_above'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(**settings))


@needs_diffusers
def test_an_embodiment_with_more_numbers_than_the_weights_is_refused():
    with pytest.raises(PretrainedError, match=r"'galbot' have 30 numbers, .* at most 10"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(domain="galbot"))


def edited(folder: Path) -> Path:
    shutil.copytree(tiny_cosmos.folder(), folder)
    return folder


def weights_of(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


@needs_diffusers
def test_what_is_missing_in_a_folder_is_an_error_and_never_random(tmp_path):
    with pytest.raises(PretrainedError, match="cannot be loaded"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(tmp_path)))
    folder = edited(tmp_path / "p")
    tensors = load_file(weights_of(folder))
    del tensors["proj_out.weight"]
    save_file(tensors, weights_of(folder))
    with pytest.raises(PretrainedError, match=r"lacks 1 tensors \(proj_out.weight\)"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(folder)))
    weights_of(folder).unlink()
    with pytest.raises(PretrainedError, match="cannot be loaded"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(folder)))


@needs_diffusers
def test_a_pipeline_without_actions_is_refused(tmp_path):
    folder = edited(tmp_path / "p")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"action_gen": False}))
    with pytest.raises(PretrainedError, match="not trained with actions"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(folder)))


@needs_diffusers
def test_a_world_is_not_loaded_with_other_weights_than_it_was_made_with(tmp_path):
    folder = edited(tmp_path / "p")
    model = load_cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(folder)))
    world_with(model).save(tmp_path / "w")
    dreamgym.load(tmp_path / "w")
    tensors = load_file(weights_of(folder))
    tensors["proj_out.bias"] += 1
    save_file(tensors, weights_of(folder))
    with pytest.raises(WorldError, match="differ from those"):
        dreamgym.load(tmp_path / "w")


@needs_diffusers
@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: other\nlicense_name: openmdw-1.1\n---\n# Cosmos", "openmdw-1.1"),
        ("---\nlicense: mit\n---\n", "mit"),
        ("# Cosmos\nlicense: mit\n", "licence unknown, see the model's card"),
    ],
)
def test_the_licence_is_that_of_the_pipelines_card(card, licence, tmp_path):
    folder = edited(tmp_path / "p")
    (folder / "README.md").write_text(card)
    model = load_cosmos3(FRAMES, BLOCKS, cosmos_config(pipeline=str(folder)))
    assert model.pretrained_weights == f"{folder} ({licence})"


@needs_diffusers
def test_a_guardrail_that_is_not_installed_is_an_error():
    if find_spec("cosmos_guardrail"):
        pytest.skip("the guardrail is installed")
    with pytest.raises(PretrainedError, match=r"cosmos_guardrail.*guardrail=False"):
        Cosmos3(FRAMES, BLOCKS, cosmos_config(guardrail=True))


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = Cosmos3Config(domain="pusht", fps=10)
    with pytest.raises(PretrainedError, match=r"pip install 'dreamgym\[cosmos\]'"):
        Cosmos3(FRAMES, BLOCKS, config)
