"""The RSSM's recurrent cells arranged for speed: the same functions as `rssm_layers` has."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.arranged_layers import Layer, Packing, layer_norm
from dreamgym.models.rssm_layers import BlockGRUCell, GRUCell


class Latents(NamedTuple):
    """The stochastic state, and how it may be looked up.

    Attributes:
        z: (B, size).
        places: (B, stoch) int64 positions of the ones in z; None where z is not all one-hots, or
            where products with the whole of it are wanted.
    """

    z: Tensor
    places: Tensor | None


class LatentProduct:
    """z times a matrix: for one-hots the sum of one row of it for each.

    Args:
        weight: (out, size).
        packing: of the product.
    """

    def __init__(self, weight: Tensor, packing: Packing) -> None:
        self.dense = packing.linear(weight, None)
        self.table = weight.detach().to(packing.dtype).t().contiguous()

    def __call__(self, latents: Latents) -> Tensor:
        """The product (B, out) in float32."""
        if latents.places is None:
            return self.dense(latents.z)
        # Sums are taken in float32 whatever the table is.
        return F.embedding_bag(latents.places, self.table, mode="sum").float()


class ArrangedGRU:
    """`GRUCell` for inference.

    One product gives all gates of x and h together, with the candidate doubled and its norm's, so
    that a sigmoid serves it, too (tanh x = 2 sigmoid 2x - 1).

    Args:
        cell: whose weights to take.
        packing: of the products.
    """

    def __init__(self, cell: GRUCell, packing: Packing) -> None:
        z, action = cell.enter.products
        self.enter_z = LatentProduct(z.weight, packing)  # type: ignore[arg-type]
        self.enter_action = packing.linear(action.weight, z.bias)  # type: ignore[arg-type]
        self.finish = packing.chain([cell.enter.norm, cell.enter.act])
        self.plain = cell.plain
        self.deter = deter = cell.gates_h.in_features
        x, h = cell.gates_x, cell.gates_h
        if self.plain:
            double = torch.ones(3 * deter, device=x.weight.device)
            double[2 * deter :] = 2.0
            self.gates_x = packing.linear(double.unsqueeze(1) * x.weight, double * x.bias)
            self.gates_h = packing.linear(double.unsqueeze(1) * h.weight, double * h.bias)
            return
        joint = torch.cat([x.weight, h.weight], 1)
        self.gates = packing.linear(_candidate_last(joint), _candidate_last(x.bias))
        weight = _candidate_last(cell.norm.weight).clone()  # type: ignore[arg-type]
        bias = _candidate_last(cell.norm.bias).clone()  # type: ignore[arg-type]
        bias[deter : 2 * deter] -= 1.0
        weight[2 * deter :] *= 2.0
        bias[2 * deter :] *= 2.0
        self.norm = layer_norm(weight, bias, cell.norm.eps)  # type: ignore[arg-type]

    def __call__(self, h: Tensor, latents: Latents, action: Tensor) -> Tensor:
        """One step.

        Args:
            h: (B, deter).
            latents: z (B, latent).
            action: (B, action) encoded.
        """
        x = self.finish(self.enter_z(latents).add_(self.enter_action(action)))
        both = 2 * self.deter
        if self.plain:
            from_x, from_h = self.gates_x(x), self.gates_h(h)
            shut = (from_x[:, :both] + from_h[:, :both]).sigmoid_()
            reset, update = shut.chunk(2, -1)
            candidate = torch.addcmul(from_x[:, both:], reset, from_h[:, both:])
            return torch.lerp(_tanh_of_half_(candidate), h, update)
        gates = self.norm(self.gates(torch.cat([x, h], -1)))
        reset, update = gates[:, :both].sigmoid().chunk(2, -1)
        candidate = _tanh_of_half_(gates[:, both:] * reset)
        return torch.lerp(h, candidate, update)


class ArrangedBlockGRU:
    """`BlockGRUCell` for inference: as `ArrangedGRU`, and the three inputs through one product.

    Args:
        cell: whose weights to take.
        packing: of the products.
    """

    def __init__(self, cell: BlockGRUCell, packing: Packing) -> None:
        self.enter_h = packing.chain(cell.enter_h)
        z = cell.enter_z[0]
        self.enter_z = LatentProduct(z.weight, packing)  # type: ignore[arg-type]
        self.bias_z: Tensor = z.bias.detach()  # type: ignore[operator]
        self.finish_z = packing.chain(list(cell.enter_z)[1:])
        self.enter_action = packing.chain(cell.enter_action)
        first, *others = cell.mix.products
        joint = torch.cat([first.weight, *(other.weight for other in others)], 1)  # type: ignore[list-item]
        self.mix = packing.linear(joint, first.bias)  # type: ignore[arg-type]
        self.mix_h = _block_product(cell.mix_h, None, packing)
        self.finish = packing.chain([cell.mix.norm, cell.mix.act])
        reset, candidate, update = cell.gates.chunk(3, -1)
        weight = torch.cat([reset, update, 2.0 * candidate], -1)
        reset, candidate, update = cell.gates_bias.chunk(3, -1)
        bias = torch.cat([reset, update - 1.0, 2.0 * candidate], -1)
        self.gates = _block_product(weight, bias, packing)
        self.blocks = cell.blocks

    def __call__(self, h: Tensor, latents: Latents, action: Tensor) -> Tensor:
        """One step; see `ArrangedGRU`."""
        within = action / action.abs().clamp(min=1.0)
        from_z = self.finish_z(self.enter_z(latents).add_(self.bias_z))
        inputs = torch.cat([self.enter_h(h), from_z, self.enter_action(within)], -1)
        gates = self.gates(self.finish(self.mix(inputs) + self.mix_h(h)))
        gates = gates.unflatten(-1, (self.blocks, 3, -1))
        reset, update = gates[:, :, :2].sigmoid().unbind(2)
        candidate = _tanh_of_half_(gates[:, :, 2] * reset)
        return torch.lerp(h.unflatten(-1, (self.blocks, -1)), candidate, update).flatten(1)


def _block_product(weight: Tensor, bias: Tensor | None, packing: Packing) -> Layer:
    """(B, blocks x in) to (B, blocks x out) by weight (blocks, in, out), bias (blocks, 1, out)."""
    blocks = len(weight)
    if packing.device.type == "cpu":
        biases = [None] * blocks if bias is None else list(bias.squeeze(1))
        pairs = zip(weight.transpose(1, 2), biases, strict=True)
        products = [packing.linear(matrix, own) for matrix, own in pairs]

        def one_by_one(x: Tensor) -> Tensor:
            parts = zip(products, x.chunk(blocks, -1), strict=True)
            return torch.cat([product(part) for product, part in parts], -1)

        return one_by_one
    weight = weight.detach().to(packing.dtype)
    bias = None if bias is None else bias.detach()

    def at_once(x: Tensor) -> Tensor:
        cut = x.to(packing.dtype).unflatten(-1, (blocks, -1)).transpose(0, 1)
        made = torch.bmm(cut, weight).float()
        return (made if bias is None else made + bias).transpose(0, 1).flatten(1)

    return at_once


def _candidate_last(gates: Tensor) -> Tensor:
    """Reset, candidate, update (3 deter, ...) in the order reset, update, candidate."""
    reset, candidate, update = gates.detach().chunk(3)
    return torch.cat([reset, update, candidate])


def _tanh_of_half_(x: Tensor) -> Tensor:
    """The tanh of half of x, in place: faster than tanh."""
    return x.sigmoid_().mul_(2.0).sub_(1.0)
