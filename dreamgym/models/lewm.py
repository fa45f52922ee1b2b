"""Checkpoints of LeWM (arXiv 2603.19312), as its authors' libraries write them.

A checkpoint is a folder with `config.json` and one `weights*.pt`. Class names in the config are
looked up in the table below and never imported; the weights are read with `weights_only=True`, and
only tensors that are on the list of LeWM's are taken.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.models.jepa import JEPA
from dreamgym.models.jepa_config import JEPAConfig
from dreamgym.models.jepa_senses import IMAGENET_MEAN, IMAGENET_STD
from dreamgym.models.lewm_config import read_config
from dreamgym.models.lewm_names import modern, names
from dreamgym.models.observations import is_image, parts

NEVER = -30.0
"""Logit of a termination that does not happen."""


class LeWMError(ValueError):
    """A checkpoint that cannot be used; the message says which file and what to do."""


@dataclass(frozen=True, kw_only=True)
class LeWMStatistics:
    """What LeWM was fitted with and its checkpoints lack.

    Attributes:
        action_mean: of each number of an action in the training dataset, before actions are
            grouped into blocks.
        action_std: their standard deviations (LeWM's own have n - 1 in the denominator).
        pixel_mean: of each channel of pixels in [0, 1]; LeWM has `IMAGENET_MEAN`.
        pixel_std: likewise; LeWM has `IMAGENET_STD`.
    """

    action_mean: Sequence[float] | None = None
    action_std: Sequence[float] | None = None
    pixel_mean: Sequence[float] | None = None
    pixel_std: Sequence[float] | None = None

    @classmethod
    def of(cls, dataset: AnyDataset) -> LeWMStatistics:
        """Those of the dataset that a checkpoint was fitted to, as LeWM's authors measured them.

        Args:
            dataset: all of its actions count, without frame skip; pixels are ImageNet's.

        Raises:
            LeWMError: its actions are no numbers.
        """
        actions = [dataset.actions(index) for index in range(dataset.num_episodes)]
        rows = np.concatenate([each.reshape(len(each), -1) for each in actions])
        if rows.dtype.kind != "f":
            raise LeWMError(
                f"{dataset.path} has actions that are choices; LeWM takes those of a Box"
            )
        numbers = rows.astype(np.float64)
        return cls(
            action_mean=numbers.mean(0).tolist(),
            action_std=numbers.std(0, ddof=1).tolist(),
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
        )


def load_lewm(
    path: str | Path,
    observation_space: gym.Space,
    action_space: gym.Space,
    statistics: LeWMStatistics | None = None,
) -> JEPA:
    """Load a LeWM checkpoint as it is.

    It has no reward and no termination: the model says zero and never. Give it a reward with
    `GoalReward`, as its authors plan with it. Images of other sizes than the model's are resized.

    Args:
        path: the checkpoint's folder, or one of the weights in it.
        observation_space: uint8 images (height, width, 3), or a Dict of them alone.
        action_space: a Box of as many numbers as the checkpoint's actions have: those of all the
            frames that a step skips, such as (5, 2); that of a `SkippedDataset` is one.
        statistics: of the dataset that the checkpoint was fitted to; all four are needed.

    Returns:
        The model, in eval mode. Its steps are certain: its residual is zero.

    Raises:
        LeWMError: a file is missing or damaged, the config is of another model, a tensor is
            missing, unknown or of another shape, a statistic is missing, or a space does not fit.
    """
    weights = _find(Path(path))
    config, actions = read_config(weights.parent / "config.json", LeWMError)
    numbers = _numbers(statistics or LeWMStatistics(), weights.parent)
    _check_spaces(observation_space, action_space, actions)
    with torch.random.fork_rng(devices=[]):
        model = JEPA(observation_space, action_space, config)
    _fill(model, _read(weights), config, weights)
    _normalise(model, numbers)
    _silence(model)
    return model.eval().requires_grad_(False)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("weights*.pt"))
    if len(found) == 1:
        return found[0]
    if found:
        there = ", ".join(file.name for file in found)
        raise LeWMError(f"{path} has several weights ({there}); give the path of one of them")
    raise LeWMError(
        f"{path} is no LeWM checkpoint: give a folder with config.json and one weights*.pt"
    )


def _numbers(statistics: LeWMStatistics, folder: Path) -> dict[str, Tensor]:
    given = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise LeWMError(
            f"the checkpoint {folder} does not say {', '.join(missing)}, and without them its "
            f"predictions mean nothing. Give LeWMStatistics({'=..., '.join(missing)}=...): the "
            "mean and standard deviation of each number of the actions in the dataset that it was "
            "fitted to, before grouping, and of the pixels' channels (LeWM has IMAGENET_MEAN and "
            "IMAGENET_STD of dreamgym.models)"
        )
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in given.items()}


def _check_spaces(observation_space: gym.Space, action_space: gym.Space, actions: int) -> None:
    boxes = list(parts(observation_space).values())
    if not (len(boxes) == 1 and is_image(boxes[0]) and boxes[0].shape[2] == 3):
        raise LeWMError(
            f"LeWM sees uint8 images of shape (height, width, 3), not {observation_space}; of a "
            "Dict take the key of the images alone"
        )
    size = torch.Size(action_space.shape or ()).numel()
    if not isinstance(action_space, gym.spaces.Box) or size != actions:
        raise LeWMError(
            f"this checkpoint's actions are {actions} numbers, those of {action_space} are not; "
            "with a frame skip give the space of the block, such as a Box of shape (5, 2)"
        )


def _read(weights: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise LeWMError(
            f"{weights} cannot be read as tensors alone ({str(error).splitlines()[0]}); give a "
            "state_dict saved with torch.save, not a whole model (`*_object.ckpt`)"
        ) from error
    for wrapping in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapping), dict):
            loaded = loaded[wrapping]
    if not isinstance(loaded, dict):
        raise LeWMError(f"{weights} holds a {type(loaded).__name__}, not a state_dict")
    return loaded


def _fill(model: JEPA, loaded: dict[str, Any], config: JEPAConfig, weights: Path) -> None:
    """Copy each tensor on the list into its place.

    Raises:
        LeWMError: one is missing, unknown or of another shape.
    """
    wanted = names(len(model.senses.images[0].network.blocks), config.blocks)  # type: ignore[union-attr, arg-type]
    given = {modern(name): value for name, value in loaded.items()}
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        raise LeWMError(
            f"{weights} has not the {len(wanted)} tensors of this LeWM: {len(missing)} are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(unknown)} are unknown "
            f"({', '.join(map(str, unknown[:3])) or 'none'}); is config.json the one beside it?"
        )
    places = model.state_dict()
    for theirs, ours in wanted.items():
        value, place = given[theirs], places[ours]
        if not isinstance(value, Tensor) or value.numel() != place.numel():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LeWMError(
                f"{weights}: {theirs} is {shape}, and {tuple(place.shape)} is wanted by config.json"
            )
        place.copy_(value.reshape(place.shape))


def _normalise(model: JEPA, numbers: dict[str, Tensor]) -> None:
    try:
        model.encode_action.set_moments(numbers["action_mean"], numbers["action_std"])
    except ValueError as error:
        raise LeWMError(f"action_mean and action_std: {error}") from error
    images = model.senses.images[0]
    images.mean.copy_(numbers["pixel_mean"].view(-1, 1, 1))  # type: ignore[operator]
    images.std.copy_(numbers["pixel_std"].view(-1, 1, 1))  # type: ignore[operator]


def _silence(model: JEPA) -> None:
    """No reward, no termination, no noise: a checkpoint says nothing of them."""
    last = model.heads[-1]
    with torch.no_grad():
        last.weight.zero_()  # type: ignore[operator]
        last.bias.copy_(torch.tensor([0.0, NEVER]))  # type: ignore[operator]
        model.residual.zero_()
