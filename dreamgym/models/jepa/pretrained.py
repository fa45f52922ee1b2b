"""Frozen vision models of the transformers library as encoders: DINOv2, V-JEPA 2, ViT and others.

Their weights are not saved with a world: they are large (86 MB to 4 GB), identical for every world,
and under licences of their own. A world stores the model's name, its exact revision and a
fingerprint of the weights that it was fitted with; loading it with other weights fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamgym.errors import PretrainedError
from dreamgym.models.checksum import weights_sha256

PREFIX = "transformers:"
"""Prefix of `JEPAConfig.image_encoder` that selects a model of the transformers library."""


class PretrainedEncoder(nn.Module):
    """A frozen, pretrained vision model that encodes each image as one vector.

    The vector is the class token, if the model has one, followed by the mean of all tokens. A video
    model receives a still image: the same frame repeated over one tubelet.

    Args:
        name: "NAME" or "NAME@REVISION" as on the hub, or the path of a folder.

    Attributes:
        dim: width of the output.
        resolved: the name with the exact revision, where it is known.
        frozen: the model. It is not a registered submodule, so it is not saved, not trained, and
            never switched to train mode.

    Raises:
        PretrainedError: transformers is not installed, the model cannot be loaded, or it does not
            encode images or videos.
    """

    frozen: Any
    fingerprint: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        model = _load(name)
        self.resolved = _with_revision(name, model)
        # Assigning it as an attribute would register it as a submodule.
        self.__dict__["frozen"] = model.eval().requires_grad_(False)
        self.frames = _frames_per_tubelet(name, model)
        self.has_class_token = any("cls_token" in key for key, _ in model.named_parameters())
        self.dim = int(model.config.hidden_size) * (1 + self.has_class_token)
        fingerprint = torch.tensor(list(weights_sha256(model)), dtype=torch.uint8)
        self.register_buffer("fingerprint", fingerprint)

    def _apply(self, function: Any, recurse: bool = True) -> PretrainedEncoder:
        # Moves to another device or dtype have to reach the unregistered model.
        self.frozen._apply(function)
        super()._apply(function, recurse)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, height, width) as (B, dim), without gradient."""
        if self.frames:
            video = images.unsqueeze(1).expand(-1, self.frames, -1, -1, -1)
            output = self.frozen(pixel_values_videos=video, skip_predictor=True)
        else:
            output = self.frozen(pixel_values=images)
        tokens = output.last_hidden_state
        mean = tokens.mean(1)
        return torch.cat([tokens[:, 0], mean], -1) if self.has_class_token else mean

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}fingerprint")
        if saved is not None and not torch.equal(saved.cpu(), self.fingerprint.cpu()):
            error_messages = arguments[-1]
            error_messages.append(
                f"the weights of {self.resolved} found here differ from those that this model was "
                "fitted with; provide the same revision, or fit again"
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _load(name: str) -> Any:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise PretrainedError(
            f"the encoder {PREFIX}{name} needs the package transformers, which is not installed "
            f"({error}): pip install 'dreamgym[transformers]', or use image_encoder='conv'"
        ) from error
    base, _, revision = name.partition("@")
    try:
        # Safetensors only, and no code from the repository: nothing that is loaded is executed.
        return AutoModel.from_pretrained(
            base, revision=revision or None, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise PretrainedError(
            f"the encoder {PREFIX}{name} cannot be loaded: {error}. Check the name and the "
            "revision, and that the hub can be reached; or download the model's folder "
            "(config.json and model.safetensors) and pass its path as the name"
        ) from error


def _with_revision(name: str, model: Any) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    return f"{name.partition('@')[0]}@{commit}" if commit else name


def _frames_per_tubelet(name: str, model: Any) -> int:
    """Return the frames in one tubelet of a video model, or zero for an image model."""
    inputs = getattr(model, "main_input_name", "")
    if inputs == "pixel_values_videos":
        return int(getattr(model.config, "tubelet_size", 1))
    if inputs != "pixel_values" or not hasattr(model.config, "hidden_size"):
        raise PretrainedError(
            f"{name} is a {type(model).__name__}, which takes {inputs or 'no'} input; expected a "
            "vision model that turns images or videos into tokens, such as DINOv2 or V-JEPA 2"
        )
    return 0
