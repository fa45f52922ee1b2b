"""V of V-M-C for any observation: vectors standardised, images through a VAE, side by side in z."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Segment
from dreamgym.models.masked import processes
from dreamgym.models.observations import Observation, assemble, is_image, part, parts
from dreamgym.models.pixels import Pixels
from dreamgym.models.remembering import Remembered
from dreamgym.models.sampling import normal
from dreamgym.models.statistics import Statistics
from dreamgym.models.vae import VAE, Posterior
from dreamgym.models.vectors import flattened, standard_range
from dreamgym.models.vitals import Divergence, Vitals

CHUNK = 256
"""Frames that are encoded at once: more only fills memory."""


Encoder = Callable[[str, Tensor], Posterior]


class VisionSizes(NamedTuple):
    """What a VAE is made of, see `MDNRNNConfig`."""

    image_size: int
    latent: int
    width: float


class Sight(nn.Module):
    """One part of an observation that is an image: its pixels at the working size, and its VAE."""

    def __init__(self, box: gym.spaces.Box, sizes: VisionSizes) -> None:
        super().__init__()
        self.pixels = Pixels(box, (sizes.image_size, sizes.image_size))
        self.vae = VAE(box.shape[2], self.pixels.size, sizes.latent, sizes.width)


class Perception(nn.Module):
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

    def __init__(self, space: gym.Space, sizes: VisionSizes) -> None:
        super().__init__()
        self.places: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.images: dict[str, int] = {}
        sights: list[Sight] = []
        bounds, size = [], 0
        for key, box in parts(space).items():
            if is_image(box):
                self.images[key] = len(sights)
                sights.append(Sight(box, sizes))
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
            values = part(observation, key)
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
        return assemble(decoded)

    def _sight(self, key: str) -> Sight:
        return cast(Sight, self.sights[self.images[key]])

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
            images = part(segment.observation, key).flatten(0, 1)[rows]
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


def vitals(batches: dict[str, FrameBatch], free: float) -> Vitals:
    """What frames say through the latents of their VAEs.

    Args:
        batches: of frames, as `Perception.frames` gives them.
        free: nats that each dimension may use for nothing.
    """
    remedy = "lower kl_scale, or fit the VAE for longer"
    found = {
        key: Divergence(batch.vae.encode(batch.images).divergences(), free, "each", remedy)
        for key, batch in batches.items()
    }
    return Vitals(found, {})


def _refuse_no_floats(key: str, box: gym.spaces.Box) -> None:
    if not np.issubdtype(box.dtype, np.floating):
        where = f"the part {key!r} of the observation" if key else "the observation"
        raise TypeError(
            f"{where} is {box}; the mdn-rnn family takes Boxes of floats, and images: uint8 of "
            "shape (height, width, channels). Wrap the environment so that it gives one of these"
        )
