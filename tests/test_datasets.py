"""The recipes of the datasets: each makes what its checksum says, and its card exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dreamgym.world import zoo

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("make", ROOT / "datasets" / "make.py")
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


@pytest.mark.parametrize("name", sorted(make.recipes()))
def test_a_recipe_makes_its_dataset_bit_for_bit(name, tmp_path):
    assert (ROOT / "datasets" / name / "README.md").is_file()
    assert make.make(name, tmp_path / "data.h5")


@pytest.mark.parametrize("world", zoo.names())
def test_every_world_that_ships_was_fitted_to_a_dataset_with_a_recipe(world):
    import dreamgym

    checksums = {recipe["checksum"] for recipe in make.recipes().values()}
    assert dreamgym.load(world).provenance["dataset_checksum"] in checksums
