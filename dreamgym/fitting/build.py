"""The model that a fit begins with: fresh weights, or those of a fitted model (Dyna)."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from dreamgym._device import seeded
from dreamgym.data import AnyDataset
from dreamgym.fitting.config import FitConfig
from dreamgym.metrics import TrainingMonitor, evaluate_metrics, recommend
from dreamgym.models import FAMILIES, ModelSpec, WorldModel
from dreamgym.models.statistics import measure_statistics
from dreamgym.world.start_states import burn_in
from dreamgym.world.world import World


def first_model(
    given: Any, family: str, seed: int, data: AnyDataset, training: NDArray
) -> WorldModel:
    """A model to fit; the global generators are left as they were.

    Args:
        given: the family's config, None for its default, or a fitted model.
        family: a name of the table of families.
        seed: of fresh weights.
        data: what will be fitted to.
        training: indices of the episodes that normalisers are fitted on; a fitted model keeps its
            own, which its weights are used to.

    Raises:
        TypeError: neither a config of the family nor a model.
        ValueError: a fitted model is of another family, or of other spaces than the data.
    """
    with seeded(seed, torch.device("cpu")):
        if isinstance(given, WorldModel):
            return _again(given, family, data)
        if given is not None and not isinstance(given, FAMILIES[family].config_type):
            raise TypeError(
                f"model={type(given).__name__}: the {family} family takes a "
                f"{FAMILIES[family].config_type.__name__}, or a model that was fitted (world.model)"
            )
        spec = ModelSpec(family=family, config=given)
        model = spec.build(data.observation_space, data.action_space)
    episodes = (data.episode(int(index)) for index in training)
    actions = (data.actions(int(index)) for index in training)
    model.set_statistics(
        measure_statistics(((e.observations, e.rewards) for e in episodes), actions)
    )
    return model


def load_initial_weights(model: Any) -> dict[str, str]:
    """The checksum of the weights that a fit goes on from; nothing where there are none."""
    if not isinstance(model, WorldModel):
        return {}
    digest = hashlib.sha256()
    for name, leaf in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(leaf.detach().cpu().contiguous().numpy().tobytes())
    return {"begun_from": digest.hexdigest()}


def _again(model: WorldModel, family: str, data: AnyDataset) -> WorldModel:
    """A copy of a fitted model to fit further; the model itself is left as it is."""
    spec = ModelSpec.of(model)
    if spec.family != family:
        raise ValueError(
            f"the model to go on from is of the family {spec.family!r}, the fit of {family!r}; "
            f"give family={spec.family!r}"
        )
    for role in ("observation_space", "action_space"):
        if getattr(model, role) != getattr(data, role):
            raise ValueError(
                f"the {role} of the model to go on from is {getattr(model, role)}, that of the "
                f"data {getattr(data, role)}; give data of the same environment"
            )
    # Built anew: what is fitted and what stays frozen is as the family makes it.
    fresh = spec.build(data.observation_space, data.action_space)
    fresh.load_state_dict(model.state_dict())
    fresh.before_fit()
    return fresh


DEFAULT_HORIZON = 200


PACKAGES = ("dreamgym", "torch", "numpy", "gymnasium", "h5py")


@dataclass(frozen=True, kw_only=True)
class FitResult:
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


def build_world(fitted: FitResult) -> World:
    """The world, with starts, how best to dream it, provenance and quality."""
    model, data, seed = fitted.model, fitted.data, fitted.seed
    limit = data.frame_skip.count(_real_limit(data.env_spec) or DEFAULT_HORIZON)
    kept = (model, data, fitted.held_out)
    best = recommend(*kept, cap=min(limit, DEFAULT_HORIZON), seed=seed)
    found = TrainingMonitor(dataset=data, episodes=fitted.held_out, seed=seed).inspect(model)
    quality = {
        **evaluate_metrics(*kept, seed),
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
