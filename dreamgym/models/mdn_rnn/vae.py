"""V of V-M-C: a convolutional variational autoencoder of images.

Ha and Schmidhuber, "World Models" (2018), arXiv 1803.10122, appendix A.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import KLDiagnostic, LatentDiagnostics, Segment
from dreamgym.models.nn.codecs import flattened, standard_range
from dreamgym.models.nn.conv import VMC_DECODER, VMC_ENCODER, ConvDecoder, ConvEncoder, Pixels
from dreamgym.models.nn.distributions import normal
from dreamgym.models.nn.layers import Linear
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.reduction import all_reduce_sum, processes
from dreamgym.models.statistics import Statistics


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
            mean = all_reduce_sum(images.sum(0, keepdim=True)) / (len(images) * processes())
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


LIMIT = 1 << 20

"""Images that are remembered at most: half a gigabyte of 64 latents."""


class Remembered:
    """Posteriors of images by their content, for as long as the encoder's weights do not change.

    The authors of V-M-C encode all frames once, before M is fitted. Here M's segments come from the
    one reader as images, and what was seen is known again by a digest of its bytes.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._kept: Posterior | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Remembered:
        """A copy of the encoder, which may go elsewhere, remembers nothing."""
        return Remembered()

    def posterior(
        self,
        images: Tensor,
        weights: Sequence[nn.Parameter],
        encode: Callable[[Tensor], Posterior],
    ) -> Posterior:
        """The posterior of every image, leaves (N, latent).

        Args:
            images: (N, height, width, channels) uint8.
            weights: of the encoder; where they have changed since, all is forgotten.
            encode: gives the posterior of some of the images.
        """
        stamp = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if stamp != self._stamp or len(self._rows) > LIMIT:
            self._rows, self._kept, self._stamp = {}, None, stamp
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in _bytes(images)]
        unknown = {key: k for k, key in enumerate(keys) if key not in self._rows}
        if unknown:
            self._keep(encode(images[list(unknown.values())]))
            self._rows |= {key: len(self._rows) + k for k, key in enumerate(unknown)}
        if self._kept is None:
            raise ValueError("there are no images to encode")
        rows = torch.tensor([self._rows[key] for key in keys], device=images.device)
        return Posterior(*(leaf[rows] for leaf in self._kept))

    def _keep(self, found: Posterior) -> None:
        if self._kept is None:
            self._kept = found
        else:
            both = zip(self._kept, found, strict=True)
            self._kept = Posterior(*(torch.cat(leaves) for leaves in both))


def _bytes(images: Tensor) -> list[memoryview]:
    rows = images.flatten(1).cpu().contiguous().numpy()
    return [memoryview(row) for row in rows]


CHUNK = 256

"""Frames that are encoded at once: more only fills memory."""


Encoder = Callable[[str, Tensor], Posterior]


class ImageVAESizes(NamedTuple):
    """What a VAE is made of, see `MDNRNNConfig`."""

    image_size: int
    latent: int
    width: float


class ImageVAE(nn.Module):
    """One part of an observation that is an image: its pixels at the working size, and its VAE."""

    def __init__(self, box: gym.spaces.Box, sizes: ImageVAESizes) -> None:
        super().__init__()
        self.pixels = Pixels(box, (sizes.image_size, sizes.image_size))
        self.vae = VAE(box.shape[2], self.pixels.size, sizes.latent, sizes.width)


class ObservationEncoder(nn.Module):
    """Between observations and z (..., size), the parts of a Dict in the order of its keys.

    Attributes:
        size: width of z.
        mean: (size,) of a vector's numbers, in their units; zero for an image's latents.
        std: (size,) likewise; one for latents.
        low: (size,) the least that training data has shown, in z's units; infinite for latents.
        high: (size,) the greatest.
        space_low: (size,) lower bounds of the observation space, in its units.
        space_high: (size,) upper bounds.
        delta_std: (size,) spread of the change in a step, in z's units; one for latents.
        carried: (size,) one where a step predicts the change of z, zero where z itself. Numbers of
            a vector change little in a step. A latent is sampled anew from its posterior each time,
            and a model that predicted its change would have to undo the last sample's noise.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    space_low: Tensor
    space_high: Tensor
    delta_std: Tensor
    carried: Tensor

    def __init__(self, space: gym.Space, sizes: ImageVAESizes) -> None:
        super().__init__()
        self.places: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.images: dict[str, int] = {}
        sights: list[ImageVAE] = []
        bounds, size = [], 0
        for key, box in observation_boxes(space).items():
            if is_image(box):
                self.images[key] = len(sights)
                sights.append(ImageVAE(box, sizes))
                count = sizes.latent
                bounds.append(np.full((2, count), np.inf) * [[-1], [1]])
            else:
                _refuse_no_floats(key, box)
                count = int(np.prod(box.shape))
                bounds.append(np.stack([box.low.reshape(-1), box.high.reshape(-1)]))
            self.places[key], self.shapes[key] = slice(size, size + count), box.shape
            size += count
        self.size = size
        self.sights = nn.ModuleList(sights)
        self.forget()
        self._register(torch.tensor(np.concatenate(bounds, 1), dtype=torch.float32))

    def _register(self, bounds: Tensor) -> None:
        zeros, ones = torch.zeros(self.size), torch.ones(self.size)
        carried = ones.clone()
        for key in self.images:
            carried[self.places[key]] = 0.0
        unknown = torch.where(carried > 0, 0.0, torch.inf)
        values = {
            "mean": zeros,
            "std": ones,
            "low": -unknown,
            "high": unknown + carried,
            "space_low": bounds[0],
            "space_high": bounds[1],
            "delta_std": ones,
            "carried": carried,
        }
        for name, value in values.items():
            self.register_buffer(name, value.clone())

    def set_statistics(self, statistics: Statistics, range_margin: float) -> None:
        """Fit what stands for vectors to training data; images need nothing."""
        for key, moments in statistics.observation.items():
            place = self.places[key]
            self.mean[place], self.std[place] = moments.mean, moments.std
            self.low[place], self.high[place] = standard_range(moments, range_margin)
            self.delta_std[place] = moments.delta_std / moments.std

    def encode(self, observation: Observation, noise: Tensor) -> Tensor:
        """Encode observations (..., *shape) as z (..., size); no gradient flows through the images.

        Args:
            observation: in the real environment's units.
            noise: (..., size) uniforms; only those of latents are used.
        """
        return self._encode(observation, noise, self._posterior)

    def recall(self, observation: Observation, noise: Tensor) -> Tensor:
        """`encode`, with each image's posterior computed once for as long as V stands still."""
        return self._encode(observation, noise, self._posterior_once)

    def _encode(self, observation: Observation, noise: Tensor, posterior: Encoder) -> Tensor:
        codes = []
        for key, place in self.places.items():
            values = get_part(observation, key)
            if key in self.images:
                flat, standard = values.flatten(0, -4), normal(noise[..., place])
                sampled = posterior(key, flat).sample(standard.flatten(0, -2))
                codes.append(sampled.unflatten(0, values.shape[:-3]))
            else:
                flat = flattened(values, self.shapes[key]).float()
                codes.append((flat - self.mean[place]) / self.std[place])
        return torch.cat(codes, -1) if len(codes) > 1 else codes[0]

    @torch.no_grad()
    def _posterior(self, key: str, images: Tensor) -> Posterior:
        """Of images (N, height, width, channels)."""
        sight = self._sight(key)
        chunks = [sight.vae.encode(sight.pixels.to_float(frames)) for frames in images.split(CHUNK)]
        means, log_variances = zip(*chunks, strict=True)
        return Posterior(torch.cat(means), torch.cat(log_variances))

    def _posterior_once(self, key: str, images: Tensor) -> Posterior:
        weights = self._sight(key).vae.encoding_weights()
        return self._remembered[key].posterior(
            images, weights, lambda unknown: self._posterior(key, unknown)
        )

    def forget(self) -> None:
        """Let go of what `recall` keeps."""
        self._remembered = {key: Remembered() for key in self.images}

    def decode(self, z: Tensor) -> Observation:
        """Observations (..., *shape) of z (..., size), in the types and bounds of the space."""
        decoded = {}
        for key, place in self.places.items():
            if key in self.images:
                sight = self._sight(key)
                decoded[key] = sight.pixels.to_bytes(sight.vae.decode(z[..., place]))
            else:
                values = z[..., place] * self.std[place] + self.mean[place]
                values = torch.clamp(values, self.space_low[place], self.space_high[place])
                decoded[key] = values.reshape(*z.shape[:-1], *self.shapes[key])
        return join_parts(decoded)

    def _sight(self, key: str) -> ImageVAE:
        return cast(ImageVAE, self.sights[self.images[key]])

    def within_space(self, z: Tensor) -> Tensor:
        """Cut z off at the bounds of the observation space."""
        low = (self.space_low - self.mean) / self.std
        return torch.clamp(z, low, (self.space_high - self.mean) / self.std)

    def frames(self, segment: Segment, noise: Tensor, count: int) -> dict[str, FrameBatch]:
        """At most `count` real frames of every image part, evenly spaced over a batch of segments.

        Segments begin anywhere, so that evenly spaced frames are frames from anywhere.

        Args:
            segment: B windows of L transitions; what is under padding is never taken.
            noise: (B, L + 1, size) uniforms.
            count: of frames, in all processes that share the batch.
        """
        real = F.pad(segment.mask, (1, 0), value=True).flatten().nonzero().squeeze(1)
        wanted = min(max(1, count // processes()), len(real))
        rows = real[torch.arange(wanted, device=real.device) * len(real) // wanted]
        batches = {}
        for key in self.images:
            sight = self._sight(key)
            images = get_part(segment.observation, key).flatten(0, 1)[rows]
            standard = normal(noise[..., self.places[key]].flatten(0, 1)[rows])
            batches[key] = FrameBatch(sight.vae, sight.pixels.to_float(images), standard)
        return batches


class FrameBatch(NamedTuple):
    """Frames to fit a VAE on.

    Attributes:
        vae: whose they are.
        images: (F, channels, height, width) floats in [0, 1].
        standard: (F, latent) standard normal numbers.
    """

    vae: VAE
    images: Tensor
    standard: Tensor


def diagnostics(batches: dict[str, FrameBatch], free: float) -> LatentDiagnostics:
    """What frames say through the latents of their VAEs.

    Args:
        batches: of frames, as `Perception.frames` gives them.
        free: nats that each dimension may use for nothing.
    """
    remedy = "lower kl_scale, or fit the VAE for longer"
    found = {
        key: KLDiagnostic(batch.vae.encode(batch.images).divergences(), free, "each", remedy)
        for key, batch in batches.items()
    }
    return LatentDiagnostics(found, {})


def _refuse_no_floats(key: str, box: gym.spaces.Box) -> None:
    if not np.issubdtype(box.dtype, np.floating):
        where = f"the part {key!r} of the observation" if key else "the observation"
        raise TypeError(
            f"{where} is {box}; the mdn-rnn family takes Boxes of floats, and images: uint8 of "
            "shape (height, width, channels). Wrap the environment so that it gives one of these"
        )
