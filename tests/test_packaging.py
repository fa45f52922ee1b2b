"""What an installed package is: light to import, whole in the wheel, honest about its parts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dreamgym

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = ("CartPole-MDNRNN-v0", "Pendulum-MDNRNN-v0")

# One process builds the wheel for all the tests that use it.
pytestmark = pytest.mark.xdist_group("wheel")


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """What a fresh process prints; `path` stands first on its import path."""
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed into it and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


def test_import_loads_neither_torch_nor_what_only_a_stage_needs(tmp_path: Path) -> None:
    loaded = json.loads(
        run_python(
            "import gymnasium, sys, json; before = set(sys.modules); import dreamgym; "
            "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))",
            cwd=tmp_path,
        )
    )
    heavy = {"torch", "h5py", "stable_baselines3", "matplotlib", "pandas", "scipy", "safetensors"}
    assert not heavy & set(loaded)
    third_party = set(loaded) - set(sys.stdlib_module_names) - {"dreamgym"}
    assert not third_party, "gymnasium brings all that importing dreamgym needs"


def test_help_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from dreamgym.cli import main\n"
        "try: main(['fit', '--help'])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "assert 'torch' not in sys.modules and 'h5py' not in sys.modules"
    )
    assert "DATASET" in run_python(code, cwd=tmp_path)


def test_every_public_name_is_there() -> None:
    for name in dreamgym.__all__:
        assert getattr(dreamgym, name) is not None
        assert name in dir(dreamgym)


def test_a_misspelt_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="fti"):
        _ = dreamgym.fti


def test_the_version_is_said_once() -> None:
    assert dreamgym.__version__ == PROJECT["version"] == version("dreamgym")


def test_the_wheel_carries_the_package_its_types_and_its_worlds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "dreamgym/py.typed" in names
    sources = {
        str(path.relative_to(ROOT))
        for suffix in ("py", "html", "css", "js")
        for path in (ROOT / "dreamgym").rglob(f"*.{suffix}")
    }
    assert sources <= names
    files = {path for path in (ROOT / "pretrained").glob("*/*") if path.suffix != ".png"}
    shipped = {name for name in names if name.startswith("dreamgym/pretrained/")}
    assert {str("dreamgym" / path.relative_to(ROOT)) for path in files} <= shipped
    assert not any(name.endswith((".png", ".py")) for name in shipped), "pictures stay on the site"
    others = {name.split("/")[0] for name in names} - {"dreamgym"}
    assert all(other.endswith(".dist-info") for other in others), "nothing else is installed"


def test_an_installed_wheel_finds_its_worlds_from_another_folder(
    installed: Path, tmp_path: Path
) -> None:
    code = (
        "import dreamgym, gymnasium, json, pathlib; from dreamgym.world import zoo\n"
        "print(json.dumps({'package': dreamgym.__file__, 'names': zoo.names(),\n"
        "  'ids': [i for i in gymnasium.registry if i.startswith('dreamgym/')]}))"
    )
    found = json.loads(run_python(code, cwd=tmp_path, path=installed))
    assert Path(found["package"]).is_relative_to(installed)
    assert set(SHIPPED) <= set(found["names"])
    assert {"dreamgym/World-v0", *(f"dreamgym/{name}" for name in SHIPPED)} <= set(found["ids"])


@pytest.mark.parametrize("name", SHIPPED)
def test_an_installed_wheel_dreams_in_a_fresh_process(
    name: str, installed: Path, tmp_path: Path
) -> None:
    code = (
        "import gymnasium as gym, numpy as np\n"
        f"env = gym.make('dreamgym:dreamgym/{name}')\n"
        "observation, _ = env.reset(seed=0)\n"
        "assert env.observation_space.contains(observation)\n"
        "print(np.isfinite(env.step(env.action_space.sample())[1]))\n"
        f"envs = gym.make_vec('dreamgym:dreamgym/{name}', num_envs=3, output='numpy')\n"
        "print(envs.reset(seed=0)[0].shape[0])\n"
        "import dreamgym; print(dreamgym.__file__)"
    )
    *printed, file = run_python(code, cwd=tmp_path, path=installed).split()
    assert printed == ["True", "3"]
    assert Path(file).is_relative_to(installed)


def _requirements(extras: set[str]) -> list[Requirement]:
    """Return what the package and some of its extras require, those of their extras included."""
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    required = [Requirement(line) for line in lines]
    further = {extra for each in required if each.name == "dreamgym" for extra in each.extras}
    return required if further <= extras else _requirements(extras | further)


def test_constraints_pin_every_requirement_of_development_exactly() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, number = line.split("==")
            assert "+" not in number, f"{line}: a local version is on no index"
            pinned[_canonical(name)] = number
    # Libraries too large for it have versions of their own: RLlib pins an older Gymnasium.
    for requirement in _requirements({"dev", "docs"}):
        if requirement.name == "dreamgym":
            continue
        assert _canonical(requirement.name) in pinned, f"{requirement.name} is not pinned"
        number = pinned[_canonical(requirement.name)]
        assert requirement.specifier.contains(number), f"{requirement} refuses {number}"
    assert pinned["torch"] == "2.13.0"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_vector_wrapper_has_type_arguments() -> None:
    """Those of gymnasium 1.2, the oldest that is supported, are not generic: the import fails."""
    for path in (ROOT / "dreamgym").rglob("*.py"):
        assert "VectorWrapper[" not in path.read_text(encoding="utf-8"), path
