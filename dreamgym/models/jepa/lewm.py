"""The names of LeWM's tensors, and where each has its place in a `JEPA`."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.errors import LeWMError
from dreamgym.models.jepa.config import LEWM, JEPAConfig
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.jepa.modules import IMAGENET_MEAN, IMAGENET_STD, SMOOTHED_ACTION
from dreamgym.models.observations import is_image, observation_boxes

BOTH = ("weight", "bias")


NORM = (*BOTH, "running_mean", "running_var", "num_batches_tracked")


# From the names of transformers 4 to those of 5, in this order.
RENAMED = (
    (re.compile(r"^encoder\.encoder\.layer\."), "encoder.layers."),
    (re.compile(r"\.attention\.attention\.(query|key|value)\."), r".attention.\1_proj."),
    (re.compile(r"\.query_proj\."), ".q_proj."),
    (re.compile(r"\.key_proj\."), ".k_proj."),
    (re.compile(r"\.value_proj\."), ".v_proj."),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"\.output\.dense\."), ".mlp.fc2."),
)


VIT_BLOCK = {
    "layernorm_before": "norm_attention",
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "attention.o_proj": "out",
    "layernorm_after": "norm_mlp",
    "mlp.fc1": "widen",
    "mlp.fc2": "narrow",
}


PREDICTOR_BLOCK = {
    "attn.norm": "attention.norm",
    "attn.to_out.0": "attention.out",
    "mlp.net.0": "mlp.0",
    "mlp.net.1": "mlp.1",
    "mlp.net.4": "mlp.4",
    "adaLN_modulation.1": "modulation",
}


def modern(name: str) -> str:
    """A tensor's name as transformers 5 has it, of a name of either version."""
    if not str(name).startswith("encoder.encoder."):
        return name
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def names(encoder_blocks: int, predictor_blocks: int) -> dict[str, str]:
    """LeWM's tensors and their names in a `JEPA`: 303 with 12 and 6 blocks.

    Args:
        encoder_blocks: of the vision transformer.
        predictor_blocks: of the predictor.
    """
    vit = "senses.images.0.network"
    table = {
        "encoder.embeddings.cls_token": f"{vit}.class_token",
        "encoder.embeddings.position_embeddings": f"{vit}.position",
        "predictor.pos_embedding": "predictor.position",
    }
    layers = {
        "encoder.embeddings.patch_embeddings.projection": f"{vit}.patches",
        "encoder.layernorm": f"{vit}.norm",
        "predictor.transformer.norm": "predictor.norm",
        "action_encoder.patch_embed": "embed_action.smooth",
        "action_encoder.embed.0": "embed_action.embed.0",
        "action_encoder.embed.2": "embed_action.embed.2",
    }
    for k in range(encoder_blocks):
        for theirs, ours in VIT_BLOCK.items():
            layers[f"encoder.layers.{k}.{theirs}"] = f"{vit}.blocks.{k}.{ours}"
    for k in range(predictor_blocks):
        block = f"predictor.transformer.layers.{k}"
        table[f"{block}.attn.to_qkv.weight"] = f"predictor.blocks.{k}.attention.joint.weight"
        for theirs, ours in PREDICTOR_BLOCK.items():
            layers[f"{block}.{theirs}"] = f"predictor.blocks.{k}.{ours}"
    for theirs, ours in (("projector", "projector"), ("pred_proj", "project_prediction")):
        layers[f"{theirs}.net.0"] = f"{ours}.inwards"
        layers[f"{theirs}.net.3"] = f"{ours}.outwards"
        table |= {f"{theirs}.net.1.{leaf}": f"{ours}.norm.{leaf}" for leaf in NORM}
    for theirs, ours in layers.items():
        table |= {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in BOTH}
    return table


PACKAGE = "stable_worldmodel.wm.lewm"


CLASSES = {
    "": {f"{PACKAGE}.LeWM", f"{PACKAGE}.lewm.LeWM", f"{PACKAGE}.JEPA", "jepa.JEPA"},
    "encoder": {
        "stable_pretraining.backbone.utils.vit_hf",
        "stable_pretraining.backbone.vit_hf",
    },
    "predictor": {
        f"{PACKAGE}{module}.{name}"
        for module in ("", ".module")
        for name in ("Predictor", "ARPredictor")
    }
    | {"module.Predictor", "module.ARPredictor"},
    "action_encoder": {f"{PACKAGE}.Embedder", f"{PACKAGE}.module.Embedder", "module.Embedder"},
    "projector": {f"{PACKAGE}.MLP", f"{PACKAGE}.module.MLP", "module.MLP"},
    "pred_proj": {f"{PACKAGE}.MLP", f"{PACKAGE}.module.MLP", "module.MLP"},
    "norm_fn": {"torch.nn.BatchNorm1d", "torch.nn.modules.batchnorm.BatchNorm1d"},
}

"""Classes by what they stand for. Names only: nothing is imported by them."""


def read_config(path: Path, error: Callable[[str], Exception]) -> tuple[JEPAConfig, int]:
    """Sizes of the model, and how many numbers its actions have.

    Args:
        path: of config.json.
        error: made of a message and raised where the file cannot be used.
    """
    try:
        given = json.loads(path.read_text())
        return _Config(given).read()
    except OSError as reason:
        raise error(
            f"{path} cannot be read: {reason}; a checkpoint has it beside its weights"
        ) from (reason)
    except KeyError as reason:
        raise error(f"{path} lacks {reason}; is it the config of a LeWM?") from reason
    except (TypeError, ValueError, AttributeError) as reason:
        raise error(f"{path} is no config of a LeWM that can be loaded: {reason}") from reason


class _Config:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self._check_class("", given)
        for part in ("encoder", "predictor", "action_encoder", "projector", "pred_proj"):
            self._check_class(part, given[part])

    @staticmethod
    def _check_class(part: str, given: dict[str, Any]) -> None:
        name = given.get("_target_")
        if name is not None and name not in CLASSES[part]:
            known = ", ".join(sorted(CLASSES[part]))
            raise ValueError(f"{part or 'the model'} is a {name}; known are {known}")

    def read(self) -> tuple[JEPAConfig, int]:
        predictor, encoder = self.given["predictor"], self.given["encoder"]
        width = predictor["input_dim"]
        self._same("predictor", ("hidden_dim", "output_dim"), width, default=width)
        self._same("action_encoder", ("emb_dim",), width)
        self._same("action_encoder", ("smoothed_dim",), SMOOTHED_ACTION, default=SMOOTHED_ACTION)
        self._same("action_encoder", ("mlp_scale",), 4, default=4)
        for part in ("projector", "pred_proj"):
            self._same(part, ("output_dim",), width)
            self._same(part, ("hidden_dim",), self.given["projector"]["hidden_dim"])
            norm = self.given[part].get("norm_fn") or {}
            if norm.get("_target_") not in CLASSES["norm_fn"]:
                raise ValueError(f"{part}.norm_fn is {norm}; only BatchNorm1d is known")
        config = replace(
            LEWM,
            embedding=width,
            context=predictor["num_frames"],
            image_encoder=f"vit_{encoder['size']}_patch{encoder['patch_size']}",
            image_size=encoder["image_size"],
            width=self.given["projector"]["hidden_dim"],
            blocks=predictor["depth"],
            heads=predictor["heads"],
            head_width=predictor.get("dim_head", 64),
            mlp=predictor["mlp_dim"],
            dropout=predictor.get("dropout", 0.0),
        )
        return config, int(self.given["action_encoder"]["input_dim"])

    def _same(
        self, part: str, names: tuple[str, ...], wanted: int, default: int | None = None
    ) -> None:
        for name in names:
            value = self.given[part].get(name, default)
            if value != wanted:
                raise ValueError(f"{part}.{name} is {value}; only {wanted} is known here")


NEVER = -30.0

"""Logit of a termination that does not happen."""


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
    boxes = list(observation_boxes(observation_space).values())
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
