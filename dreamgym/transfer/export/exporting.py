"""The folder of an exported controller: its graphs, and a JSON that says how to run them."""

from __future__ import annotations

import copy
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from dreamgym._device import float32_by_default
from dreamgym._files import atomic_folder, local_path, require_new, sha256
from dreamgym.data.mixture import DatasetSource
from dreamgym.data.spaces import space_to_json
from dreamgym.errors import TransferError
from dreamgym.models import WorldModel
from dreamgym.train.policy import TrainedPolicy, load_policy, world_checksum
from dreamgym.transfer.export.graphs import (
    ACTION,
    DISAGREEMENT,
    FOLLOWING,
    NOISE,
    PREVIOUS,
    START,
    STATE,
    SURPRISE,
    TEMPERATURE,
    FilterGraph,
    Graph,
    ReactiveGraph,
    StepGraph,
)
from dreamgym.transfer.export.guard import QUANTILE, Calibration, Guard, calibrate
from dreamgym.transfer.export.onnx_file import Run, describe_onnx, open_onnx, write_onnx
from dreamgym.transfer.policies import TensorPolicy
from dreamgym.world.held_out import open_for
from dreamgym.world.world import World, as_world

CONTROLLER, WORLD, DESCRIPTION = "controller.onnx", "world.onnx", "controller.json"
SCHEMA = 1

TOLERANCE = 1e-4
"""Largest difference of an output from torch's, relative to its size where that is above one."""

_CHECKED_STEPS = 20
_TIMED_STEPS = 200
_UNTIMED_STEPS = 20

_MEANINGS = {
    START: "true in the first call of an episode: state and previous action are then ignored",
    PREVIOUS: "the action that was carried out since the last call, whoever chose it",
    NOISE: "fresh uniform numbers in [0, 1) for each call; 0.5 everywhere makes the filter "
    "deterministic",
    ACTION: "the action to carry out, in the environment's units",
    SURPRISE: "mean squared error of the prediction of this observation, in units of the variance "
    "that was expected of it; 1 in the mean over held-out data",
    DISAGREEMENT: "how much the members of the model disagree about this step",
    TEMPERATURE: "1 samples the model as it was fitted",
    "reward": "predicted reward of the step",
    "termination": "predicted probability that the episode ends with the step",
    "uncertainty": "epistemic uncertainty of the step; 0 in a model that has none",
    "features": "what a policy of the latent view sees",
}


@float32_by_default()
def export_policy(
    policy: TrainedPolicy | TensorPolicy | str | Path | None,
    world: World | str | Path | None = None,
    *,
    out: str | Path,
    data: DatasetSource | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write encoder, filter and policy as ONNX, with all that a control loop needs to know.

    The folder holds `controller.onnx`, one cycle of the loop; `world.onnx`, the world's step, if
    there is a world; and `controller.json`, which describes every input and output. It runs with
    onnxruntime and NumPy alone: examples/robot_loop.py. Every graph is compared with torch before
    the folder is written.

    Args:
        policy: a policy, the path of its file, or a `TensorPolicy`; None for a filter without a
            policy. Actions are its most likely ones.
        world: the world that it was trained in: a world, its folder, or the name of one that ships.
            A policy of the observation view needs none, and has no guard then.
        out: folder to write.
        data: the dataset of the fit, or another one of the environment: the guard's thresholds are
            measured on its held-out episodes. None leaves the guard out.
        overwrite: whether to overwrite an existing folder.

    Returns:
        The description, as in `controller.json`.

    Raises:
        FileExistsError: `out` exists, and `overwrite` is false.
        ModuleNotFoundError: the extra `onnx` is not installed.
        PolicyFileError: the policy's file cannot be used, or does not fit the world.
        WorldError: there is no such world, or the data does not fit it.
        TransferError: there is neither policy nor world; the policy sees latents and there is no
            world; the world is played in latent actions; torch cannot export a model; or what was
            exported differs from the original.
    """
    target = local_path(out, TransferError)
    require_new(target, overwrite=overwrite)
    loaded = None if world is None else as_world(world)
    if isinstance(policy, str | Path):
        policy = load_policy(policy, world=loaded)
    _check(policy, loaded)
    model = None if loaded is None else copy.deepcopy(loaded.model).cpu().eval()
    actor = None if policy is None else copy.deepcopy(policy.actor()).cpu().eval()
    guard, calibration = None, None
    if model is not None and loaded is not None and data is not None:
        guard = Guard(model)
        with open_for(loaded, data) as opened:
            calibration = calibrate(guard, opened)
    graphs: dict[str, Graph] = {CONTROLLER: _controller(policy, loaded, model, actor, guard)}
    if model is not None:
        graphs[WORLD] = StepGraph(model, 1)
    description = _describe(policy, loaded)
    with atomic_folder(target, replace=overwrite) as folder:
        described = {}
        for name, graph in graphs.items():
            write_onnx(graph.eval(), folder / name, optional=(NOISE,))
            _check_equal(graph, folder / name)
            described[name] = {
                **_with_meanings(describe_onnx(folder / name)),
                "sha256": sha256(folder / name),
            }
        description["graphs"] = described
        description |= _loop(described[CONTROLLER])
        description["guard"] = _guard(guard, calibration, graphs[CONTROLLER])
        description["latency"] = _latency(open_onnx(folder / CONTROLLER), graphs[CONTROLLER])
        text = json.dumps(description, indent=1) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return description


def _check(policy: TrainedPolicy | TensorPolicy | None, world: World | None) -> None:
    if policy is None and world is None:
        raise TransferError("there is nothing to export; give a policy, a world, or both")
    if world is not None:
        world.check_takes_data_actions(TransferError)
    if policy is not None and policy.view == "latent" and world is None:
        raise TransferError(
            "the policy sees the latent view of a world; give that world as well, whose filter "
            "makes the latents of observations"
        )
    if isinstance(policy, TensorPolicy) and world is None and policy.spaces is None:
        raise TransferError(
            "neither the policy nor a world says what the observations and actions are; give a "
            "world, or TensorPolicy(..., observation_space=, action_space=)"
        )


def _controller(
    policy: TrainedPolicy | TensorPolicy | None,
    world: World | None,
    model: WorldModel | None,
    actor: nn.Module | None,
    guard: Guard | None,
) -> Graph:
    """Return the graph of one cycle; without state where nothing needs one."""
    view = "latent" if policy is None else policy.view
    if model is not None and (view == "latent" or guard is not None):
        return FilterGraph(model, actor, view, guard)
    if actor is None:
        raise TransferError("a controller without a world needs a policy")
    return ReactiveGraph(actor, _spaces(policy, world))


def _spaces(
    policy: TrainedPolicy | TensorPolicy | None, world: World | None
) -> tuple[gym.Space, gym.Space]:
    """Return observation space and action space of the real environment."""
    if world is not None:
        return world.observation_space, world.action_space
    if policy is None or policy.observation_space is None or policy.action_space is None:
        raise TransferError("the policy does not say what its spaces are")
    return policy.observation_space, policy.action_space


def _describe(policy: TrainedPolicy | TensorPolicy | None, world: World | None) -> dict[str, Any]:
    """Return what the JSON says about the origin of the graphs."""
    observation_space, action_space = _spaces(policy, world)
    card = policy.card if isinstance(policy, TrainedPolicy) else None
    env_id = card.env_id if card is not None else None
    skip = policy.frame_skip if isinstance(policy, TrainedPolicy) else None
    if world is not None:
        env_id, skip = world.env_id, world.frame_skip
    return {
        "format": "dreamgym controller",
        "schema": SCHEMA,
        "env_id": env_id,
        "policy": None
        if policy is None
        else {"name": policy.name, "view": policy.view, "actions": "most likely"},
        "world": None
        if world is None
        else {"name": world.name, "weights_sha256": world_checksum(world)},
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        # One action is a block of this many of the environment's, or one that is repeated.
        "frame_skip": skip.to_json() if skip is not None else {},
        "versions": {name: version(name) for name in ("dreamgym", "torch", "onnx", "onnxruntime")},
    }


def _loop(described: dict[str, Any]) -> dict[str, Any]:
    """Return which outputs of the controller are the inputs of the next call, and what noise is."""
    names = {each["name"] for each in described["inputs"]}
    state = {
        each["name"]: STATE + each["name"].removeprefix(FOLLOWING)
        for each in described["outputs"]
        if each["name"].startswith(FOLLOWING)
    }
    noise = "uniform [0, 1), an input" if NOISE in names else "none: the filter is deterministic"
    return {"state": state, "noise": noise}


def _guard(
    guard: Guard | None, calibration: Calibration | None, graph: Graph
) -> dict[str, Any] | None:
    """Return the thresholds of the guard's outputs; None without a guard."""
    if guard is None or calibration is None:
        return None
    pairs = zip((SURPRISE, DISAGREEMENT), calibration.thresholds, calibration.medians, strict=True)
    return {
        "compares": guard.compares,
        "quantile": QUANTILE,
        "held_out_observations": calibration.transitions,
        "outputs": {
            name: {"threshold": float(threshold), "median": float(median)}
            for name, threshold, median in pairs
            if name in graph.outputs
        },
    }


def _with_meanings(described: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        side: [{**each, "meaning": _meaning(each["name"])} for each in values]
        for side, values in described.items()
    }


def _meaning(name: str) -> str:
    if name.startswith(STATE):
        return f"{FOLLOWING}{name.removeprefix(STATE)} of the last call; zeros in the first"
    if name.startswith(FOLLOWING):
        return f"{STATE}{name.removeprefix(FOLLOWING)} of the next call"
    return _MEANINGS.get(name, "the observation, in the environment's units")


def _inputs(graph: Graph, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return random inputs of a graph; the state is as it is."""
    inputs = {}
    for name, example in graph.examples.items():
        value = example
        if name == START:
            value = torch.zeros_like(example)
        elif name.startswith("observation") and not example.is_floating_point():
            value = torch.from_numpy(rng.integers(0, 256, example.shape)).to(example.dtype)
        elif name.startswith("observation"):
            value = torch.from_numpy(rng.normal(size=example.shape)).to(example.dtype)
        elif name == NOISE:
            value = torch.from_numpy(rng.random(example.shape, dtype=np.float32))
        inputs[name] = value
    return inputs


@torch.no_grad()
def _check_equal(graph: Graph, path: Path) -> None:
    """Compare what was written with the original over some steps, from the same states.

    Raises:
        TransferError: they differ by more than `TOLERANCE` in more than one step. (In one, a number
            may have been rounded to the other side of a threshold.)
    """
    run, rng = open_onnx(path), np.random.default_rng(0)
    state = {name: leaf for name, leaf in graph.examples.items() if name.startswith(STATE)}
    errors = []
    for step in range(_CHECKED_STEPS):
        inputs = {**_inputs(graph, rng), **state}
        if START in inputs:
            inputs[START] = torch.full_like(inputs[START], step == 0)
        expected = dict(zip(graph.outputs, graph(*inputs.values()), strict=True))
        actual = run({name: value.numpy() for name, value in inputs.items()})
        errors.append(
            max(
                float(np.max(_difference(actual[name], value.numpy()), initial=0.0))
                for name, value in expected.items()
            )
        )
        state = {
            STATE + name.removeprefix(FOLLOWING): value
            for name, value in expected.items()
            if name.startswith(FOLLOWING)
        }
    if not sorted(errors)[-2] <= TOLERANCE:
        raise TransferError(
            f"what onnxruntime computes differs from the original by up to {max(errors):.2g}, more "
            f"than {TOLERANCE}; this model cannot be exported with these versions of torch, "
            "onnxscript and onnxruntime"
        )


def _difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    reference = expected.astype(np.float64)
    return np.abs(actual.astype(np.float64) - reference) / np.maximum(1.0, np.abs(reference))


def _latency(run: Run, graph: Graph) -> dict[str, Any]:
    """Measure the time of one call here, on one thread."""
    rng = np.random.default_rng(0)
    inputs = {name: value.numpy() for name, value in _inputs(graph, rng).items()}
    times = []
    for _ in range(_UNTIMED_STEPS + _TIMED_STEPS):
        start = time.perf_counter()
        run(inputs)
        times.append(1e3 * (time.perf_counter() - start))
    measured = times[_UNTIMED_STEPS:]
    return {
        "median_ms": round(float(np.median(measured)), 3),
        "p99_ms": round(float(np.percentile(measured, 99)), 3),
        "calls": _TIMED_STEPS,
        "threads": 1,
        "processor": platform.processor() or platform.machine(),
    }
