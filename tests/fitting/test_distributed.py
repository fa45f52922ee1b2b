"""A fit in several processes, started by torchrun, equals the fit in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dreamgym
from dreamgym import FitConfig, OptimizerConfig
from dreamgym.models import FAMILIES, JEPAConfig, RSSMConfig
from dreamgym.models.jepa import JEPAObjective

COMMON = {"updates": 12, "batch_size": 16, "segment_length": 6, "evaluate_every": 4, "starts": 8}
FITS = {
    "rssm": FitConfig(
        **COMMON,
        model=RSSMConfig(deter=16, hidden=16, stoch=4, classes=4, units=16),
        optimizer=OptimizerConfig(name="laprop", clip_by="agc", gradient_clip=0.3, eps=1e-20),
    ),
    # SIGReg, and batch normalisation in the projectors.
    "jepa": FitConfig(
        **COMMON,
        model=JEPAConfig(
            embedding=8, width=16, blocks=1, mlp=16, objective=JEPAObjective(sigreg=0.09, rollout=2)
        ),
        optimizer=OptimizerConfig(ema=0.9),
    ),
    "pets": FitConfig(**COMMON, optimizer=OptimizerConfig(accumulate=2)),
}
PARALLEL = r"""
import sys
from pathlib import Path
import dreamgym
from tests.fitting.test_distributed import FITS
data, out = map(Path, sys.argv[1:])
for family, config in FITS.items():
    seen = []
    dreamgym.fit(data, out / family, family=family, config=config,
                 progress=lambda *each: seen.append(each))
    sys.stdout.write(f"{family} {len(seen)}\n")
    sys.stdout.flush()
"""


def torchrun(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short episodes, so that processes have unequal numbers of real rows."""
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=400, out=out, seed=0)


@pytest.mark.slow
def test_two_processes_fit_what_one_fits(data, tmp_path):
    (tmp_path / "fit_them.py").write_text(PARALLEL)
    done = torchrun("fit_them.py", str(data), str(tmp_path), cwd=tmp_path)
    # Only the first process reports: the first update, three evaluations, and the measuring.
    assert sorted(done.stdout.split("\n")[-7:-1]) == sorted(
        f"{family} {count}" for family in FITS for count in (0, 5)
    )
    for family, config in FITS.items():
        alone = dreamgym.fit(data, family=family, config=config)
        shared = dreamgym.load(tmp_path / family)
        assert shared.provenance["processes"] == 2
        histories = zip(alone.provenance["history"], shared.provenance["history"], strict=True)
        for one, other in histories:
            for name, tolerance in {"update": 0, "loss": 1e-3, "held_out": 1e-2}.items():
                assert other[name] == pytest.approx(one[name], rel=tolerance), (family, name)
        weights, there = alone.model.state_dict(), shared.model.state_dict()
        for name, value in weights.items():
            # The gradient of a bias before batch normalisation is rounding error, which Adam scales
            # to full steps; the running mean follows the bias.
            if family == "jepa" and name.endswith(("bias", "running_mean")):
                continue
            torch.testing.assert_close(
                there[name], value, rtol=2e-3, atol=2e-3, msg=f"{family} {name}"
            )


@pytest.mark.slow
def test_the_command_line_prints_once(data, tmp_path):
    arguments = ["fit", str(data), "--updates", "2", "--out", "w", "--json", "fit.json"]
    done = torchrun("-m", "dreamgym.cli", *arguments, cwd=tmp_path)
    assert done.stdout.count("a world of CartPole-v1") == 1
    assert json.loads((tmp_path / "fit.json").read_text())["provenance"]["processes"] == 2
    assert load_file(tmp_path / "w" / "model.safetensors")
    assert not list(tmp_path.glob("*.fitting.safetensors"))


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    arguments = ["-m", "dreamgym.cli", "fit", str(data), "--out", "w", "--batch-size", "7"]
    with pytest.raises(AssertionError, match="batch_size=7 cannot be shared by 2"):
        torchrun(*arguments, cwd=tmp_path)


def test_every_family_fitted_here_exists():
    assert set(FITS) <= set(FAMILIES)
