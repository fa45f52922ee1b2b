"""Worlds on disk: atomic saving, and everything that loading refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.data.spaces import space_to_json
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import WorldError
from dreamgym.models import ModelSpec
from dreamgym.world.world import World
from tests.small_worlds import small_world, world_of


@pytest.fixture
def folder(tmp_path) -> Path:
    return small_world().save(tmp_path / "small")


def change(folder: Path, **values) -> None:
    path = folder / "world.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_world_folder_holds_description_weights_starts_and_card(folder):
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "README.md",
        "model.safetensors",
        "starts.safetensors",
        "world.json",
    ]
    description = json.loads((folder / "world.json").read_text())
    assert description["family"] == "mdn-rnn"
    assert description["format"] == "dreamgym-world"
    card = (folder / "README.md").read_text()
    assert card.startswith("# small\n")
    assert "family `mdn-rnn`, observations: 4 numbers" in card


def test_loading_touches_no_global_generator(folder):
    before = torch.get_rng_state()
    dreamgym.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def remove_starts(folder: Path) -> None:
    (folder / "starts.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def flip_one_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def break_json(folder: Path) -> None:
    (folder / "world.json").write_text("{")


def remove_description(folder: Path) -> None:
    (folder / "world.json").unlink()


SPOILT = {
    "missing file": (remove_starts, "starts.safetensors is missing"),
    "truncated file": (truncate_weights, "model.safetensors has changed"),
    "one bit": (flip_one_bit, "model.safetensors has changed"),
    "not JSON": (break_json, "not JSON"),
    "no description": (remove_description, "no world.json"),
    "another format": (lambda f: change(f, format="x"), "not a world's description"),
    "newer schema": (lambda f: change(f, schema_version=99), "upgrade dreamgym"),
    "unknown family": (lambda f: change(f, family="mdn-rn"), "did you mean 'mdn-rnn'"),
    "unknown setting": (lambda f: change(f, config={"hiden": 3}), "did you mean 'hidden'"),
    "wrong setting": (lambda f: change(f, config={"hidden": 0}), "hidden=0"),
    "wrong space": (lambda f: change(f, action_space={"type": "Text"}), "cannot be understood"),
    "other shapes": (lambda f: change(f, config={"hidden": 32}), "does not fit the config"),
    "no episode starts": (lambda f: change(f, beginnings=0), "beginnings is 0"),
    "too many episode starts": (lambda f: change(f, beginnings=65), "65 episode starts"),
    "files not an object": (lambda f: change(f, files=[]), "files is not a JSON object"),
    "not an env spec": (lambda f: change(f, env_spec={"id": "X-v0"}), "spec is not valid"),
    "bad termination rule": (lambda f: change(f, termination=1.5), "termination is 1.5"),
    "bad horizon": (lambda f: change(f, horizon="long"), "horizon"),
}


@pytest.mark.parametrize("name", sorted(SPOILT))
def test_a_spoilt_world_is_refused_by_name(folder, name):
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(WorldError, match=message):
        dreamgym.load(folder)


def test_a_world_whose_images_were_read_otherwise_is_refused_with_the_reason(tmp_path):
    images = gym.spaces.Box(0, 255, (20, 24, 3), np.uint8)
    model = ModelSpec(family="mdn-rnn").build(images, gym.spaces.Discrete(2))
    folder = world_of(model.eval()).save(tmp_path / "world")
    change(folder, observation_space=space_to_json(gym.spaces.Box(0, 255, (3, 20, 24), np.uint8)))
    dreamgym.load(folder)  # the transpose of the same images
    change(folder, observation_space=space_to_json(gym.spaces.Box(0, 255, (4, 20, 24), np.uint8)))
    with pytest.raises(WorldError, match=r"\(4, 20, 24\) as \(channels, height, width\).*0\.1\.0"):
        dreamgym.load(folder)


@pytest.mark.parametrize("termination", ["sample", 0.25])
def test_the_termination_rule_is_saved_and_used_by_dreams(folder, tmp_path, termination):
    replace(dreamgym.load(folder), termination=termination).save(tmp_path / "again")
    world = dreamgym.load(tmp_path / "again")
    assert world.termination == termination
    threshold = None if termination == "sample" else termination
    assert (
        DreamVectorEnv(world, 2, output="torch", autoreset_mode="SameStep").options.threshold
        == threshold
    )
    assert (
        DreamVectorEnv(
            world, 2, termination="sample", output="torch", autoreset_mode="SameStep"
        ).options.threshold
        is None
    )
    assert (
        DreamVectorEnv(
            world, 2, termination=0.75, output="torch", autoreset_mode="SameStep"
        ).options.threshold
        == 0.75
    )


def test_an_old_world_without_a_termination_rule_samples(folder):
    description = json.loads((folder / "world.json").read_text())
    del description["termination"]
    (folder / "world.json").write_text(json.dumps(description))
    assert dreamgym.load(folder).termination == "sample"


def test_a_world_that_does_not_exist_is_refused(tmp_path):
    for missing in ("nowhere", "worlds/CartPole-MDNRNN-v0"):
        with pytest.raises(WorldError, match=f"no world '{missing}'"):
            dreamgym.load(missing)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorldError, match="is a file"):
        dreamgym.load(tmp_path / "file")


def test_saving_over_a_world_needs_overwrite_and_replaces_the_whole_folder(folder):
    other = small_world(horizon=9)
    with pytest.raises(FileExistsError):
        other.save(folder)
    other.save(folder, overwrite=True)
    assert dreamgym.load(folder).horizon == 9
    assert [entry.name for entry in folder.parent.iterdir()] == ["small"]


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from dreamgym._files import DiskFullError
from tests.small_worlds import small_world
try:
    small_world(horizon=9).save(sys.argv[1], overwrite=True)
except DiskFullError as error:
    assert sys.argv[1] in str(error), error
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on file sizes to set")
def test_a_full_disk_leaves_the_old_world_and_no_temporary_files(folder):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(folder)], timeout=120)
    assert done.returncode == 7
    assert dreamgym.load(folder).horizon == 7
    assert [entry.name for entry in folder.parent.iterdir()] == ["small"]


def test_a_moved_world_is_the_same_world(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert dreamgym.load(tmp_path / "elsewhere").name == "elsewhere"


def test_the_real_environment_is_made_by_id_and_never_by_class_path(folder):
    spec = {
        "id": "CartPole-v1",
        "entry_point": "antigravity:fly",
        "max_episode_steps": 30,
        "kwargs": {"sutton_barto_reward": True},
        "additional_wrappers": [],
    }
    change(folder, env_spec=spec)
    env = dreamgym.load(folder).real_env()
    assert env.unwrapped._sutton_barto_reward
    assert env.spec.max_episode_steps == 30
    assert "antigravity" not in sys.modules
    change(folder, env_spec={**spec, "additional_wrappers": [{"name": "x"}]})
    with pytest.raises(WorldError, match="wrappers"):
        dreamgym.load(folder).real_env()
    change(folder, env_spec={**spec, "id": "antigravity:CartPole-v1"})
    with pytest.raises(WorldError, match="with a module"):
        dreamgym.load(folder).real_env()
    assert "antigravity" not in sys.modules
    with pytest.raises(WorldError, match="names no environment"):
        small_world().real_env()


def test_family_and_view_are_the_models():
    world: World = small_world()
    assert world.family == "mdn-rnn"
    assert world.default_view == "observation"
