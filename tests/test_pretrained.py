"""The worlds that ship: they load, dream as when they were made, and have a card and a recipe."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dreamgym
from dreamgym._files import sha256
from dreamgym.world import zoo
from dreamgym.world.held_out import open_for

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("pretrained_make", ROOT / "pretrained" / "make.py")
make = importlib.util.module_from_spec(SPEC)
sys.modules["pretrained_make"] = make  # dataclasses look their module up
SPEC.loader.exec_module(make)

MEGABYTES = 10
TOLERANCE = 1e-3
"""In spreads of a number: instruction sets round differently, and eight steps add that up."""


@pytest.fixture(params=zoo.names())
def name(request):
    return request.param


def test_a_world_dreams_as_when_it_was_made(name):
    stored = json.loads((zoo.path(name) / make.TRAJECTORY_FILE).read_text())
    dreamt = make.trajectory(dreamgym.load(name))
    assert stored.keys() == dreamt.keys()
    for key, values in stored.items():
        expected, actual = np.array(values), np.array(dreamt[key])
        assert expected.shape == actual.shape
        whole = key == "observation" and not (expected % 1).any()  # pixels round up or down
        allowed = 1.0 if whole else TOLERANCE * max(float(expected.std()), 1e-3)
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=allowed, err_msg=key)


def test_a_world_whose_reward_and_end_bonus_share_a_network_is_read(tmp_path):
    """So were MDN-RNNs until 0.1.0; those that ship have equal hidden layers in both networks."""
    folder = tmp_path / "Pole"
    shutil.copytree(zoo.path("CartPole-MDNRNN-v0"), folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    for kind in ("weight", "bias"):
        parts = (weights[f"heads.{head}.4.{kind}"] for head in ("reward", "end_bonus"))
        weights[f"heads.reward.4.{kind}"] = torch.cat([*parts])
    save_file({key: leaf for key, leaf in weights.items() if "end_bonus" not in key}, path)
    description = json.loads((folder / "world.json").read_text())
    description["files"][path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    (folder / "world.json").write_text(json.dumps(description))
    expected = make.trajectory(dreamgym.load("CartPole-MDNRNN-v0"))
    assert make.trajectory(dreamgym.load(folder)) == expected


def test_a_world_is_whole_small_and_has_its_recipe(name):
    folder = zoo.path(name)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    recipe = make.recipes()[name]
    world = dreamgym.load(name)
    drawn = {"card.png"} if world.model.decodes else set()
    expected = {*make.FILES, "README.md", "recipe.json", make.TRAJECTORY_FILE, *drawn}
    assert expected == set(files)
    # The bar is for the weights; start states are bounded apart.
    assert files["model.safetensors"] < MEGABYTES * 1e6
    assert sum(files.values()) < 1.2 * MEGABYTES * 1e6
    assert files.get("card.png", 0) < 150_000
    data = make.datasets.recipes()[recipe["dataset"]]
    assert data["env_id"] == world.env_id
    fit = recipe["fit"]
    assert fit.get("loop", data["checksum"]) == world.provenance["dataset_checksum"]
    assert "loop" in fit or fit["seed"] == world.provenance["fit"]["seed"]


def test_all_worlds_together_are_small():
    sizes = [path.stat().st_size for path in zoo.folder().rglob("*") if path.is_file()]
    assert sum(sizes) < 60e6


def test_the_card_of_a_world_has_the_real_returns_that_worlds_lists(name):
    (record,) = [each for each in dreamgym.worlds() if each.name == name]
    card = (zoo.path(name) / "README.md").read_text()
    recipe = make.recipes()[name]
    title = "## Goals" if "goals" in record.measure else "## Real returns"
    assert card.index("**") < card.index(title)
    assert card.find("card.png") < card.index("**")
    assert len(record.returns) == len((recipe.get("plan") or recipe["train"])["seeds"])
    for each in record.returns:
        assert f"| {each:.1f} |" in card
    assert record.real_return == pytest.approx(np.mean(record.returns))
    assert record.real_interval[0] <= record.real_return <= record.real_interval[1]
    assert record.random_return is not None
    assert record.bar == recipe["bar"]
    assert record.gap is None or f"{record.gap:.0%} of the range from random to best" in card
    assert f"python pretrained/make.py {name}" in card
    assert "Licence: MIT" in card


def test_every_recipe_can_be_read_without_running_it():
    for recipe in make.recipes().values():
        fit, train = recipe["fit"], recipe.get("train", {})
        if "loop" not in fit:
            make.datasets.fit_config(fit["family"], fit.get("preset"), fit.get("settings", {}))
        make.datasets.train_config(train.get("config", {}))
        assert recipe["dataset"] in make.datasets.recipes()


def test_the_world_of_a_loop_is_taken_as_it_is_with_its_rounds_as_data(tmp_path):
    data = tmp_path / "data"
    rounds = [(data / f"00{number}.h5", 1.0 + number) for number in (1, 2)]
    for seed, (path, _) in enumerate(rounds):
        dreamgym.record("CartPole-v1", steps=300, out=path, seed=seed)
    made = make.datasets.world_of(data)
    config = dreamgym.default_config("pets", updates=2)
    checksum = dreamgym.fit(rounds, made, family="pets", config=config).provenance[
        "dataset_checksum"
    ]
    recipe = {"dataset": "none", "fit": {"loop": checksum}}
    out = tmp_path / "Pole-PETS-v0"
    maker = make.Maker(name=out.name, recipe=recipe, out=out, work=tmp_path / "work", data=data)
    maker.fit()
    assert sorted(path.name for path in out.iterdir()) == sorted([*make.FILES, "README.md"])
    with open_for(maker.world, maker.source) as read:
        assert read.is_fitted_data
        assert [*read.dataset.weights] == [2.0, 3.0]
    shutil.rmtree(made)
    with pytest.raises(FileNotFoundError, match=r"delete .*data and run this again"):
        maker.fit(overwrite=True)
    assert dreamgym.load(out).family == "pets"


def test_listing_worlds_loads_no_torch(tmp_path):
    code = (
        "import dreamgym, sys; names = [each.name for each in dreamgym.worlds()]\n"
        "assert 'torch' not in sys.modules; print(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == zoo.names()


@pytest.mark.slow
def test_a_recipe_makes_a_world_with_its_card(tmp_path):
    recipe = {
        "dataset": "cartpole-random",
        "fit": {
            "family": "pets",
            "seed": 0,
            "settings": {"updates": 10, "model": {"members": 2, "elites": 1}},
        },
        "wrap": [{"family": "pessimistic", "weight": 0.5}],
        "train": {"algo": "PPO", "steps": 64, "seeds": [0, 1], "config": {"num_envs": 2}},
        "evaluate": {"episodes": 2},
        "bar": 10,
        "notes": ["It is a test."],
    }
    data = tmp_path / "data.h5"
    dreamgym.record("CartPole-v1", steps=400, out=data, seed=0)
    out = tmp_path / "Pole-PETS-v0"
    made = make.Maker(name=out.name, recipe=recipe, out=out, work=tmp_path / "work", data=data)
    made.make_data()
    made.fit()
    made.card()
    world = dreamgym.load(out)
    assert world.family == "pessimistic"
    assert world.model.config.inner.config.members == 2
    assert world.model.config.weight == 0.5
    assert [each["name"] for each in world.quality["transfer"]["policies"]] == [
        "PPO, seed 0",
        "PPO, seed 1",
    ]
    names = [each["name"] for each in world.quality["transfer"]["baselines"]]
    assert names == ["random", "behaviour cloning"]
    assert "It is a test." in (out / "README.md").read_text()

    # Everything is there: a second call neither fits nor trains.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    again = replace(made)
    again.fit()
    again.card()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}

    # Another recipe is not shown with the figures of this one.
    train = {**recipe["train"], "config": {"num_envs": 4}}
    other = replace(made, recipe={**recipe, "train": train, "evaluate": {"episodes": 3}})
    other.card()
    assert len(list((tmp_path / "work").rglob("policy-0-*"))) == 2
    assert dreamgym.load(out).quality["transfer"]["episodes"] == 3


@pytest.mark.slow
def test_a_recipe_with_goals_makes_a_card_of_goals_reached(tmp_path):
    recipe = {
        "dataset": "two-room-held",
        "fit": {
            "family": "jepa",
            "seed": 0,
            "frame_skip": 5,
            "actions": "repeated",
            "settings": {
                "updates": 5,
                "segment_length": 3,
                "model": {"context": 1, "image_width": 0.1, "probe": "none", "goal_value": 4},
            },
        },
        "plan": {
            "planner": "cem",
            "config": {"horizon": 2, "candidates": 4, "elites": 2, "iterations": 1},
            "goals": True,
            "seeds": [0, 1],
        },
        "rank": None,
        "evaluate": {"episodes": 12},
        "bar": 90,
        "licence": "MIT",
    }
    data = tmp_path / "data.h5"
    dreamgym.record("dreamgym/TwoRoom-v0", steps=2000, policy="held:5", out=data, seed=0)
    out = tmp_path / "Rooms-JEPA-v0"
    made = make.Maker(name=out.name, recipe=recipe, out=out, work=tmp_path / "work", data=data)
    made.fit()
    made.card()
    transfer = dreamgym.load(out).quality["transfer"]
    assert transfer["measure"] == "goals reached (%)"
    assert [each["name"] for each in transfer["baselines"]] == ["random", "behaviour cloning"]
    assert all(0 <= each["real"] <= 100 for each in transfer["policies"] + transfer["baselines"])
    card = (out / "README.md").read_text()
    assert "| policy | goals reached (%) | 95% interval |" in card
