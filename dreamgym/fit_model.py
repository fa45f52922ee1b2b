"""The model that a fit begins with: fresh weights, or those of a fitted model (Dyna)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.device import seeded
from dreamgym.models import FAMILIES, ModelSpec, WorldModel, measure


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
    model.set_statistics(measure(((e.observations, e.rewards) for e in episodes), actions))
    return model


def begun_from(model: Any) -> dict[str, str]:
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
    fresh.begin_fit()
    return fresh
