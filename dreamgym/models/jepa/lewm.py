"""Load LeWM checkpoints (arXiv 2603.19312) of stable-worldmodel as a `JEPA`.

A checkpoint is a folder with `config.json` (a Hydra config) and the weights (a state dict saved by
torch). Nothing in it is executed: class names in the config are compared with an allow-list, the
weights are unpickled by torch's restricted loader, and only tensors in the table of names are
copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym._files import local_path
from dreamgym.data import AnyDataset
from dreamgym.data.images import image_layout
from dreamgym.errors import LeWMError
from dreamgym.models.jepa.config import LEWM, JEPAConfig
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.jepa.modules import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMOOTHED_ACTION,
    ImageEncoder,
)
from dreamgym.models.nn.vit import ViT
from dreamgym.models.observations import observation_boxes
from dreamgym.models.weights import read_state_dict

NEVER = -30.0
"""Termination logit of a model that does not predict terminations."""


@dataclass(frozen=True, kw_only=True)
class LeWMStatistics:
    """Normalisation statistics that LeWM was trained with; its checkpoints do not contain them.

    Attributes:
        action_mean: mean of each number of an action in the training dataset, before actions are
            grouped into blocks.
        action_std: their standard deviations (LeWM's own have n - 1 in the denominator).
        pixel_mean: mean of each channel, for pixels in [0, 1]; LeWM uses `IMAGENET_MEAN`.
        pixel_std: standard deviation of each channel; LeWM uses `IMAGENET_STD`.
    """

    action_mean: Sequence[float] | None = None
    action_std: Sequence[float] | None = None
    pixel_mean: Sequence[float] | None = None
    pixel_std: Sequence[float] | None = None

    @classmethod
    def of(cls, dataset: AnyDataset) -> LeWMStatistics:
        """Measure the statistics of the training dataset as LeWM's authors do.

        Args:
            dataset: the dataset that the checkpoint was trained on; all actions count, without
                frame skip. The statistics of pixels are ImageNet's.

        Raises:
            LeWMError: the dataset's actions are discrete.
        """
        episodes = [dataset.actions(index) for index in range(dataset.num_episodes)]
        rows = np.concatenate([actions.reshape(len(actions), -1) for actions in episodes])
        if rows.dtype.kind != "f":
            raise LeWMError(
                f"{dataset.path} has discrete actions; expected those of a Box, as LeWM takes"
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
    """Load a LeWM checkpoint.

    The checkpoint contains neither reward nor termination: the model predicts a reward of zero and
    no termination. Wrap it in `GoalReward`, as its authors plan with it. Images of other sizes than
    the model's are resized.

    Args:
        path: folder of the checkpoint, or the weights in it.
        observation_space: space of uint8 images (height, width, 3), or a Dict with only these.
        action_space: a Box with as many numbers as an action of the checkpoint, which covers all
            frames that a step skips, such as shape (5, 2); a `SkippedDataset` has such a space.
        statistics: statistics of the dataset that the checkpoint was trained on; all are required.

    Returns:
        The model in eval mode. Its steps are deterministic: its residual is zero.

    Raises:
        LeWMError: a file is missing or damaged; the config describes another model; a tensor is
            missing, unknown or has another shape; a statistic is missing; or a space does not fit.
    """
    weights = _find_weights(local_path(path, LeWMError))
    config, action_numbers = read_config(weights.parent / "config.json")
    normalisers = _check_statistics(statistics or LeWMStatistics(), weights.parent)
    _check_spaces(observation_space, action_space, action_numbers)
    with torch.random.fork_rng(devices=[]):
        model = JEPA(observation_space, action_space, config)
    _copy_tensors(_read_state_dict(weights), model, weights)
    _set_normalisers(model, normalisers)
    _disable_heads_and_noise(model)
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------- the config

_PACKAGE = "stable_worldmodel.wm.lewm"

KNOWN_CLASSES: Mapping[str, set[str]] = {
    "": {f"{_PACKAGE}.LeWM", f"{_PACKAGE}.lewm.LeWM", f"{_PACKAGE}.JEPA", "jepa.JEPA"},
    "encoder": {
        "stable_pretraining.backbone.utils.vit_hf",
        "stable_pretraining.backbone.vit_hf",
    },
    "predictor": {
        f"{_PACKAGE}{module}.{name}"
        for module in ("", ".module")
        for name in ("Predictor", "ARPredictor")
    }
    | {"module.Predictor", "module.ARPredictor"},
    "action_encoder": {f"{_PACKAGE}.Embedder", f"{_PACKAGE}.module.Embedder", "module.Embedder"},
    "projector": {f"{_PACKAGE}.MLP", f"{_PACKAGE}.module.MLP", "module.MLP"},
    "pred_proj": {f"{_PACKAGE}.MLP", f"{_PACKAGE}.module.MLP", "module.MLP"},
    "norm_fn": {"torch.nn.BatchNorm1d", "torch.nn.modules.batchnorm.BatchNorm1d"},
}
"""Class names that a config may contain, by its parts. They are compared, never imported."""


def read_config(path: Path) -> tuple[JEPAConfig, int]:
    """Read a checkpoint's config.json.

    Returns:
        The config of the same model as a `JEPA`, and the numbers in an action.

    Raises:
        LeWMError: the file cannot be read, or does not describe a known LeWM.
    """
    try:
        return _parse_config(json.loads(path.read_text()))
    except OSError as error:
        raise LeWMError(
            f"{path} cannot be read: {error}; expected it in the same folder as the weights"
        ) from error
    except KeyError as error:
        raise LeWMError(f"{path} lacks {error}; expected the config of a LeWM") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise LeWMError(f"{path} is not the config of a supported LeWM: {error}") from error


def _parse_config(config: dict[str, Any]) -> tuple[JEPAConfig, int]:
    _check_class("", config)
    for part in ("encoder", "predictor", "action_encoder", "projector", "pred_proj"):
        _check_class(part, config[part])
    encoder, predictor = config["encoder"], config["predictor"]
    width, hidden = predictor["input_dim"], config["projector"]["hidden_dim"]
    _check_size(config, "predictor", "hidden_dim", width, default=width)
    _check_size(config, "predictor", "output_dim", width, default=width)
    _check_size(config, "action_encoder", "emb_dim", width)
    _check_size(config, "action_encoder", "smoothed_dim", SMOOTHED_ACTION, default=SMOOTHED_ACTION)
    _check_size(config, "action_encoder", "mlp_scale", 4, default=4)
    for part in ("projector", "pred_proj"):
        _check_size(config, part, "output_dim", width)
        _check_size(config, part, "hidden_dim", hidden)
        norm = config[part].get("norm_fn") or {}
        if norm.get("_target_") not in KNOWN_CLASSES["norm_fn"]:
            raise ValueError(f"{part}.norm_fn is {norm}; only BatchNorm1d is supported")
    jepa_config = replace(
        LEWM,
        embedding=width,
        context=predictor["num_frames"],
        image_encoder=f"vit_{encoder['size']}_patch{encoder['patch_size']}",
        image_size=encoder["image_size"],
        width=hidden,
        blocks=predictor["depth"],
        heads=predictor["heads"],
        head_width=predictor.get("dim_head", 64),
        mlp=predictor["mlp_dim"],
        dropout=predictor.get("dropout", 0.0),
    )
    return jepa_config, int(config["action_encoder"]["input_dim"])


def _check_class(part: str, config: dict[str, Any]) -> None:
    name = config.get("_target_")
    if name is not None and name not in KNOWN_CLASSES[part]:
        known = ", ".join(sorted(KNOWN_CLASSES[part]))
        raise ValueError(f"the class of {part or 'the model'} is {name}; expected one of {known}")


def _check_size(
    config: dict[str, Any], part: str, name: str, expected: int, default: int | None = None
) -> None:
    value = config[part].get(name, default)
    if value != expected:
        raise ValueError(f"{part}.{name} is {value}; only {expected} is supported")


# ---------------------------------------------------------------- the names of the tensors

_LAYER = ("weight", "bias")
_BATCH_NORM = (*_LAYER, "running_mean", "running_var", "num_batches_tracked")

_VIT_BLOCK = {
    "layernorm_before": "norm_attention",
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "attention.o_proj": "out",
    "layernorm_after": "norm_mlp",
    "mlp.fc1": "widen",
    "mlp.fc2": "narrow",
}

_PREDICTOR_BLOCK = {
    "attn.norm": "attention.norm",
    "attn.to_out.0": "attention.out",
    "mlp.net.0": "mlp.0",
    "mlp.net.1": "mlp.1",
    "mlp.net.4": "mlp.4",
    "adaLN_modulation.1": "modulation",
}

# Replacements that turn names of transformers 4 into those of transformers 5, in this order.
_TRANSFORMERS_4 = (
    (re.compile(r"^encoder\.encoder\.layer\."), "encoder.layers."),
    (re.compile(r"\.attention\.attention\.(query|key|value)\."), r".attention.\1_proj."),
    (re.compile(r"\.query_proj\."), ".q_proj."),
    (re.compile(r"\.key_proj\."), ".k_proj."),
    (re.compile(r"\.value_proj\."), ".v_proj."),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"\.output\.dense\."), ".mlp.fc2."),
)


def tensor_names(encoder_blocks: int, predictor_blocks: int) -> dict[str, str]:
    """Return the names of LeWM's tensors in a `JEPA`, by their names in a checkpoint.

    Checkpoint names are those of transformers 5. There are 303 with 12 and 6 blocks.

    Args:
        encoder_blocks: number of blocks in the vision transformer.
        predictor_blocks: number of blocks in the predictor.
    """
    vit = "senses.images.0.network"
    tensors = {
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
        for theirs, ours in _VIT_BLOCK.items():
            layers[f"encoder.layers.{k}.{theirs}"] = f"{vit}.blocks.{k}.{ours}"
    for k in range(predictor_blocks):
        block = f"predictor.transformer.layers.{k}"
        tensors[f"{block}.attn.to_qkv.weight"] = f"predictor.blocks.{k}.attention.joint.weight"
        for theirs, ours in _PREDICTOR_BLOCK.items():
            layers[f"{block}.{theirs}"] = f"predictor.blocks.{k}.{ours}"
    for theirs, ours in (("projector", "projector"), ("pred_proj", "project_prediction")):
        layers[f"{theirs}.net.0"] = f"{ours}.inwards"
        layers[f"{theirs}.net.3"] = f"{ours}.outwards"
        tensors |= {f"{theirs}.net.1.{leaf}": f"{ours}.norm.{leaf}" for leaf in _BATCH_NORM}
    for theirs, ours in layers.items():
        tensors |= {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in _LAYER}
    return tensors


def _transformers_5_name(name: str) -> str:
    """Return the name that transformers 5 gives a tensor, from the name in either version."""
    if not str(name).startswith("encoder.encoder."):
        return name
    for pattern, replacement in _TRANSFORMERS_4:
        name = pattern.sub(replacement, name)
    return name


# ---------------------------------------------------------------- the weights


def _find_weights(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("weights*.pt"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise LeWMError(f"{path} contains several weights ({names}); pass the path of one of them")
    raise LeWMError(
        f"{path} is not a LeWM checkpoint; expected a folder with config.json and one weights*.pt"
    )


def _read_state_dict(weights: Path) -> dict[str, Any]:
    expected = "a state_dict saved with torch.save, not a whole model (`*_object.ckpt`)"
    loaded: Any = read_state_dict(weights, expected, LeWMError)
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise LeWMError(f"{weights} holds a {type(loaded).__name__}; expected a state_dict")
    return loaded


def _copy_tensors(loaded: dict[str, Any], model: JEPA, weights: Path) -> None:
    """Copy a checkpoint's tensors into the model.

    Raises:
        LeWMError: a tensor is missing, unknown or has another shape.
    """
    encoder = cast(ViT, _image_encoder(model).network)
    expected = tensor_names(len(encoder.blocks), model.config.blocks)
    found = {_transformers_5_name(name): value for name, value in loaded.items()}
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise LeWMError(
            f"{weights} does not hold the {len(expected)} tensors of this LeWM: {len(missing)} are "
            f"missing ({', '.join(missing[:3]) or 'none'}), {len(unknown)} are unknown "
            f"({', '.join(map(str, unknown[:3])) or 'none'}); check that config.json belongs to it"
        )
    destinations = model.state_dict()
    for theirs, ours in expected.items():
        value, destination = found[theirs], destinations[ours]
        if not isinstance(value, Tensor) or value.numel() != destination.numel():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LeWMError(
                f"{weights}: {theirs} is {shape}; config.json implies {tuple(destination.shape)}"
            )
        destination.copy_(value.reshape(destination.shape))


# ---------------------------------------------------------------- what a checkpoint lacks


def _check_statistics(statistics: LeWMStatistics, folder: Path) -> dict[str, Tensor]:
    """Return all statistics as tensors by name.

    Raises:
        LeWMError: one is missing.
    """
    values = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise LeWMError(
            f"the checkpoint {folder} does not contain {', '.join(missing)}, without which its "
            f"predictions are meaningless. Pass LeWMStatistics({'=..., '.join(missing)}=...): mean "
            "and standard deviation of each number of an action in the training dataset, before "
            "grouping, and of each channel of the pixels (LeWM uses IMAGENET_MEAN and IMAGENET_STD "
            "of dreamgym.models.jepa)"
        )
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _check_spaces(
    observation_space: gym.Space, action_space: gym.Space, action_numbers: int
) -> None:
    boxes = list(observation_boxes(observation_space).values())
    layout = image_layout(boxes[0]) if len(boxes) == 1 else None
    if layout is None or layout.channels != 3:
        raise LeWMError(
            "LeWM takes uint8 images of shape (height, width, 3) or (3, height, width), got "
            f"{observation_space}; select only the key of the images in a Dict"
        )
    size = torch.Size(action_space.shape or ()).numel()
    if not isinstance(action_space, gym.spaces.Box) or size != action_numbers:
        raise LeWMError(
            f"this checkpoint's actions are {action_numbers} numbers, got {action_space}; with a "
            "frame skip pass the space of a block of actions, such as a Box of shape (5, 2)"
        )


def _image_encoder(model: JEPA) -> ImageEncoder:
    return next(iter(model.senses.image_encoders.values()))


def _set_normalisers(model: JEPA, normalisers: dict[str, Tensor]) -> None:
    try:
        model.encode_action.set_moments(normalisers["action_mean"], normalisers["action_std"])
    except ValueError as error:
        raise LeWMError(f"action_mean and action_std: {error}") from error
    images = _image_encoder(model)
    images.mean.copy_(normalisers["pixel_mean"].view(-1, 1, 1))
    images.std.copy_(normalisers["pixel_std"].view(-1, 1, 1))


@torch.no_grad()
def _disable_heads_and_noise(model: JEPA) -> None:
    """Set reward and noise to zero, and termination to never."""
    last = cast(nn.Linear, model.heads[-1])
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.0, NEVER]))
    model.residual.zero_()
