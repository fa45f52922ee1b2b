"""Frozen vision models of the transformers library as encoders: DINOv2, V-JEPA 2, ViT and others.

Their weights are not saved with a world. They are large (86 MB to 4 GB), the same for every world,
and under licences of their own. A world names the model and the exact revision instead, and keeps
a fingerprint of the weights that it was fitted with: others are refused when it is loaded.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from dreamgym.errors import PretrainedError

PREFIX = "transformers:"


FINGERPRINT_BYTES = 32


class PretrainedEncoder(nn.Module):
    """A pretrained vision model, frozen, that turns images into one vector each.

    The vector is the class token, where the model has one, and the mean of all tokens. A model of
    videos sees a still: the same frame as often as its tubelets are long.

    Args:
        name: "NAME" or "NAME@REVISION" as on the hub, or the path of a folder.

    Attributes:
        dim: width of the output.
        resolved: the name with the exact revision, where it is known.

    Raises:
        PretrainedError: transformers is not installed, the model cannot be had, or it is none of
            images or videos.
    """

    fingerprint: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        model = _load(name)
        self.resolved = _resolved(name, model)
        # Out of the module's sight, so that it is neither saved, fitted, nor put into train mode.
        self._frozen = [model.eval().requires_grad_(False)]
        self.frames = _frames(name, model)
        self.has_class_token = any("cls_token" in key for key, _ in model.named_parameters())
        self.dim = int(model.config.hidden_size) * (1 + self.has_class_token)
        self.register_buffer("fingerprint", _fingerprint(model))

    def _apply(self, function: Any, recurse: bool = True) -> PretrainedEncoder:
        self._frozen[0]._apply(function)
        super()._apply(function, recurse)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, height, width); gives (B, dim) without a gradient."""
        model = self._frozen[0]
        if self.frames:
            video = images.unsqueeze(1).expand(-1, self.frames, -1, -1, -1)
            tokens = model(pixel_values_videos=video, skip_predictor=True).last_hidden_state
        else:
            tokens = model(pixel_values=images).last_hidden_state
        mean = tokens.mean(1)
        return torch.cat([tokens[:, 0], mean], -1) if self.has_class_token else mean

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        wanted = state_dict.get(f"{prefix}fingerprint")
        if wanted is not None and not torch.equal(wanted.cpu(), self.fingerprint.cpu()):
            arguments[-1].append(
                f"the weights of {self.resolved} here are not those that this was fitted with; "
                "give the same revision, or fit again"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _load(name: str) -> Any:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise PretrainedError(
            f"the encoder {PREFIX}{name} needs the package transformers, which is not installed "
            f"({error}): pip install 'dreamgym[transformers]', or take image_encoder='conv'"
        ) from error
    base, _, revision = name.partition("@")
    try:
        # Weights as safetensors only, and no code of the repository: nothing is executed.
        return AutoModel.from_pretrained(
            base, revision=revision or None, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise PretrainedError(
            f"the encoder {PREFIX}{name} cannot be loaded: {error}. Check the name and the "
            "revision, and that the hub can be reached; or download the model's folder (its "
            "config.json and model.safetensors) and give its path as the name"
        ) from error


def _resolved(name: str, model: Any) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    return f"{name.partition('@')[0]}@{commit}" if commit else name


def _frames(name: str, model: Any) -> int:
    """Frames that a model of videos wants of a still; zero for a model of images."""
    inputs = getattr(model, "main_input_name", "")
    if inputs == "pixel_values_videos":
        return int(getattr(model.config, "tubelet_size", 1))
    if inputs != "pixel_values" or not hasattr(model.config, "hidden_size"):
        raise PretrainedError(
            f"{name} is a {type(model).__name__}, which takes {inputs or 'no'} input; give a "
            "vision model that turns images or videos into tokens, such as DINOv2 or V-JEPA 2"
        )
    return 0


def _fingerprint(model: nn.Module) -> Tensor:
    """SHA-256 of a model's tensors, as bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
