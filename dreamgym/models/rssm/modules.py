"""Modules of the RSSM: heads, recurrent cells, and the parts that its config chooses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dreamgym.models.nn.conv import (
    ACTIVATIONS,
    VMC_DECODER,
    VMC_ENCODER,
    ConvStack,
    halvings,
)
from dreamgym.models.nn.dense import dense_layers, linear, norm, truncated_normal
from dreamgym.models.nn.latents import Categoricals, Gaussians, Latent
from dreamgym.models.nn.observation_codec import CodecConfig
from dreamgym.models.rssm.config import RSSMConfig

# ---------------------------------------------------------------- layers


def head(inputs: int, outputs: int, config: RSSMConfig) -> nn.Sequential:
    """Return the layers of a prediction head."""
    hidden = dense_layers(inputs, config.head_layers, config.units, config)
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
        self.enter_h = dense_layers(deter, 1, hidden, config)
        self.enter_z = dense_layers(latent, 1, hidden, config)
        self.enter_action = dense_layers(action, 1, hidden, config)
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
    return nn.Parameter(truncated_normal(weight, fan_in))


# ---------------------------------------------------------------- what the config chooses


def make_latent(config: RSSMConfig) -> Latent:
    """Return the latent distribution of a config."""
    if config.classes:
        return Categoricals(config.stoch, config.classes, config.unimix)
    return Gaussians(config.stoch)


def codec_config(config: RSSMConfig) -> CodecConfig:
    """Return the config of the observation codec."""
    objective = config.objective
    down, up = image_stacks(config)
    return CodecConfig(
        vector_units=objective.vectors,
        layers=config.layers,
        width=config.units,
        norm=config.norm,
        activation=config.activation,
        image_size=objective.image_size,
        down=down,
        up=up,
        # DreamerV3 limits images to their range; the models before it do not.
        bounded_images=bool(config.blocks),
        vector=objective.vector,
        image=objective.image,
    )


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
