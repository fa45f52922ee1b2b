"""Layers and recurrent cells of the RSSM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Temperature
from dreamgym.models.nn.codecs import VectorCodec
from dreamgym.models.nn.conv import (
    ACTIVATIONS,
    VMC_DECODER,
    VMC_ENCODER,
    ConvDecoder,
    ConvEncoder,
    ConvStack,
    Pixels,
    halvings,
    pieces,
)
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.layers import LayerNorm, Linear, RMSNorm
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.reduction import masked_mean
from dreamgym.models.rssm.config import RSSMConfig
from dreamgym.models.statistics import Moments

RMS_EPSILON, LAYER_EPSILON = 1e-4, 1e-3


TRUNCATION = 0.87962566

"""Standard deviation of a standard normal that is cut off at two."""


def norm(kind: str, width: int) -> nn.Module:
    """The norm of a layer of this width; "none" and "gates" leave it as it is."""
    if kind == "rms":
        return RMSNorm(width, eps=RMS_EPSILON)
    if kind == "layer":
        return LayerNorm(width, eps=LAYER_EPSILON)
    return nn.Identity()


def linear(inputs: int, outputs: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """A dense layer with weights of variance 1 / fan_in, normal but for their tails; biases zero.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        bias: whether there is one.
        fan_in: None is `inputs`.
    """
    layer = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        _truncated_normal(layer.weight, fan_in or inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Joined(nn.Module):
    """A layer of several inputs side by side, whose products may be taken at different times.

    What depends on the data alone is multiplied for a whole segment at once, the rest step by step.

    Args:
        inputs: widths of the inputs.
        width: of the output.
        config: norm and activation.
        fan_in: inputs that meet in one output; None is all of these.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        width: int,
        config: RSSMConfig,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        fan_in = fan_in or sum(inputs)
        # A matrix each: a slice of a common one would get a gradient of the whole one's size.
        self.products = nn.ModuleList(
            linear(size, width, bias=not index, fan_in=fan_in) for index, size in enumerate(inputs)
        )
        self.norm = norm(config.norm, width)
        self.act = ACTIVATIONS[config.activation]()

    def part(self, index: int, x: Tensor) -> Tensor:
        """The product (..., width) with one input (..., inputs[index]); the first has the bias."""
        return self.products[index](x)

    def finish(self, products: Tensor) -> Tensor:
        """The output (..., width) of the sum of all products."""
        return self.act(self.norm(products))


def mlp(inputs: int, layers: int, width: int, config: RSSMConfig) -> nn.Sequential:
    """Dense layers, each with norm and activation; with none, what comes in goes out."""
    made: list[nn.Module] = []
    for _ in range(layers):
        made += [
            linear(inputs, width),
            norm(config.norm, width),
            ACTIVATIONS[config.activation](),
        ]
        inputs = width
    return nn.Sequential(*made)


class GRUCell(nn.Module):
    """z and action through a layer into one GRU.

    Plain (PlaNet, Dreamer v1), or with its gates normalised and an update gate that begins nearly
    shut (DreamerV2, arXiv 2010.02193).

    Args:
        latent: width of z.
        action: width of the encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden = config.deter, config.hidden
        self.enter = Joined((latent, action), hidden, config)
        self.plain = config.norm == "none"
        self.gates_x = linear(hidden, 3 * deter, fan_in=hidden + deter)
        self.gates_h = linear(deter, 3 * deter, bias=self.plain, fan_in=hidden + deter)
        self.norm = norm("none" if self.plain else "layer", 3 * deter)

    def prepare_actions(self, action: Tensor) -> Tensor:
        """What an encoded action (..., action) adds to a step; for many steps at once."""
        return self.enter.part(1, action)

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """One step.

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) of `prepare_actions`.
        """
        x = self.enter.finish(self.enter.part(0, z) + prepared)
        if self.plain:
            return self._plain(self.gates_x(x), self.gates_h(h), h)
        reset, candidate, update = self.norm(self.gates_x(x) + self.gates_h(h)).chunk(3, -1)
        return _gated(h, reset, candidate, update)

    def _plain(self, from_x: Tensor, from_h: Tensor, h: Tensor) -> Tensor:
        """Cho et al. (2014), with the reset applied to the product with h, as Keras and cuDNN."""
        reset_x, update_x, candidate_x = from_x.to(h.dtype).chunk(3, -1)
        reset_h, update_h, candidate_h = from_h.to(h.dtype).chunk(3, -1)
        reset, update = (reset_x + reset_h).sigmoid(), (update_x + update_h).sigmoid()
        return torch.lerp((candidate_x + reset * candidate_h).tanh(), h, update)


class BlockGRUCell(nn.Module):
    """The block-diagonal GRU of DreamerV3: h in blocks that see each other through one layer only.

    Args:
        latent: width of z.
        action: width of the encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden, self.blocks = config.deter, config.hidden, config.blocks
        block = deter // config.blocks
        self.enter_h = mlp(deter, 1, hidden, config)
        self.enter_z = mlp(latent, 1, hidden, config)
        self.enter_action = mlp(action, 1, hidden, config)
        # The published layer gives every block its own part of h and all of the three inputs; here
        # its weights for the inputs stand apart, as one dense matrix for all blocks.
        fan_in = block + 3 * hidden
        self.mix_h = _blocks(config.blocks, block, block, fan_in)
        self.mix = Joined((hidden, hidden, hidden), deter, config, fan_in)
        self.gates = _blocks(config.blocks, block, 3 * block, block)
        self.gates_bias = nn.Parameter(torch.zeros(config.blocks, 1, 3 * block))

    def prepare_actions(self, action: Tensor) -> Tensor:
        """What an encoded action (..., action) adds to a step; for many steps at once."""
        within = action / action.detach().abs().clamp(min=1.0)
        return self.mix.part(2, self.enter_action(within))

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """One step.

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) of `prepare_actions`.
        """
        inputs = self.mix.part(0, self.enter_h(h)) + self.mix.part(1, self.enter_z(z)) + prepared
        own = torch.bmm(self._cut(h), self.mix_h)
        mixed = self.mix.finish(inputs + self._join(own))
        gates = torch.baddbmm(self.gates_bias, self._cut(mixed), self.gates)
        return self._join(_gated(self._cut(h), *gates.to(h.dtype).chunk(3, -1)))

    def _cut(self, x: Tensor) -> Tensor:
        """(B, deter) as (blocks, B, deter / blocks)."""
        return x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        """The reverse of `_cut`."""
        return x.transpose(0, 1).flatten(1)


def _gated(h: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """The GRU of DreamerV2 and V3: the reset gates the whole candidate, the update begins shut."""
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(h, candidate, torch.sigmoid(update - 1.0))


def _blocks(blocks: int, inputs: int, outputs: int, fan_in: int) -> nn.Parameter:
    """Weights (blocks, inputs, outputs) of a block-diagonal layer."""
    weight = torch.empty(blocks, inputs, outputs)
    return nn.Parameter(_truncated_normal(weight, fan_in))


def _truncated_normal(weight: Tensor, fan_in: int) -> Tensor:
    std = math.sqrt(1.0 / fan_in) / TRUNCATION
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


SMALLEST_STD = 0.1


class Latent(Protocol):
    """A family of distributions over z.

    Attributes:
        parameters: numbers that a network gives for one distribution.
        size: width of z.
    """

    parameters: int
    size: int

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Draw z (B, size), differentiably, from given (B, parameters) and noise (B, stoch)."""
        ...

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """KL divergence (...) of given (..., parameters) from other (..., parameters), in nats."""
        ...

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """The same by categorical, or by number: (..., stoch), which add up to it."""
        ...


class Categoricals:
    """One-hot categoricals with straight-through gradients (arXiv 2010.02193, section 2.1).

    Args:
        count: of the categoricals.
        classes: of each.
        unimix: share of the uniform distribution in each (arXiv 2301.04104).
    """

    def __init__(self, count: int, classes: int, unimix: float) -> None:
        self.shape, self.unimix = (count, classes), unimix
        self.parameters = self.size = count * classes

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the logits are divided by the temperature."""
        chances = self.chances(given)
        if isinstance(temperature, Tensor) or temperature != 1.0:
            log = self.log_chances(given)
            chances = (log / per_row(temperature, log)).softmax(-1)
        beyond = noise.unsqueeze(-1) >= chances.detach().cumsum(-1)[..., :-1]
        # True up to the chosen class and false from there on: its end is one-hot.
        steps = F.pad(beyond.to(chances.dtype), (1, 0), value=1.0)
        one_hot = steps - F.pad(steps[..., 1:], (0, 1))
        return (one_hot + (chances - chances.detach())).flatten(-2)

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(given, other).sum(-1)

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        log = self.log_chances(given)
        return (log.exp() * (log - self.log_chances(other))).sum(-1)

    def chances(self, given: Tensor) -> Tensor:
        """Probabilities, (..., count, classes)."""
        plain = _full(given).unflatten(-1, self.shape).softmax(-1)
        return plain * (1.0 - self.unimix) + self.unimix / self.shape[-1] if self.unimix else plain

    def log_chances(self, given: Tensor) -> Tensor:
        """Their logarithms, (..., count, classes)."""
        if self.unimix:
            return self.chances(given).log()
        return _full(given).unflatten(-1, self.shape).log_softmax(-1)


class Gaussians:
    """Independent normal distributions (arXiv 1811.04551).

    Args:
        count: of the numbers in z.
    """

    def __init__(self, count: int) -> None:
        self.parameters, self.size = 2 * count, count

    def sample(self, given: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the root of the temperature widens the spread."""
        mean, std = self.moments(given)
        return mean + std * per_row(temperature, std) ** 0.5 * normal(noise)

    def kl(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(given, other).sum(-1)

    def divergences(self, given: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        mean, std = self.moments(given)
        other_mean, other_std = self.moments(other)
        ratio, off = std / other_std, (mean - other_mean) / other_std
        return 0.5 * (ratio.square() + off.square() - 1.0) - ratio.log()

    def moments(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (..., count) each."""
        mean, raw = _full(given).chunk(2, -1)
        return mean, F.softplus(raw) + SMALLEST_STD


def latent(config: RSSMConfig) -> Latent:
    """The latent that a config asks for."""
    if config.classes:
        return Categoricals(config.stoch, config.classes, config.unimix)
    return Gaussians(config.stoch)


def free(divergence: Tensor, mask: Tensor, nats: float, of: str) -> Tensor:
    """The mean divergence of unmasked steps, of which some nats are free.

    Args:
        divergence: (B, L).
        mask: (B, L) bool.
        nats: below this there is nothing to gain.
        of: "step" for each step's own, "batch" for their mean.
    """
    if of == "batch":
        return masked_mean(divergence, mask).clamp(min=nats)
    return masked_mean(divergence.clamp(min=nats), mask)


def _full(given: Tensor) -> Tensor:
    """At least float32: in less, a distribution's tails are lost."""
    return given.to(torch.promote_types(given.dtype, torch.float32))


GREY = 0.5

"""What a network sees as zero in an image whose full range is one."""


class ObservationCodec(nn.Module):
    """Encoder and decoder of observations: one for all vectors, and one for each image.

    Args:
        space: a Box or a Dict of them.
        features: width of what is decoded.
        config: sizes and units.

    Attributes:
        dim: width of an encoded observation.
    """

    def __init__(self, space: gym.Space, features: int, config: RSSMConfig) -> None:
        super().__init__()
        boxes = observation_boxes(space)
        self.config, self.keys = config, list(boxes)
        units = config.objective.vectors
        self.vector_keys = [key for key, box in boxes.items() if not is_image(box)]
        self.vectors = [VectorCodec(boxes[key], units) for key in self.vector_keys]
        self.image_keys = [key for key, box in boxes.items() if is_image(box)]
        side = config.objective.image_size
        self.pixels = [Pixels(boxes[key], (side, side)) for key in self.image_keys]
        # Lists by place, for a key of a Dict may hold what the name of a module may not.
        self.codecs = nn.ModuleList([*self.vectors, *self.pixels])
        self.sizes = [codec.size for codec in self.vectors]
        self.dim, size = 0, sum(self.sizes)
        if size:
            self.encode_vectors = mlp(size, config.layers, config.units, config)
            trunk = mlp(features, config.layers, config.units, config)
            self.decode_vectors = nn.Sequential(*trunk, linear(config.units, size))
            self.dim += config.units
        self._add_images(features, config)

    def _add_images(self, features: int, config: RSSMConfig) -> None:
        encoders, decoders = [], []
        for pixels in self.pixels:
            down, up = image_stacks(config)
            encoders.append(ConvEncoder(pixels.channels, pixels.size, down))
            decoders.append(ConvDecoder(features, pixels.channels, pixels.size, up))
            self.dim += encoders[-1].dim
        self.encode_images = nn.ModuleList(encoders)
        self.decode_images = nn.ModuleList(decoders)

    def set_moments(self, moments: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments keep theirs."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in moments:
                codec.set_moments(moments[key])

    def targets(self, observation: Observation) -> list[Tensor]:
        """What the network sees and predicts: all vectors in one (..., n), then each image."""
        made = []
        if self.sizes:
            pairs = zip(self.vector_keys, self.vectors, strict=True)
            made.append(
                torch.cat([codec.encode(get_part(observation, k)) for k, codec in pairs], -1)
            )
        images = zip(self.image_keys, self.pixels, strict=True)
        return made + [pixels.to_float(get_part(observation, key)) - GREY for key, pixels in images]

    def encode(self, targets: list[Tensor]) -> Tensor:
        """(..., dim) of what `targets` gave."""
        encoders = [self.encode_vectors] if self.sizes else []
        encoded = zip([*encoders, *self.encode_images], targets, strict=True)
        return torch.cat([encoder(target) for encoder, target in encoded], -1)

    def predict(self, features: Tensor) -> list[Tensor]:
        """What `targets` would give, from features (..., features)."""
        made = [self.decode_vectors(features)] if self.sizes else []
        return made + [self._picture(decoder, features) for decoder in self.decode_images]

    def _picture(self, decoder: nn.Module, features: Tensor) -> Tensor:
        """An image (..., channels, height, width) of features (..., features)."""
        image: Tensor = decoder(features)
        # DreamerV3 keeps images within their range, the models before it do not.
        return image.sigmoid() - GREY if self.config.blocks else image

    def error(self, features: Tensor, targets: list[Tensor]) -> Tensor:
        """Weighted sum of squared errors (B, L) of predictions from features (B, L, ...)."""
        objective, lead = self.config.objective, features.shape[:2]
        total = torch.zeros(lead, device=features.device)
        if self.sizes:
            error = (self.decode_vectors(features) - targets[0]).square().sum(-1)
            total = total + objective.vector * error
        flat = features.flatten(0, 1)
        for decoder, wanted in zip(self.decode_images, targets[bool(self.sizes) :], strict=True):
            # Piece by piece up to the sum: what a decoder says of all images is never there.
            pixels = wanted.shape[-2:].numel()
            pairs = zip(pieces(flat, pixels), pieces(wanted.flatten(0, 1), pixels), strict=True)
            errors = [
                (self._picture(decoder, some) - truth).square().flatten(1).sum(-1)
                for some, truth in pairs
            ]
            total = total + objective.image * torch.cat(errors).unflatten(0, lead)
        return total

    def decode(self, features: Tensor) -> Observation:
        """The observation (B, ...) in the real environment's units, dtype and bounds."""
        predicted, made = self.predict(features), {}
        if self.sizes:
            flat = predicted.pop(0).split(self.sizes, -1)
            for key, codec, values in zip(self.vector_keys, self.vectors, flat, strict=True):
                made[key] = codec.to_space(codec.decode(values))
        for key, pixels, values in zip(self.image_keys, self.pixels, predicted, strict=True):
            made[key] = pixels.to_bytes(values + GREY)
        return join_parts({key: made[key] for key in self.keys})

    def unknown(self, features: Tensor, margin: float) -> Tensor:
        """Where (B,) the vectors that features (B, ...) stand for leave the data's range."""
        return self.outside(self.decode_vectors(features), margin)

    def outside(self, vectors: Tensor, margin: float) -> Tensor:
        """Where (B,) vectors (B, n), as `decode_vectors` gives them, leave the data's range."""
        flat = vectors.split(self.sizes, -1)
        pairs = zip(self.vectors, flat, strict=True)
        outside = [codec.outside_data(codec.decode(values), margin) for codec, values in pairs]
        return torch.stack(outside).any(0)


def image_stacks(config: RSSMConfig) -> tuple[ConvStack, ConvStack]:
    """The convolutions that a config asks for on its images, and those back.

    Without blocks they are those of V-M-C, as PlaNet and Dreamer have them; with blocks those of
    DreamerV3 (kernel 5, the channels times 2, 3, 4 and 4, down to 4 by 4, every layer normalised).
    """
    depth = config.image_depth
    if not config.blocks:
        # Dreamer v1 has relu in its convolutions and elu elsewhere.
        act = "relu" if config.norm == "none" else config.activation
        width = depth / VMC_ENCODER.depths[0]
        down, up = (replace(stack, activation=act) for stack in (VMC_ENCODER, VMC_DECODER))
        return down.scaled(width), up.scaled(width)
    count = halvings(config.objective.image_size, 4)
    depths = tuple(depth * min(times, 4) for times in range(2, 2 + count))
    down = ConvStack(
        depths=depths,
        kernels=(5,) * count,
        padding="same",
        activation=config.activation,
        norm="rms" if config.norm == "rms" else "layer",
    )
    return down, replace(down, depths=depths[::-1])
