"""Controllers and worlds as ONNX: what runs there is what ran here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.errors import PolicyFileError, TransferError
from dreamgym.models import ModelSpec
from dreamgym.models.base import zero_action
from dreamgym.train import TrainConfig, clone_policy, load_policy
from dreamgym.transfer import ExportedPolicy, LatentObservation, TensorPolicy, export_policy
from dreamgym.transfer.export.graphs import FilterGraph, StepGraph, observation_name
from dreamgym.transfer.export.guard import Guard
from dreamgym.transfer.export.onnx_file import open_onnx, write_onnx
from tests.small_worlds import (
    ACTION_SPACES,
    ONE_EACH,
    random_actions,
    random_observations,
    small_model,
)

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROBOT = Path(__file__).parents[2] / "examples" / "robot_loop.py"
QUICK = {"num_envs": 8, "n_steps": 16}


class Linear(torch.nn.Module):
    """A fixed random policy of any action space."""

    def __init__(self, width, space):
        super().__init__()
        self.space, outputs = space, int(np.prod(space.shape or (1,)))
        self.layer = torch.nn.Linear(width, outputs if isinstance(space, gym.spaces.Box) else 12)

    def forward(self, x):
        out = self.layer(x.float())
        if isinstance(self.space, gym.spaces.Box):
            return torch.tanh(out).reshape(len(x), *self.space.shape)
        if isinstance(self.space, gym.spaces.Discrete):
            return out[:, : int(self.space.n)].argmax(-1)
        sizes = [int(n) for n in self.space.nvec]
        return torch.stack([part.argmax(-1) for part in out[:, : sum(sizes)].split(sizes, -1)], -1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_every_family_filters_acts_and_is_guarded_as_in_torch(kind, action, tmp_path):
    model = small_model(kind, action)
    torch.manual_seed(1)
    actor = Linear(model.feature_dim, ACTION_SPACES[action]).eval()
    check_episode(FilterGraph(model, actor, "latent", Guard(model)).eval(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mdn-rnn", "rssm", "jepa"])
def test_so_does_every_family_of_images_and_vectors(family, tmp_path):
    camera = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    joints = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    space = gym.spaces.Dict(camera=camera, joints=joints)
    torch.manual_seed(1)
    model = ModelSpec(family=family).build(space, gym.spaces.Discrete(3)).eval()
    actor = Linear(model.feature_dim, model.action_space).eval()
    graph = FilterGraph(model, actor, "latent", Guard(model)).eval()
    assert graph.guard.compares == "features"
    check_episode(graph, tmp_path, steps=6)


@pytest.mark.slow
def test_a_policy_of_observations_is_guarded_by_a_world(tmp_path):
    model = small_model("mdn-rnn", "box")
    actor = Linear(4, ACTION_SPACES["box"]).eval()
    check_episode(FilterGraph(model, actor, "observation", Guard(model)).eval(), tmp_path)


def check_episode(graph, folder, steps=25):
    """Compare an episode of the ONNX, which keeps its own state, with one in torch."""
    model, actor = graph.model, graph.actor
    write_onnx(graph, folder / "controller.onnx", optional=("noise",))
    run = open_onnx(folder / "controller.onnx")
    generator = torch.Generator().manual_seed(3)
    state, taken = model.initial(1), zero_action(model.action_space, 1, "cpu")
    memory = {name: leaf.numpy() for name, leaf in graph.examples.items() if "state." in name}
    memory["previous_action"] = np.ones_like(taken.numpy())  # of an episode before: ignored
    for step in range(steps):
        observation = random_observations(model.observation_space, 1, seed=step)
        parts = observation if isinstance(observation, dict) else {"": observation}
        noise = torch.rand((1, model.noise_dim), generator=generator)
        inputs = {observation_name(key): part.numpy() for key, part in parts.items()}
        inputs |= {"start": np.array([step == 0]), "noise": noise.numpy()}
        outputs = run({**memory, **inputs})
        with torch.no_grad():
            after = model.observe(state, taken, observation, noise)
            seen = model.features(after) if graph.view == "latent" else observation
            expected = actor(seen)
            judged = graph.guard(state, taken, observation, after)
        np.testing.assert_allclose(outputs["action"], expected.numpy(), rtol=1e-4, atol=1e-4)
        surprise = 0.0 if step == 0 else float(judged.surprise)
        assert outputs["surprise"][0] == pytest.approx(surprise, rel=1e-3, abs=1e-4)
        assert ("disagreement" in outputs) == model.has_uncertainty
        state, taken = after, expected.to(taken.dtype)
        memory = {
            name.replace("next_state.", "state."): value
            for name, value in outputs.items()
            if name.startswith("next_state.")
        }
        memory["previous_action"] = taken.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_every_familys_step_is_exported(kind, action, tmp_path):
    model = small_model(kind, action)
    graph = StepGraph(model, 2).eval()
    write_onnx(graph, tmp_path / "world.onnx")
    run = open_onnx(tmp_path / "world.onnx")
    state, generator = model.initial(2), torch.Generator().manual_seed(0)
    for step in range(10):
        actions = random_actions(model.action_space, 2, seed=step)
        noise = torch.rand((2, model.noise_dim), generator=generator)
        outputs = run(
            {
                **{f"state.{name}": leaf.numpy() for name, leaf in state.items()},
                "action": actions.numpy(),
                "noise": noise.numpy(),
                "temperature": np.float32(1.0),
            }
        )
        with torch.no_grad():
            state, prediction = model.step(state, actions, noise)
        for name, expected in prediction._asdict().items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-3, atol=1e-4)
        if "observation" in graph.outputs:
            decoded = model.decode(state)
            np.testing.assert_allclose(outputs["observation"], decoded, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=1500, out=path, seed=5)


@pytest.fixture(scope="module")
def latent(cartpole_world):
    config = TrainConfig(view="latent", **QUICK)
    return dreamgym.train_policy(cartpole_world, steps=128, config=config)


@pytest.fixture(scope="module")
def folder(cartpole_world, latent, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "controller"
    export_policy(latent, cartpole_world, out=out, data=data)
    return out


def test_the_folder_says_all_that_a_loop_needs(folder, cartpole_world, latent):
    description = json.loads((folder / "controller.json").read_text())
    graph = description["graphs"]["controller.onnx"]
    inputs = {each["name"]: each for each in graph["inputs"]}
    assert inputs["observation"]["shape"] == [1, 4]
    assert inputs["observation"]["dtype"] == "float32"
    assert inputs["previous_action"]["dtype"] == "int64"
    assert "noise" not in inputs  # vectors are encoded without noise
    assert "deterministic" in description["noise"]
    assert all(each["meaning"] for each in graph["inputs"] + graph["outputs"])
    outputs = [each["name"] for each in graph["outputs"]]
    assert outputs == ["action", "next_state.z", "next_state.h", "next_state.c", "surprise"]
    assert description["state"] == {f"next_state.{k}": f"state.{k}" for k in "zhc"}
    assert description["env_id"] == "CartPole-v1"
    assert description["policy"]["name"] == latent.name
    assert 0 < description["latency"]["median_ms"] <= description["latency"]["p99_ms"]
    guard = description["guard"]["outputs"]["surprise"]
    assert guard["threshold"] > guard["median"] > 0
    assert {each["name"] for each in description["graphs"]["world.onnx"]["outputs"]} >= {
        "reward",
        "termination",
        "observation",
    }


def test_actions_are_those_of_the_policy_in_the_real_environment(folder, cartpole_world, latent):
    env, plain = (
        LatentObservation(cartpole_world.real_env(), cartpole_world),
        gym.make("CartPole-v1"),
    )
    exported = ExportedPolicy(folder)
    for seed in range(3):
        features, _ = env.reset(seed=seed)
        observation, _ = plain.reset(seed=seed)
        exported.reset([0], [seed])
        over = False
        while not over:
            action = latent.predict(features)[0]
            assert exported.act([observation], [0])[0] == action
            features, _, terminated, truncated, _ = env.step(action)
            observation, *_ = plain.step(int(action))
            over = terminated or truncated


def test_it_is_evaluated_like_any_policy_and_named_in_datasets(folder, cartpole_world, latent):
    exported = ExportedPolicy(folder)
    result = dreamgym.evaluate(exported, "CartPole-v1", episodes=4)
    original = dreamgym.transfer_policy(latent, cartpole_world, episodes=4, baselines=False)
    np.testing.assert_array_equal(result.returns, original.real.returns)
    moved = dreamgym.transfer_policy(folder, cartpole_world, episodes=2, baselines=False)
    np.testing.assert_array_equal(moved.real.returns, result.returns[:2])
    assert exported.name.startswith(f"onnx:{latent.name}@")


def test_surprise_tells_a_broken_sensor_and_not_the_data(folder):
    exported = ExportedPolicy(folder)
    threshold = exported.description["guard"]["outputs"]["surprise"]["threshold"]
    env, sound, broken = gym.make("CartPole-v1"), [], []
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        exported.reset([0], [seed])
        for step in range(8):
            exported.act([observation], [0])
            (sound if step < 7 else broken).append(exported.judged(0)["surprise"])
            action = env.action_space.sample()
            exported._rows[0].memory["previous_action"][:] = action
            observation, *_ = env.step(action)
            if step == 6:
                observation = observation + np.float32([0, 0, 0.3, 0])  # the angle jumps
    assert np.mean(np.array(sound) > threshold) < 0.1
    assert np.mean(np.array(broken) > threshold) > 0.9


def test_a_policy_of_observations_needs_no_world(tmp_path, cartpole_world):
    config = TrainConfig(view="observation", **QUICK)
    policy = dreamgym.train_policy(cartpole_world, steps=128, config=config)
    path = policy.save(tmp_path / "policy.zip")
    description = export_policy(path, out=tmp_path / "out")
    assert list(description["graphs"]) == ["controller.onnx"]
    assert description["state"] == {}
    assert description["guard"] is None
    exported = ExportedPolicy(tmp_path / "out")
    np.testing.assert_array_equal(
        dreamgym.evaluate(exported, "CartPole-v1", episodes=3).returns,
        dreamgym.evaluate(policy, "CartPole-v1", episodes=3).returns,
    )


ALONE = """
import runpy, sys
for name in ("torch", "dreamgym", "gymnasium", "onnx", "onnxscript"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_robot(command, folder):
    line = [*command, str(folder), "--rate", "200", "--steps", "40"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_without_torch_and_without_dreamgym(folder):
    shown = run_robot([sys.executable, "-c", ALONE, str(ROBOT)], folder)
    assert "40 steps" in shown
    assert "fallback" in shown


@pytest.mark.slow
def test_the_example_runs_where_only_numpy_and_onnxruntime_are_installed(folder, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*line):
        options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
        return subprocess.run([*map(str, line)], env=environment, **options)

    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    if run(python, "-m", "pip", "install", "--quiet", "numpy", "onnxruntime").returncode:
        pytest.skip("no package index can be reached")
    packages = run(python, "-m", "pip", "list").stdout
    assert "onnxruntime" in packages
    assert "torch" not in packages
    assert "dreamgym" not in packages
    done = run(python, ROBOT, folder, "--rate", "200", "--steps", "40")
    assert done.returncode == 0, done.stderr
    assert "40 steps" in done.stdout


def test_what_cannot_be_exported_is_refused_with_what_to_do(
    cartpole_world, latent, folder, tmp_path
):
    with pytest.raises(TransferError, match="nothing to export"):
        export_policy(None, out=tmp_path / "out")
    with pytest.raises(TransferError, match=r"latent view.*give that world"):
        export_policy(latent, out=tmp_path / "out")
    with pytest.raises(FileExistsError, match="overwrite"):
        export_policy(latent, cartpole_world, out=folder)
    with pytest.raises(TransferError, match="observation_space="):
        export_policy(TensorPolicy(torch.nn.Linear(4, 2)), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_changed_folder_is_refused(folder, tmp_path):
    with pytest.raises(PolicyFileError, match="dreamgym export makes one"):
        ExportedPolicy(tmp_path)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    with (copied / "controller.onnx").open("ab") as file:
        file.write(b"\\0")
    with pytest.raises(PolicyFileError, match="has changed"):
        ExportedPolicy(copied)


def test_a_model_that_torch_cannot_export_is_refused_and_leaves_nothing(tmp_path):
    class Decides(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    space = gym.spaces.Box(-1, 1, (2,), np.float32)
    policy = TensorPolicy(Decides(), observation_space=space, action_space=space)
    with pytest.raises(TransferError, match="cannot be written as ONNX"):
        export_policy(policy, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_cloned_policy_is_saved_and_exported(cartpole_world, data, tmp_path):
    policy = clone_policy(cartpole_world, data, out=tmp_path / "bc", updates=50)
    loaded = load_policy(tmp_path / "bc.safetensors", world=cartpole_world)
    assert loaded.card.algo == "BC"
    observations = random_observations(cartpole_world.observation_space, 16).numpy()
    np.testing.assert_array_equal(loaded.predict(observations)[0], policy.predict(observations)[0])
    actor = loaded.actor()
    with torch.no_grad():
        actions = actor(torch.from_numpy(observations)).numpy()
    np.testing.assert_array_equal(actions, policy.predict(observations)[0])
