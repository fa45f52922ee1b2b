"""Frozen, pretrained networks, and those of the transformers library that encode images.

Their weights are not saved with a world: they are large (86 MB to 4 GB), identical for every world,
and under licences of their own. A world stores the model's name, its exact revision and a
fingerprint of the weights that it was fitted with; loading it with other weights fails.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from dreamgym.errors import PretrainedError
from dreamgym.models.checksum import weights_sha256


class Frozen(nn.Module):
    """Holds pretrained networks that are neither saved nor trained, and the checksum of them.

    Args:
        frozen: the networks; None on torch's meta device, where a description in a file is compared
            with its weights before a model is built.
        resolved: their name with the exact revision, where it is known.

    Attributes:
        frozen: the networks. They are no registered submodule, so they are not saved, not trained,
            and never switched to train mode.
        resolved: see above.
    """

    frozen: Any
    fingerprint: Tensor

    def __init__(self, frozen: nn.Module | None, resolved: str) -> None:
        super().__init__()
        self.resolved = resolved
        fingerprint = torch.zeros(32, dtype=torch.uint8)
        if frozen is not None:
            fingerprint = torch.tensor(list(weights_sha256(frozen)), dtype=torch.uint8)
            frozen = frozen.eval().requires_grad_(False)
        # Assigning it as an attribute would register it as a submodule.
        self.__dict__["frozen"] = frozen
        self.register_buffer("fingerprint", fingerprint)

    def _apply(self, function: Any, recurse: bool = True) -> Self:
        # Moves to another device or dtype have to reach the unregistered networks.
        if self.frozen is not None:
            self.frozen._apply(function)
        super()._apply(function, recurse)
        return self

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


class FrozenEncoder(Frozen):
    """A frozen, pretrained vision model that encodes images as tokens.

    A video model receives a still image: the same frame repeated over one tubelet. There is no way
    to get random weights: what cannot be loaded is an error.

    On torch's meta device the model's own config is read and its weights are not.

    Args:
        name: "NAME" or "NAME@REVISION" as on the hub, or the path of a folder.

    Attributes:
        width: width of the tokens.
        patch: side in pixels of a patch; 0 if the model's config does not say.
        side: side in pixels of the only images that a video model takes; 0 for any.
        frames: frames in one tubelet of a video model; 0 for an image model.

    Raises:
        PretrainedError: transformers is not installed, the model cannot be loaded, or it does not
            encode images or videos.
    """

    def __init__(self, name: str) -> None:
        described = torch.get_default_device().type == "meta"
        model = None if described else _load("AutoModel", name, use_safetensors=True)
        config = _load("AutoConfig", name) if model is None else model.config
        frames = 0 if model is None else _frames_per_tubelet(name, model)
        super().__init__(model, _with_revision(name, config))
        self.frames = frames
        self.width = int(getattr(config, "hidden_size", 0))
        self.patch = int(getattr(config, "patch_size", 0))
        self.side = int(getattr(config, "crop_size", 0))

    @property
    def published(self) -> str:
        """Name and revision, see `WorldModel.pretrained_weights`; licences are not known here."""
        return f"{self.resolved} (licence: see the model's card)"

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, height, width) as (B, tokens, width), without gradient.

        The class token and registers, if the model has them, come before the patches.
        """
        if self.frames:
            video = images.unsqueeze(1).expand(-1, self.frames, -1, -1, -1)
            output = self.frozen(pixel_values_videos=video, skip_predictor=True)
        else:
            output = self.frozen(pixel_values=images)
        tokens: Tensor = output.last_hidden_state
        return tokens


def _load(auto: str, name: str, **options: Any) -> Any:
    """Return what a class of transformers loads by name: a model or its config."""
    try:
        import transformers
    except ImportError as error:
        raise PretrainedError(
            f"the encoder {name} needs the package transformers, which is not installed "
            f"({error}): pip install 'dreamgym[transformers]', or use an encoder, or a family, "
            "without pretrained weights"
        ) from error
    base, _, revision = name.partition("@")
    try:
        # Safetensors only, and no code from the repository: nothing that is loaded is executed.
        return getattr(transformers, auto).from_pretrained(
            base, revision=revision or None, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise PretrainedError(
            f"the encoder {name} cannot be loaded: {reason}. Check the name and the revision, and "
            "that the hub can be reached; or download the model's folder (config.json and "
            "model.safetensors) and pass its path as the name"
        ) from error


def _with_revision(name: str, config: Any) -> str:
    commit = getattr(config, "_commit_hash", None)
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
