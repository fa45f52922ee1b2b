"""Policy files that ask for more than they hold, or hold what is no number: refused soon."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreamgym.train import PolicyFileError, TrainConfig, load_policy, train_policy

SECONDS, BYTES = 20, 256 << 20  # of CPU time; a bomb takes hours
QUICK = TrainConfig(num_envs=16, n_steps=16, batch_size=64)


@pytest.fixture(scope="module")
def zipped(discrete_world, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "good.zip"
    train_policy(discrete_world, steps=256, out=path, config=QUICK)
    return path


@pytest.fixture(scope="module")
def tensors(discrete_world, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "good.safetensors"
    train_policy(discrete_world, steps=256, out=path, config=QUICK, learner="ppo")
    return path


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(path: Path, message: str) -> None:
    begin, memory = time.process_time(), peak_memory()
    with pytest.raises(PolicyFileError, match=message):
        load_policy(path)
    assert time.process_time() - begin < SECONDS
    assert peak_memory() - memory < BYTES


def rezipped(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change.get(name, old.read(name)))
    return target


def card_of(path: Path) -> dict:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("dreamgym.json"))
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["dreamgym"])


def with_card(path: Path, target: Path, **values) -> Path:
    text = json.dumps({**card_of(path), **values})
    if path.suffix == ".zip":
        return rezipped(path, target, {"dreamgym.json": text.encode()})
    save_file(load_file(path), target, {"dreamgym": text})
    return target


def test_a_good_file_compressed_again_is_read(zipped, tmp_path):
    assert load_policy(rezipped(zipped, tmp_path / "good.zip", {})).card == load_policy(zipped).card


@pytest.mark.parametrize("name", ["policy.pth", "dreamgym.json", "data"])
def test_a_zip_bomb_is_not_unpacked(zipped, tmp_path, name):
    refused(rezipped(zipped, tmp_path / "bomb.zip", {name: bytes(1 << 28)}), "claims 268,435,456")


def test_a_zip_bomb_inside_the_weights_is_not_unpacked(zipped, tmp_path):
    with zipfile.ZipFile(zipped) as archive:
        (tmp_path / "policy.pth").write_bytes(archive.read("policy.pth"))
    inner = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "policy.pth") as archive:
        record = next(name for name in archive.namelist() if "/data/" in name)
    rezipped(tmp_path / "policy.pth", inner, {record: bytes(1 << 26)})
    bomb = rezipped(zipped, tmp_path / "bomb.zip", {"policy.pth": inner.read_bytes()})
    refused(bomb, r"claims 67,108,864")


@pytest.mark.parametrize("layers", [[1 << 20, 1 << 20], [1 << 40], [64] * 100_000, ["x"], [-1]])
@pytest.mark.parametrize("kind", ["zipped", "tensors"])
def test_a_network_is_not_built_before_it_is_compared(request, tmp_path, kind, layers):
    path = request.getfixturevalue(kind)
    policy = {**card_of(path)["policy"], "net_arch": layers}
    refused(with_card(path, tmp_path / path.name, policy=policy), "weights|no policy can be built")


@pytest.mark.parametrize("kind", ["zipped", "tensors"])
def test_a_large_space_is_not_built(request, tmp_path, kind):
    path = request.getfixturevalue(kind)
    box = {"type": "Box", "dtype": "float32", "shape": [1 << 24], "low": 0.0, "high": 1.0}
    for role in ("observation_space", "action_space"):
        refused(with_card(path, tmp_path / path.name, **{role: box}), "describes 67,108,864 bytes")
    many = {"type": "Discrete", "n": 2**29, "start": 0}
    refused(with_card(path, tmp_path / path.name, action_space=many), "weights")


@pytest.mark.parametrize("kind", ["zipped", "tensors"])
def test_a_learner_that_is_no_name_is_refused(request, tmp_path, kind):
    path = request.getfixturevalue(kind)
    refused(with_card(path, tmp_path / path.name, learner=["ppo"]), "learner is .*expected a name")


@pytest.mark.parametrize("mean", [[[0.0, 1.0]] * 4, [0.0, 1.0], []])
def test_scales_of_other_numbers_of_observations_are_refused(zipped, tmp_path, mean):
    policy = {**card_of(zipped)["policy"], "mean": mean}
    refused(with_card(zipped, tmp_path / "bad.zip", policy=policy), "policy|weights")


def test_weights_that_are_not_in_the_file_are_refused(zipped, tmp_path):
    """A view with strides of zero has any size; torch stores its one number."""
    with zipfile.ZipFile(zipped) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    name = "mlp_extractor.policy_net.0.weight"
    for leaf in (torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(9, device="meta")):
        buffer = io.BytesIO()
        torch.save({**weights, name: leaf}, buffer)
        path = rezipped(zipped, tmp_path / "bad.zip", {"policy.pth": buffer.getvalue()})
        refused(path, "not all in the file|without executing")


def test_weights_in_an_older_format_of_torch_are_refused(zipped, tmp_path):
    """It allocates what the file claims before it reads."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
    path = rezipped(zipped, tmp_path / "old.zip", {"policy.pth": buffer.getvalue()})
    refused(path, "cannot be read")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["zipped", "tensors"])
def test_weights_that_are_not_finite_are_refused(request, tmp_path, kind, value):
    path = request.getfixturevalue(kind)
    target = tmp_path / path.name
    if kind == "tensors":
        weights = load_file(path)
        next(v for k, v in weights.items() if k.startswith("actor")).view(-1)[0] = value
        save_file(weights, target, {"dreamgym": json.dumps(card_of(path))})
    else:
        with zipfile.ZipFile(path) as archive:
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
        weights["mlp_extractor.policy_net.0.weight"].view(-1)[0] = value
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        rezipped(path, target, {"policy.pth": buffer.getvalue()})
    refused(target, "holds NaN or an infinity")
