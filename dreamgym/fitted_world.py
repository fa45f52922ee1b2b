"""What a fit leaves: a world, with its starts, its horizon, where it came from and its quality."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.fit_config import FitConfig
from dreamgym.models import WorldModel
from dreamgym.quality import Watch, measure_quality, recommend
from dreamgym.starts import burn_in
from dreamgym.world import World

DEFAULT_HORIZON = 200
PACKAGES = ("dreamgym", "torch", "numpy", "gymnasium", "h5py")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model that was fitted, and what to.

    Attributes:
        model: in eval mode, its parameters frozen; measured where it is, then moved to the CPU.
        data: the dataset.
        training: indices of the episodes that it was fitted to.
        held_out: indices of those that it was not.
        config: settings of the fit.
        seed: of the fit.
        said: what the fit itself says of how it went, JSON-plain.
    """

    model: WorldModel
    data: AnyDataset
    training: NDArray
    held_out: NDArray
    config: FitConfig
    seed: int
    said: dict[str, Any]


def world_of(fitted: Fitted) -> World:
    """The world, with starts, how best to dream it, provenance and quality."""
    model, data, seed = fitted.model, fitted.data, fitted.seed
    limit = data.frame_skip.count(_real_limit(data.env_spec) or DEFAULT_HORIZON)
    kept = (model, data, fitted.held_out)
    best = recommend(*kept, cap=min(limit, DEFAULT_HORIZON), seed=seed)
    found = Watch(dataset=data, episodes=fitted.held_out, seed=seed).look(model)
    quality = {
        **measure_quality(*kept, seed),
        "recommendation": best.reasons,
        "alarms": [alarm.sentence for alarm in found.alarms],
    }
    starts = burn_in(model, data, fitted.training, count=fitted.config.starts, seed=seed)
    return World(
        model=model.cpu(),
        starts=starts,
        env_spec=data.env_spec,
        horizon=fitted.config.horizon or best.horizon,
        termination=best.termination,
        provenance={**_origin(data), **fitted.said, "versions": _versions()},
        quality=quality,
        frame_skip=data.frame_skip,
    )


def _origin(data: AnyDataset) -> dict[str, Any]:
    return {
        "dataset": Path(data.path).name,
        "dataset_checksum": data.checksum,
        "dataset_steps": int(data.num_steps),
        "dataset_episodes": int(data.num_episodes),
        "dataset_policy": data.policy,
    }


def _real_limit(env_spec: str | None) -> int | None:
    return json.loads(env_spec).get("max_episode_steps") if env_spec else None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
