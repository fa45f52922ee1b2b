"""Modules of the RSSM: layers, recurrent cells, latent distributions and the observation codec."""

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
from dreamgym.models.nn.distributions import is_one, normal, per_row
from dreamgym.models.nn.layers import LayerNorm, Linear, RMSNorm, at_least_float32
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.reduction import masked_mean
from dreamgym.models.rssm.config import FreeNatsOf, RSSMConfig
from dreamgym.models.statistics import Moments

RMS_EPSILON, LAYER_EPSILON = 1e-4, 1e-3

TRUNCATED_STD = 0.87962566
"""Standard deviation of a standard normal distribution truncated at two."""

MIN_STD = 0.1
"""Smallest standard deviation of a Gaussian latent."""

MID_GREY = 0.5
"""Pixel value, in [0, 1], that networks see as zero."""

# ---------------------------------------------------------------- layers


def norm(kind: str, width: int) -> nn.Module:
    """Return the norm of a layer; "none" and "gates" (the GRU's gates only) give the identity."""
    if kind == "rms":
        return RMSNorm(width, eps=RMS_EPSILON)
    if kind == "layer":
        return LayerNorm(width, eps=LAYER_EPSILON)
    return nn.Identity()


def linear(inputs: int, outputs: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """Return a dense layer with truncated normal weights of variance 1 / fan_in, and zero biases.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        bias: whether the layer has a bias.
        fan_in: `inputs` by default.
    """
    layer = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        _truncated_normal(layer.weight, fan_in or inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, layers: int, width: int, config: RSSMConfig) -> nn.Sequential:
    """Return dense layers with norm and activation each; without layers, the identity."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [
            linear(inputs, width),
            norm(config.norm, width),
            ACTIVATIONS[config.activation](),
        ]
        inputs = width
    return nn.Sequential(*modules)


def head(inputs: int, outputs: int, config: RSSMConfig) -> nn.Sequential:
    """Return the layers of a prediction head."""
    hidden = mlp(inputs, config.head_layers, config.units, config)
    return nn.Sequential(*hidden, linear(config.units if config.head_layers else inputs, outputs))


class MultiInputLayer(nn.Module):
    """A dense layer of several inputs, whose products may be computed at different times.

    The products with inputs that depend on the data only are computed for a whole segment at once,
    the others step by step.

    Args:
        inputs: widths of the inputs.
        width: width of the output.
        config: norm and activation.
        fan_in: inputs of one output; all by default.
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
        # One matrix each: the gradient of a slice of a joint matrix has the size of the whole.
        self.products = nn.ModuleList(
            linear(size, width, bias=not index, fan_in=fan_in) for index, size in enumerate(inputs)
        )
        self.norm = norm(config.norm, width)
        self.act = ACTIVATIONS[config.activation]()

    def product(self, index: int, x: Tensor) -> Tensor:
        """Return the product (..., width) with x (..., inputs[index]); the first adds the bias."""
        return self.products[index](x)

    def finish(self, products: Tensor) -> Tensor:
        """Return the output (..., width) for the sum of all products (..., width)."""
        return self.act(self.norm(products))


def _truncated_normal(weight: Tensor, fan_in: int) -> Tensor:
    std = math.sqrt(1.0 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


# ---------------------------------------------------------------- recurrent cells


class GRUCell(nn.Module):
    """A dense layer on z and action, and a GRU after it.

    The GRU is the ordinary one (PlaNet, Dreamer v1), or one whose gates are normalised and whose
    update gate starts nearly closed (DreamerV2, arXiv 2010.02193).

    Args:
        latent: width of z.
        action: width of the encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden = config.deter, config.hidden
        self.enter = MultiInputLayer((latent, action), hidden, config)
        self.plain = config.norm == "none"
        self.gates_x = linear(hidden, 3 * deter, fan_in=hidden + deter)
        self.gates_h = linear(deter, 3 * deter, bias=self.plain, fan_in=hidden + deter)
        self.norm = norm("none" if self.plain else "layer", 3 * deter)

    def prepare_actions(self, action: Tensor) -> Tensor:
        """Return what encoded actions (..., action) add to steps; for many steps at once."""
        return self.enter.product(1, action)

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """Return the next h (B, deter).

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) outputs of `prepare_actions`.
        """
        x = self.enter.finish(self.enter.product(0, z) + prepared)
        if self.plain:
            return gru(h, self.gates_x(x), self.gates_h(h))
        return reset_first_gru(h, *self.norm(self.gates_x(x) + self.gates_h(h)).chunk(3, -1))


class BlockGRUCell(nn.Module):
    """The block-diagonal GRU of DreamerV3: blocks of h interact in one layer only.

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
        # The published layer gives every block its own part of h and all three inputs. Here its
        # weights for the inputs are separate: one dense matrix per input for all blocks.
        fan_in = block + 3 * hidden
        self.mix_h = _block_weights(config.blocks, block, block, fan_in)
        self.mix = MultiInputLayer((hidden, hidden, hidden), deter, config, fan_in)
        self.gates = _block_weights(config.blocks, block, 3 * block, block)
        self.gates_bias = nn.Parameter(torch.zeros(config.blocks, 1, 3 * block))

    def prepare_actions(self, action: Tensor) -> Tensor:
        """Return what encoded actions (..., action) add to steps; for many steps at once."""
        return self.mix.product(2, self.enter_action(limit_actions(action)))

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """Return the next h (B, deter).

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) outputs of `prepare_actions`.
        """
        from_h = self.mix.product(0, self.enter_h(h))
        inputs = from_h + self.mix.product(1, self.enter_z(z)) + prepared
        within_blocks = torch.bmm(self._to_blocks(h), self.mix_h)
        mixed = self.mix.finish(inputs + self._from_blocks(within_blocks))
        gates = torch.baddbmm(self.gates_bias, self._to_blocks(mixed), self.gates)
        reset, candidate, update = gates.to(h.dtype).chunk(3, -1)
        return self._from_blocks(reset_first_gru(self._to_blocks(h), reset, candidate, update))

    def _to_blocks(self, x: Tensor) -> Tensor:
        """Reshape (B, deter) to (blocks, B, deter / blocks)."""
        return x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)

    def _from_blocks(self, x: Tensor) -> Tensor:
        """Reshape (blocks, B, deter / blocks) to (B, deter)."""
        return x.transpose(0, 1).flatten(1)


def limit_actions(action: Tensor) -> Tensor:
    """Scale numbers outside [-1, 1] back to plus or minus one, as DreamerV3 does."""
    return action / action.detach().abs().clamp(min=1.0)


def gru(h: Tensor, gates_x: Tensor, gates_h: Tensor) -> Tensor:
    """Return the next h of an ordinary GRU (Cho et al. 2014).

    The reset gate is applied to the product with h, as in Keras and cuDNN.

    Args:
        h: (B, deter).
        gates_x: (B, 3 deter) products with the input: reset, update, candidate.
        gates_h: (B, 3 deter) products with h, likewise.
    """
    reset_x, update_x, candidate_x = gates_x.to(h.dtype).chunk(3, -1)
    reset_h, update_h, candidate_h = gates_h.to(h.dtype).chunk(3, -1)
    reset, update = (reset_x + reset_h).sigmoid(), (update_x + update_h).sigmoid()
    return torch.lerp((candidate_x + reset * candidate_h).tanh(), h, update)


def reset_first_gru(h: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """Return the next h of the GRU of DreamerV2 and V3, from gates before their activations.

    The reset gate is applied to the whole candidate, and the update gate starts nearly closed. All
    tensors have the same shape.
    """
    candidate = (torch.sigmoid(reset) * candidate).tanh_()
    return torch.lerp(h, candidate, (update - 1.0).sigmoid_())


def _block_weights(blocks: int, inputs: int, outputs: int, fan_in: int) -> nn.Parameter:
    """Return weights (blocks, inputs, outputs) of a block-diagonal layer."""
    weight = torch.empty(blocks, inputs, outputs)
    return nn.Parameter(_truncated_normal(weight, fan_in))


# ---------------------------------------------------------------- latent distributions


class Latent(Protocol):
    """A family of distributions over z.

    Attributes:
        parameters: number of parameters of one distribution.
        size: width of z.
    """

    parameters: int
    size: int

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """Draw z (B, size), differentiably.

        Args:
            parameters: (B, parameters).
            noise: (B, stoch) uniforms.
            temperature: a number or (B,).
        """
        ...

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the KL divergence (...) from `other`, in nats; both are (..., parameters)."""
        ...

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the terms (..., stoch) of `kl`, one for each categorical or dimension."""
        ...


class Categoricals:
    """One-hot categoricals with straight-through gradients (arXiv 2010.02193, section 2.1).

    Args:
        count: number of categoricals.
        classes: classes of each.
        unimix: share of the uniform distribution in each (arXiv 2301.04104).
    """

    def __init__(self, count: int, classes: int, unimix: float) -> None:
        self.shape, self.unimix = (count, classes), unimix
        self.parameters = self.size = count * classes

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the logits are divided by the temperature."""
        probabilities = self.tempered(parameters, temperature)
        beyond = noise.unsqueeze(-1) >= probabilities.detach().cumsum(-1)[..., :-1]
        # One up to the chosen class and zero after it; the difference to the next is one-hot.
        steps = F.pad(beyond.to(probabilities.dtype), (1, 0), value=1.0)
        one_hot = steps - F.pad(steps[..., 1:], (0, 1))
        return (one_hot + (probabilities - probabilities.detach())).flatten(-2)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(parameters, other).sum(-1)

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        log = self.log_probabilities(parameters)
        return (log.exp() * (log - self.log_probabilities(other))).sum(-1)

    def tempered(self, parameters: Tensor, temperature: Temperature) -> Tensor:
        """Return the probabilities (..., count, classes) at a temperature."""
        if is_one(temperature):
            return self.probabilities(parameters)
        log = self.log_probabilities(parameters)
        return (log / per_row(temperature, log)).softmax(-1)

    def probabilities(self, parameters: Tensor) -> Tensor:
        """Return the probabilities, (..., count, classes)."""
        softmax = at_least_float32(parameters).unflatten(-1, self.shape).softmax(-1)
        if not self.unimix:
            return softmax
        return softmax * (1.0 - self.unimix) + self.unimix / self.shape[-1]

    def log_probabilities(self, parameters: Tensor) -> Tensor:
        """Return the log probabilities, (..., count, classes)."""
        if self.unimix:
            return self.probabilities(parameters).log()
        return at_least_float32(parameters).unflatten(-1, self.shape).log_softmax(-1)


class Gaussians:
    """Independent normal distributions (arXiv 1811.04551).

    Args:
        count: number of dimensions of z.
    """

    def __init__(self, count: int) -> None:
        self.parameters, self.size = 2 * count, count

    def sample(self, parameters: Tensor, noise: Tensor, temperature: Temperature = 1.0) -> Tensor:
        """See `Latent.sample`; the variance is multiplied by the temperature."""
        mean, std = self.moments(parameters)
        return mean + std * per_row(temperature, std) ** 0.5 * normal(noise)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.kl`."""
        return self.divergences(parameters, other).sum(-1)

    def divergences(self, parameters: Tensor, other: Tensor) -> Tensor:
        """See `Latent.divergences`."""
        mean, std = self.moments(parameters)
        other_mean, other_std = self.moments(other)
        ratio, difference = std / other_std, (mean - other_mean) / other_std
        return 0.5 * (ratio.square() + difference.square() - 1.0) - ratio.log()

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (..., count) each."""
        mean, raw = at_least_float32(parameters).chunk(2, -1)
        return mean, F.softplus(raw) + MIN_STD


def make_latent(config: RSSMConfig) -> Latent:
    """Return the latent distribution of a config."""
    if config.classes:
        return Categoricals(config.stoch, config.classes, config.unimix)
    return Gaussians(config.stoch)


def kl_loss(divergence: Tensor, mask: Tensor, free_nats: float, free_nats_of: FreeNatsOf) -> Tensor:
    """Return the mean divergence of unmasked steps, with free nats.

    Args:
        divergence: (B, L).
        mask: (B, L) bool.
        free_nats: value below which the loss is constant.
        free_nats_of: "step" to apply them to each step, "batch" to the mean over steps.
    """
    if free_nats_of == "batch":
        return masked_mean(divergence, mask).clamp(min=free_nats)
    return masked_mean(divergence.clamp(min=free_nats), mask)


# ---------------------------------------------------------------- observations


class ObservationCodec(nn.Module):
    """Encoder and decoder of observations: one for all vectors, and one for each image.

    Args:
        space: a Box or a Dict of Boxes.
        features: width of the input of the decoders.
        config: sizes and units.

    Attributes:
        dim: width of an encoded observation.
        sizes: widths of the vectors.
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
        # Lists by index: a key of a Dict may not be a valid module name.
        self.codecs = nn.ModuleList([*self.vectors, *self.pixels])
        self.sizes = [codec.size for codec in self.vectors]
        self.dim, size = 0, sum(self.sizes)
        if size:
            self.encode_vectors = mlp(size, config.layers, config.units, config)
            trunk = mlp(features, config.layers, config.units, config)
            self.decode_vectors = nn.Sequential(*trunk, linear(config.units, size))
            self.dim += config.units
        encoders, decoders = [], []
        for pixels in self.pixels:
            down, up = image_stacks(config)
            encoders.append(ConvEncoder(pixels.channels, pixels.size, down))
            decoders.append(ConvDecoder(features, pixels.channels, pixels.size, up))
            self.dim += encoders[-1].dim
        self.encode_images = nn.ModuleList(encoders)
        self.decode_images = nn.ModuleList(decoders)

    def set_moments(self, moments: Mapping[str, Moments]) -> None:
        """Fit the normalisers of the vectors; parts without moments are left as they are."""
        for key, codec in zip(self.vector_keys, self.vectors, strict=True):
            if key in moments:
                codec.set_moments(moments[key])

    def targets(self, observation: Observation) -> list[Tensor]:
        """Return what networks see and predict: all vectors as one (..., n), then each image."""
        targets = []
        if self.sizes:
            pairs = zip(self.vector_keys, self.vectors, strict=True)
            encoded = [codec.encode(get_part(observation, key)) for key, codec in pairs]
            targets.append(torch.cat(encoded, -1))
        for key, pixels in zip(self.image_keys, self.pixels, strict=True):
            targets.append(pixels.to_float(get_part(observation, key)) - MID_GREY)
        return targets

    def encode(self, targets: list[Tensor]) -> Tensor:
        """Return the encoding (..., dim) of the outputs of `targets`."""
        encoders = [self.encode_vectors] if self.sizes else []
        pairs = zip([*encoders, *self.encode_images], targets, strict=True)
        return torch.cat([encoder(target) for encoder, target in pairs], -1)

    def predict(self, features: Tensor) -> list[Tensor]:
        """Return predictions of the outputs of `targets`, from features (..., features)."""
        vectors = [self.decode_vectors(features)] if self.sizes else []
        return vectors + [self._decode_image(decoder, features) for decoder in self.decode_images]

    def _decode_image(self, decoder: nn.Module, features: Tensor) -> Tensor:
        """Return an image (..., channels, height, width) for features (..., features)."""
        image: Tensor = decoder(features)
        # DreamerV3 limits images to their range; the models before it do not.
        return image.sigmoid() - MID_GREY if self.config.blocks else image

    def error(self, features: Tensor, targets: list[Tensor]) -> Tensor:
        """Return the weighted sum of squared errors (B, L) for features (B, L, ...)."""
        objective, lead = self.config.objective, features.shape[:2]
        total = torch.zeros(lead, device=features.device)
        if self.sizes:
            error = (self.decode_vectors(features) - targets[0]).square().sum(-1)
            total = total + objective.vector * error
        flat = features.flatten(0, 1)
        images = targets[bool(self.sizes) :]
        for decoder, target in zip(self.decode_images, images, strict=True):
            # Summed piece by piece, so that the decoded images are never in memory all at once.
            pixels = target.shape[-2:].numel()
            pairs = zip(pieces(flat, pixels), pieces(target.flatten(0, 1), pixels), strict=True)
            errors = [
                (self._decode_image(decoder, some) - truth).square().flatten(1).sum(-1)
                for some, truth in pairs
            ]
            total = total + objective.image * torch.cat(errors).unflatten(0, lead)
        return total

    def decode(self, features: Tensor) -> Observation:
        """Return the observation (B, ...) in the space's units, dtypes and bounds."""
        predicted, parts = self.predict(features), {}
        if self.sizes:
            vectors = predicted.pop(0).split(self.sizes, -1)
            for key, codec, values in zip(self.vector_keys, self.vectors, vectors, strict=True):
                parts[key] = codec.to_space(codec.decode(values))
        for key, pixels, values in zip(self.image_keys, self.pixels, predicted, strict=True):
            parts[key] = pixels.to_bytes(values + MID_GREY)
        return join_parts({key: parts[key] for key in self.keys})

    def outside_data(self, vectors: Tensor, margin: float) -> Tensor:
        """Return where (B,) outputs (B, n) of `decode_vectors` leave the data's range.

        Args:
            vectors: (B, n).
            margin: widening of the range on each side, as a share of it.
        """
        parts = zip(self.vectors, vectors.split(self.sizes, -1), strict=True)
        outside = [codec.outside_data(codec.decode(values), margin) for codec, values in parts]
        return torch.stack(outside).any(0)


def image_stacks(config: RSSMConfig) -> tuple[ConvStack, ConvStack]:
    """Return the convolutions of the image encoder and of the image decoder.

    Without blocks they are those of V-M-C, as in PlaNet and Dreamer; with blocks those of DreamerV3
    (kernel 5, channels times 2, 3, 4 and 4, down to 4 by 4, every layer normalised).
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
