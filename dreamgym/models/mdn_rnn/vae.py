"""V of V-M-C: a convolutional variational autoencoder, and the encoder of whole observations.

Ha and Schmidhuber, "World Models" (2018), arXiv 1803.10122, appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import KLDiagnostic, LatentDiagnostics, Segment
from dreamgym.models.nn.codecs import TransitionCodec, flattened, standardised, to_box
from dreamgym.models.nn.conv import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder, Pixels
from dreamgym.models.nn.distributions import normal
from dreamgym.models.nn.encoding_cache import EncodingCache
from dreamgym.models.nn.layers import Linear
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.reduction import all_reduce_sum, evenly_spaced, processes
from dreamgym.models.statistics import Statistics

ENCODE_BATCH = 256
"""Frames encoded in one call: more need more memory and save no time."""


class Posterior(NamedTuple):
    """Diagonal Gaussian over the latents of an image; leaves (..., latent)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, epsilon: Tensor) -> Tensor:
        """Return mean + std * epsilon, with epsilon (..., latent) standard normal."""
        return self.mean + (0.5 * self.log_variance).exp() * epsilon

    def divergence(self) -> Tensor:
        """Return the KL divergence from the standard normal, in nats: (...)."""
        return self.divergences().sum(-1)

    def divergences(self) -> Tensor:
        """Return the KL divergence of each dimension, in nats: (..., latent)."""
        return -0.5 * (1 + self.log_variance - self.mean.square() - self.log_variance.exp())


class VAELoss(NamedTuple):
    """Terms of the loss, each (B,).

    Attributes:
        reconstruction: squared errors summed over pixels and channels, with pixels in [0, 1].
        kl: divergence from the prior in nats, clamped from below at the tolerance.
    """

    reconstruction: Tensor
    kl: Tensor


class VAE(nn.Module):
    """Four convolutions to a Gaussian z, and four transposed ones from z back to the image.

    Args:
        channels: channels of the image.
        size: (height, width) of the image; 64 by 64 in the paper.
        latent: width of z.
        width: factor on the channels (32, 64, 128, 256) of every layer; 1 is the paper's.

    Raises:
        ValueError: the convolutions do not fit the size; the message names sizes that fit.
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
        """Return the posterior of images (..., channels, height, width) in [0, 1]."""
        features = self.encoder(images)
        return Posterior(self.mean(features), self.log_variance(features))

    def encoder_weights(self) -> list[nn.Parameter]:
        """Return the parameters that `encode` uses."""
        modules = (self.encoder, self.mean, self.log_variance)
        return [parameter for module in modules for parameter in module.parameters()]

    def decode(self, z: Tensor) -> Tensor:
        """Return images (..., channels, height, width) in [0, 1] for z (..., latent)."""
        return self.decoder(z).sigmoid()

    def loss(
        self, images: Tensor, epsilon: Tensor, *, tolerance: float, foreground: float = 0.0
    ) -> VAELoss:
        """Return the published loss: summed squared errors, and KL with a tolerance.

        Args:
            images: (B, channels, height, width) in [0, 1].
            epsilon: (B, latent) standard normal samples.
            tolerance: free nats for each dimension of z.
            foreground: additional weight of an error where the image differs by one from the mean
                of the batch; with a camera that does not move, that is where things move.
        """
        posterior = self.encode(images)
        error = (self.decode(posterior.sample(epsilon)) - images).square()
        if foreground:
            mean = all_reduce_sum(images.sum(0, keepdim=True)) / (len(images) * processes())
            difference = (images - mean).abs().amax(1, keepdim=True)
            error = error * (1 + foreground * difference)
        free_nats = tolerance * epsilon.shape[-1]
        return VAELoss(error.sum((1, 2, 3)), torch.clamp(posterior.divergence(), min=free_nats))


def _initialise(module: nn.Module) -> None:
    """Initialise as TensorFlow, and so the authors, do: Glorot and Bengio (2010), equation 16.

    With torch's default weights, which are much smaller, z carries no information at first.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ImageVAESizes(NamedTuple):
    """Sizes of the VAE of one image; see `MDNRNNConfig`."""

    image_size: int
    latent: int
    width: float


class ImageVAE(nn.Module):
    """The VAE of one part of an observation, and the conversion of its pixels."""

    def __init__(self, box: gym.spaces.Box, sizes: ImageVAESizes) -> None:
        super().__init__()
        self.pixels = Pixels(box, (sizes.image_size, sizes.image_size))
        self.vae = VAE(self.pixels.channels, self.pixels.size, sizes.latent, sizes.width)


class FrameBatch(NamedTuple):
    """Frames to fit a VAE on.

    Attributes:
        vae: the VAE of these frames.
        images: (F, channels, height, width) floats in [0, 1].
        epsilon: (F, latent) standard normal samples.
    """

    vae: VAE
    images: Tensor
    epsilon: Tensor


class ObservationEncoder(TransitionCodec):
    """Encodes observations as z (..., size) and back; a Dict's parts in the order of its keys.

    A vector takes as many dimensions of z as it has numbers, standardised, and an image `latent`
    dimensions. Latents are neither standardised nor limited: their mean is zero, their standard
    deviations are one, and their bounds are infinite.

    Args:
        space: a Box of numbers, an image, or a Dict of them.
        sizes: sizes of the images' VAEs.
        margin: widening of the training data's range on each side, as a share of it.

    Attributes:
        carried: (size,) one where a step predicts the change of z, zero where it predicts z itself.
            Most numbers of vectors change little in a step. Those that do not drift
            (`Moments.drifts`), such as contact forces, depend little on their last value. Neither
            do latents, which are sampled from their posterior at every step: a model that predicted
            the change would have to undo the noise of the last value.
    """

    carried: Tensor

    def __init__(self, space: gym.Space, sizes: ImageVAESizes, margin: float) -> None:
        places: dict[str, slice] = {}
        boxes = observation_boxes(space)
        low, high = [], []
        size = 0
        for key, box in boxes.items():
            if is_image(box):
                low.append(np.full(sizes.latent, -np.inf))
                high.append(np.full(sizes.latent, np.inf))
            else:
                low.append(box.low.reshape(-1))
                high.append(box.high.reshape(-1))
            places[key] = slice(size, size + len(low[-1]))
            size = places[key].stop
        lower, upper = (np.concatenate(sides).astype(np.float64) for sides in (low, high))
        super().__init__(gym.spaces.Box(lower, upper, dtype=np.float64), margin)
        self.places = places
        self.boxes = boxes
        self.shapes = {key: box.shape for key, box in boxes.items()}
        images = [key for key, box in boxes.items() if is_image(box)]
        self.images = {key: index for index, key in enumerate(images)}
        # A list by index: a key of a Dict may not be a valid module name.
        self.sights = nn.ModuleList(ImageVAE(boxes[key], sizes) for key in images)
        self.register_buffer("carried", torch.ones(size))
        for key in images:
            self.carried[places[key]] = 0.0
            self.low[places[key]], self.high[places[key]] = -torch.inf, torch.inf
        self.clear_cache()

    def set_statistics(self, statistics: Statistics) -> None:
        """Fit the normalisers of the vectors to training data; images have none."""
        for key, moments in statistics.observation.items():
            place = self.places[key]
            self.set_moments(moments, place)
            self.carried[place] = moments.drifts.to(self.carried)

    def encode_observation(self, observation: Observation, noise: Tensor) -> Tensor:
        """Encode observations (..., *shape) as z (..., size), without gradients in the VAEs.

        Args:
            observation: in the real environment's units.
            noise: (..., size) uniforms; only those of latents are used.
        """
        return self._encode(observation, noise, self._posterior)

    def encode_cached(self, observation: Observation, noise: Tensor) -> Tensor:
        """Encode like `encode_observation`, but compute each image's posterior only once.

        Cached posteriors are used for as long as the VAEs do not change.
        """
        return self._encode(observation, noise, self._cached_posterior)

    def clear_cache(self) -> None:
        """Release the posteriors that `encode_cached` keeps."""
        self._caches = {key: EncodingCache() for key in self.images}

    def _encode(
        self,
        observation: Observation,
        noise: Tensor,
        posterior: Callable[[str, Tensor], Posterior],
    ) -> Tensor:
        codes = []
        for key, place in self.places.items():
            values = get_part(observation, key)
            if key in self.images:
                lead = values.shape[: values.ndim - len(self.shapes[key])]
                images, epsilon = values.flatten(0, len(lead) - 1), normal(noise[..., place])
                sampled = posterior(key, images).sample(epsilon.flatten(0, -2))
                codes.append(sampled.unflatten(0, lead))
            else:
                flat = flattened(values, self.shapes[key])
                codes.append(standardised(flat, self.mean[place], self.std[place]))
        return torch.cat(codes, -1) if len(codes) > 1 else codes[0]

    @torch.no_grad()
    def _posterior(self, key: str, images: Tensor) -> Posterior:
        """Return the posterior of images (N, *shape) uint8."""
        part = self._image_vae(key)
        posteriors = [
            part.vae.encode(part.pixels.to_float(frames)) for frames in images.split(ENCODE_BATCH)
        ]
        means, log_variances = zip(*posteriors, strict=True)
        return Posterior(torch.cat(means), torch.cat(log_variances))

    def _cached_posterior(self, key: str, images: Tensor) -> Posterior:
        weights = self._image_vae(key).vae.encoder_weights()
        encoded = self._caches[key].encode(
            images.flatten(1),
            weights,
            lambda missing: torch.stack(self._posterior(key, images[missing]), 1),
        )
        return Posterior(*encoded.unbind(1))

    def _image_vae(self, key: str) -> ImageVAE:
        return cast(ImageVAE, self.sights[self.images[key]])

    def decode_observation(self, z: Tensor) -> Observation:
        """Return observations (..., *shape) for z (..., size), in the space's dtypes and bounds."""
        decoded, vectors = {}, self.decode(z)
        for key, place in self.places.items():
            if key in self.images:
                part = self._image_vae(key)
                decoded[key] = part.pixels.to_bytes(part.vae.decode(z[..., place]))
            else:
                decoded[key] = to_box(vectors[..., place], self.boxes[key])
        return join_parts(decoded)

    def sample_frames(self, segment: Segment, noise: Tensor, count: int) -> dict[str, FrameBatch]:
        """Take at most `count` real frames of every image part, evenly spaced over the batch.

        Args:
            segment: B windows of L transitions; frames under padding are never taken.
            noise: (B, L + 1, size) uniforms.
            count: number of frames, over all processes that share the batch.
        """
        rows = evenly_spaced(F.pad(segment.mask, (1, 0), value=True).flatten(), count)
        batches = {}
        for key in self.images:
            part = self._image_vae(key)
            images = get_part(segment.observation, key).flatten(0, 1)[rows]
            epsilon = normal(noise[..., self.places[key]].flatten(0, 1)[rows])
            batches[key] = FrameBatch(part.vae, part.pixels.to_float(images), epsilon)
        return batches


def kl_diagnostics(frames: dict[str, FrameBatch], free_nats: float) -> LatentDiagnostics:
    """Return the KL divergence of each image's posterior from the prior.

    Args:
        frames: frames of each image part, from `ObservationEncoder.sample_frames`.
        free_nats: free nats of each dimension of z.
    """
    remedy = "lower kl_scale, or fit the VAE for longer"
    divergences = {
        key: KLDiagnostic(batch.vae.encode(batch.images).divergences(), free_nats, "each", remedy)
        for key, batch in frames.items()
    }
    return LatentDiagnostics(divergences, {})
