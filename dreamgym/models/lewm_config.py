"""What the `config.json` of a LeWM checkpoint says, as a config of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgym.models.jepa_config import LEWM, JEPAConfig
from dreamgym.models.jepa_predictor import SMOOTHED_ACTION

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
