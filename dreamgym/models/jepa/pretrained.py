"""Frozen vision models of the transformers library as encoders of whole images."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamgym.models.nn.pretrained import FrozenEncoder
from dreamgym.models.weights import NeedsWeightsError

PREFIX = "transformers:"
"""Prefix of `JEPAConfig.image_encoder` that selects a model of the transformers library."""


class PretrainedEncoder(FrozenEncoder):
    """A frozen, pretrained vision model that encodes each image as one vector.

    The vector is the class token, if the model has one, followed by the mean of all tokens.

    Args:
        name: see `FrozenEncoder`.

    Attributes:
        dim: width of the output.

    Raises:
        PretrainedError: see `FrozenEncoder`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if self.frozen is None:
            raise NeedsWeightsError("only the weights say whether there is a class token")
        self.has_class_token = any("cls_token" in key for key, _ in self.frozen.named_parameters())
        self.dim = self.width * (1 + self.has_class_token)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, height, width) as (B, dim), without gradient."""
        tokens = self.tokens(images)
        mean = tokens.mean(1)
        return torch.cat([tokens[:, 0], mean], -1) if self.has_class_token else mean
