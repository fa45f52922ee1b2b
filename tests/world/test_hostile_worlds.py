"""Worlds whose checksums are right and whose contents are not: refused soon, with little memory."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dreamgym
from dreamgym._files import sha256
from dreamgym.errors import WorldError
from dreamgym.models.weights import shape_mismatch
from tests.small_worlds import KINDS, small_model, small_world

SECONDS, BYTES = 20, 256 << 20  # of CPU time; a bomb takes hours


@pytest.fixture
def folder(tmp_path) -> Path:
    return small_world().save(tmp_path / "small")


def change(folder: Path, **values) -> None:
    path = folder / "world.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, name: str, function: Callable) -> None:
    """Replace the tensors of a file, and its checksum."""
    save_file({k: function(k, v) for k, v in load_file(folder / name).items()}, folder / name)
    files = json.loads((folder / "world.json").read_text())["files"]
    files[name] = {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
    change(folder, files=files)


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(folder: Path, message: str) -> None:
    begin, memory = time.process_time(), peak_memory()
    with pytest.raises(WorldError, match=message):
        dreamgym.load(folder)
    assert time.process_time() - begin < SECONDS
    assert peak_memory() - memory < BYTES


def nested_ensembles(depth: int) -> dict:
    spec = {"family": "mdn-rnn", "config": {}}
    for _ in range(depth):
        spec = {"family": "ensemble", "config": {"member": spec, "members": 5}}
    return spec


@pytest.mark.parametrize("depth", [2, 9, 200])
def test_ensembles_of_ensembles_are_not_built(folder, depth):
    change(folder, **nested_ensembles(depth))
    refused(folder, "does not fit the config|cannot be understood: maximum recursion")


BOMBS = [
    ("mdn-rnn", {"hidden": 1 << 20}),
    ("mdn-rnn", {"trunk": 1 << 28}),
    ("rssm", {"units": 1 << 20}),
    ("jepa", {"blocks": 1 << 24}),
    ("pets", {"layers": 1 << 24}),
    ("storm", {"blocks": 1 << 24}),
    ("storm", {"width": 1 << 20}),
    ("twister", {"context": 1 << 28}),
    ("twister", {"objective": {"contrastive_steps": 1 << 24}}),
    ("dreamer4", {"blocks": 1 << 24}),
    ("dreamer4", {"context": 1 << 28}),
    ("dreamer4", {"finest": 1 << 28}),
    ("tdmpc2", {"values": 1 << 24}),
    ("tdmpc2", {"encoder_layers": 1 << 24}),
    ("diamond", {"blocks": 1 << 24}),
    ("diamond", {"hidden": 1 << 20}),
    ("iris", {"residual_blocks": 1 << 24}),
    ("iris", {"latent": 1 << 28}),
    ("delta-iris", {"latent": 1 << 28}),
    ("genie", {"context": 1 << 28}),
    ("genie", {"blocks": 1 << 24}),
    ("genie", {"action_blocks": 1 << 24}),
    ("ensemble", {"members": 1 << 30}),
]


@pytest.mark.parametrize(("family", "config"), BOMBS, ids=str)
def test_a_model_is_not_built_before_it_is_compared_with_its_weights(folder, family, config):
    change(folder, family=family, config=config)
    refused(folder, "does not fit the config|cannot be understood")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.safetensors", "starts.safetensors"])
def test_numbers_that_are_not_finite_are_refused(folder, name, value):
    done = []

    def spoil(_: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.ndim == 2 and not done:
            done.append(tensor)
            tensor = tensor.clone()
            tensor[-1, 0] = value
        return tensor

    change_tensors(folder, name, spoil)
    refused(folder, f"{name}: .* holds NaN or an infinity")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_start_states_of_another_dtype_are_refused(folder, dtype):
    change_tensors(folder, "starts.safetensors", lambda _, leaf: leaf.to(dtype))
    refused(folder, "starts.safetensors does not fit the model")


def test_start_states_that_are_missing_are_refused(folder):
    save_file({}, folder / "starts.safetensors")
    change_tensors(folder, "starts.safetensors", lambda _, leaf: leaf)
    refused(folder, "starts.safetensors")


@pytest.mark.parametrize("limit", [-1, "long", [], 1.5])
def test_an_odd_time_limit_is_refused(folder, limit):
    change(folder, provenance={"dataset_time_limit": limit})
    refused(folder, "dataset_time_limit")


@pytest.mark.parametrize(("kind", "action"), KINDS, ids="-".join)
def test_every_family_is_compared_without_memory(kind, action):
    """The contract: a constructor that computes with values could not be compared."""
    model = small_model(kind, action)
    shapes = {name: tuple(leaf.shape) for name, leaf in model.state_dict().items()}
    clone = copy.deepcopy(model)

    def build() -> torch.nn.Module:
        return type(model).from_config(model.observation_space, model.action_space, clone.config)

    assert shape_mismatch(build, shapes) == ""
    name = max(shapes)
    assert name in shape_mismatch(build, shapes | {name: (3, 1, 4)})
    assert "unknown" in shape_mismatch(build, shapes | {"other": (1,)})


def test_integers_that_are_no_indices_are_refused(folder):
    def spoil(_: str, leaf: torch.Tensor) -> torch.Tensor:
        return leaf if leaf.is_floating_point() else torch.full_like(leaf, -(2**62))

    change_tensors(folder, "model.safetensors", spoil)
    refused(folder, "a step from its start states fails")


def test_weights_that_predict_no_number_are_refused(folder):
    change_tensors(
        folder,
        "model.safetensors",
        lambda _, leaf: leaf * 1e30 if leaf.is_floating_point() and leaf.ndim == 2 else leaf,
    )
    refused(folder, "predicts NaN")
