from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO

from dreamgym._files import sha256
from dreamgym.models import ModelSpec
from dreamgym.train import PolicyFileError, TrainConfig, TrainingError, load_policy, train_policy
from tests.small_worlds import built, small_model, small_world

QUICK = TrainConfig(num_envs=16, n_steps=16, batch_size=64)


class Bait:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "caught")


@pytest.fixture(scope="module")
def good(discrete_world, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "good.zip"
    train_policy(discrete_world, steps=256, out=path, config=QUICK)
    return path


def changed(source, target, **members):
    """Copy a zip with some members replaced, or left out where None."""
    names = {name.replace("_DOT_", "."): value for name, value in members.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name not in names:
                new.writestr(name, old.read(name))
        for name, value in names.items():
            if value is not None:
                new.writestr(name, value)
    return target


def test_pickles_in_the_data_are_never_run(good, discrete_world, tmp_path):
    trap = tmp_path / "trap"
    poison = base64.b64encode(cloudpickle.dumps(Bait(trap))).decode()
    with zipfile.ZipFile(good) as archive:
        data = json.loads(archive.read("data"))
    poisoned = {key: {":type:": "x", ":serialized:": poison} for key in data}
    path = changed(good, tmp_path / "bad.zip", data=json.dumps(poisoned))
    policy = load_policy(path, world=discrete_world)
    policy.predict(np.zeros((1, 4), np.float32))
    assert not trap.exists()
    # the bait is live: Stable-Baselines3's own load runs it
    with pytest.raises(Exception):  # noqa: B017, PT011
        PPO.load(path, device="cpu")
    assert trap.exists()


@pytest.mark.parametrize("serialise", ["torch", "pickle"])
def test_pickles_in_the_weights_are_never_run(good, tmp_path, serialise):
    trap = tmp_path / "trap"
    if serialise == "torch":
        buffer = io.BytesIO()
        torch.save({"weight": Bait(trap)}, buffer)
        poison = buffer.getvalue()
    else:
        poison = pickle.dumps({"weight": Bait(trap)})
    path = changed(good, tmp_path / "bad.zip", policy_DOT_pth=poison)
    with pytest.raises(PolicyFileError, match="without executing"):
        load_policy(path)
    assert not trap.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PolicyFileError, match=r"no policy .*nothing\.zip"):
        load_policy(tmp_path / "nothing.zip")


def test_the_suffix_may_be_left_out(good):
    assert load_policy(good.with_suffix("")).card.algo == "PPO"


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_a_file_that_is_not_a_zip_is_refused(tmp_path, content):
    path = tmp_path / "policy.zip"
    path.write_bytes(content)
    with pytest.raises(PolicyFileError, match="not a zip"):
        load_policy(path)


def test_a_zip_cut_short_is_refused(good, tmp_path):
    path = tmp_path / "short.zip"
    path.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(PolicyFileError, match="short"):
        load_policy(path)


def test_a_zip_with_flipped_bytes_is_refused(good, tmp_path):
    content = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        info = archive.getinfo("policy.pth")
    content[info.header_offset + 2000] ^= 0xFF
    path = tmp_path / "flipped.zip"
    path.write_bytes(bytes(content))
    with pytest.raises(PolicyFileError, match="flipped"):
        load_policy(path)


def test_a_zip_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(PolicyFileError, match=r"without policy\.pth"):
        load_policy(path)


def test_a_newer_card_is_refused(good, tmp_path):
    with zipfile.ZipFile(good) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    path = changed(good, tmp_path / "new.zip", dreamgym_DOT_json=json.dumps({**card, "schema": 9}))
    with pytest.raises(PolicyFileError, match="install a newer"):
        load_policy(path)


def test_a_card_of_before_there_were_several_learners_is_read(good, tmp_path):
    with zipfile.ZipFile(good) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    del card["learner"]
    path = changed(good, tmp_path / "old.zip", dreamgym_DOT_json=json.dumps(card))
    assert load_policy(path).card == load_policy(good).card


@pytest.mark.parametrize("card", ["{", "[]", '{"schema": 1}'])
def test_a_damaged_card_is_refused(good, tmp_path, card):
    path = changed(good, tmp_path / "damaged.zip", dreamgym_DOT_json=card)
    with pytest.raises(PolicyFileError, match="card"):
        load_policy(path)


def test_a_card_that_does_not_fit_the_weights_is_refused(good, tmp_path):
    with zipfile.ZipFile(good) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    card["policy"]["net_arch"] = [8]
    path = changed(good, tmp_path / "odd.zip", dreamgym_DOT_json=json.dumps(card))
    with pytest.raises(PolicyFileError, match="weights"):
        load_policy(path)


def test_a_card_with_an_unknown_algorithm_is_refused(good, tmp_path):
    with zipfile.ZipFile(good) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    text = json.dumps({**card, "algo": "os.system"})
    with pytest.raises(TrainingError, match=r"os\.system"):
        load_policy(changed(good, tmp_path / "odd.zip", dreamgym_DOT_json=text))


def test_another_environments_world_is_refused(good, box_world):
    with pytest.raises(PolicyFileError, match=r"action space Discrete\(3\).*needs Box"):
        load_policy(good, world=box_world)


def test_a_world_with_another_number_of_actions_is_refused(good, discrete_world):
    model = built(ModelSpec(family="mdn-rnn"), "discrete")
    model.action_space = gym.spaces.Discrete(2)
    with pytest.raises(PolicyFileError, match=r"action space Discrete\(3\).*needs Discrete\(2\)"):
        load_policy(good, world=replace(discrete_world, model=model))


def test_latents_of_other_weights_are_refused(good, discrete_world, tmp_path):
    """They are as wide as those of its own world, but differ in meaning."""
    other = replace(discrete_world, model=small_model("mdn-rnn", "discrete", seed=1))
    assert load_policy(good, world=other).view == "observation", "real observations mean the same"
    config = replace(QUICK, view="latent")
    path = tmp_path / "latent.zip"
    train_policy(discrete_world, steps=256, out=path, config=config)
    assert load_policy(path, world=discrete_world).view == "latent"
    with pytest.raises(PolicyFileError, match="with other weights"):
        load_policy(path, world=other)
    with zipfile.ZipFile(path) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    unknown = json.dumps({**card, "world_checksum": None})
    load_policy(changed(path, tmp_path / "old.zip", dreamgym_DOT_json=unknown), world=other)


@pytest.mark.parametrize("kind", ["mdn-rnn", "nested"])
def test_a_policy_on_the_latents_of_an_older_world_is_accepted(kind, tmp_path):
    """Worlds had no bounds of the terminations' rewards; they dream as before, and are the same."""
    world = small_world(kind)
    path, folder = tmp_path / "latent.zip", world.save(tmp_path / "w")
    train_policy(world, steps=256, out=path, config=replace(QUICK, view="latent"))
    older = load_file(folder / "model.safetensors")
    bounds = [name for name in older if "terminal_reward" in name]
    assert bounds
    save_file({name: older[name] for name in older.keys() - bounds}, folder / "model.safetensors")
    checksum = sha256(folder / "model.safetensors")
    description = json.loads((folder / "world.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    description["files"]["model.safetensors"] = {"sha256": checksum, "bytes": size}
    (folder / "world.json").write_text(json.dumps(description))
    with zipfile.ZipFile(path) as archive:
        card = json.loads(archive.read("dreamgym.json")) | {"world_checksum": checksum}
    before = changed(path, tmp_path / "before.zip", dreamgym_DOT_json=json.dumps(card))
    assert load_policy(before, world=folder).view == "latent"


def test_a_foreign_zip_needs_algo_and_env(tmp_path):
    env = gym.make("CartPole-v1")
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, device="cpu")
    model.save(tmp_path / "foreign.zip")
    with pytest.raises(PolicyFileError, match=r"algo=.*env="):
        load_policy(tmp_path / "foreign.zip")
    policy = load_policy(tmp_path / "foreign.zip", algo="PPO", env=env)
    observations = np.stack([env.observation_space.sample() for _ in range(32)])
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(policy.predict(observations)[0], expected)


def test_a_foreign_network_that_is_pickled_is_refused(tmp_path):
    env = gym.make("CartPole-v1")
    model = PPO("MlpPolicy", env, policy_kwargs={"activation_fn": torch.nn.ReLU}, device="cpu")
    model.save(tmp_path / "foreign.zip")
    with pytest.raises(PolicyFileError, match="activation_fn"):
        load_policy(tmp_path / "foreign.zip", algo="PPO", env=env)


def test_a_policy_from_a_file_has_no_learner_to_save(good, tmp_path):
    with pytest.raises(PolicyFileError, match="copy its file"):
        load_policy(good).save(tmp_path / "copy.zip")


def test_reading_leaves_the_global_generator_alone(good):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_policy(good)
    assert torch.equal(torch.rand(3), expected)
