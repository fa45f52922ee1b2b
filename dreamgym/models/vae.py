"""V of V-M-C: a convolutional variational autoencoder of images.

Ha and Schmidhuber, "World Models" (2018), arXiv 1803.10122, appendix A.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.exact import Linear
from dreamgym.models.masked import processes, whole
from dreamgym.models.vision import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder


class Posterior(NamedTuple):
    """The Gaussian that an image is encoded to; leaves (..., latent)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, standard: Tensor) -> Tensor:
        """Draw with standard normal numbers (..., latent)."""
        return self.mean + (0.5 * self.log_variance).exp() * standard

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, in nats: (...)."""
        return self.divergences().sum(-1)

    def divergences(self) -> Tensor:
        """The same by dimension: (..., latent)."""
        return -0.5 * (1 + self.log_variance - self.mean.square() - self.log_variance.exp())


class VAELoss(NamedTuple):
    """Terms of the loss, each (B,).

    Attributes:
        reconstruction: sum over pixels and channels of the squared errors, in [0, 1] units.
        kl: divergence from the prior in nats, but at least the tolerance.
    """

    reconstruction: Tensor
    kl: Tensor


class VAE(nn.Module):
    """Convolutions 32, 64, 128, 256 to a Gaussian z, and transposed ones back to the image.

    Args:
        channels: of the image.
        size: (height, width) of the image; 64 by 64 in the paper.
        latent: width of z.
        width: multiplies the channels of every layer; 1 is the paper's.

    Raises:
        ValueError: the size does not fit; the message says what would.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], latent: int, width: float = 1.0
    ) -> None:
        super().__init__()
        self.decoder = ConvDecoder(latent, channels, size, VMC_DECODER.scaled(width))
        self.encoder = ConvEncoder(channels, size, VMC_ENCODER.scaled(width))
        self.mean = Linear(self.encoder.dim, latent)
        self.log_variance = Linear(self.encoder.dim, latent)
        self.apply(_initialise)

    def encode(self, images: Tensor) -> Posterior:
        """The posterior of z for images (..., channels, height, width) in [0, 1]."""
        features = self.encoder(images)
        return Posterior(self.mean(features), self.log_variance(features))

    def encoding_weights(self) -> list[nn.Parameter]:
        """The parameters that `encode` uses."""
        parts = (self.encoder, self.mean, self.log_variance)
        return [parameter for part in parts for parameter in part.parameters()]

    def decode(self, z: Tensor) -> Tensor:
        """Images (..., channels, height, width) in [0, 1] of z (..., latent)."""
        return self.decoder(z).sigmoid()

    def loss(
        self, images: Tensor, standard: Tensor, *, tolerance: float, foreground: float = 0.0
    ) -> VAELoss:
        """The published loss: summed squared errors, and the divergence above a tolerance.

        Args:
            images: (B, channels, height, width) in [0, 1].
            standard: (B, latent) standard normal numbers.
            tolerance: nats for each dimension of z below which the divergence costs no more.
            foreground: how many times more an error weighs where the image differs by one from the
                mean of the batch. With a camera that stands still that is where things move.
        """
        posterior = self.encode(images)
        error = (self.decode(posterior.sample(standard)) - images).square()
        if foreground:
            mean = whole(images.sum(0, keepdim=True)) / (len(images) * processes())
            differs = (images - mean).abs().amax(1, keepdim=True)
            error = error * (1 + foreground * differs)
        least = tolerance * standard.shape[-1]
        return VAELoss(error.sum((1, 2, 3)), torch.clamp(posterior.divergence(), min=least))


def _initialise(module: nn.Module) -> None:
    """As TensorFlow does, and so the authors: torch's own weights are so small that z starts blind.

    Glorot and Bengio (2010), equation 16, without biases.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
