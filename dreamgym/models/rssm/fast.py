"""The RSSM's step arranged for speed: the same function as `RSSM.step`.

Products with one-hot latents are sums of rows of the matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature, end_outside_data, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.latents import Categoricals, Gaussians
from dreamgym.models.nn.packed import Layer, Packing
from dreamgym.models.rssm.model import RSSM
from dreamgym.models.rssm.modules import (
    BlockGRUCell,
    GRUCell,
    gru,
    limit_actions,
    reset_first_gru,
)

MIN_INDEXED_CLASSES = 8
"""With fewer classes, a product with all of z is faster than a sum of rows."""


class Latents(NamedTuple):
    """The stochastic state, and the indices of its ones.

    Attributes:
        z: (B, size).
        indices: (B, stoch) int64, where in z the ones of its categoricals are; None if z is not
            one-hot, or is multiplied as a whole.
    """

    z: Tensor
    indices: Tensor | None


class LatentProduct:
    """Product of z and a matrix: for one-hot latents, the sum of one of its rows for each.

    Args:
        weight: (out, size).
        packing: arrangement of the products.
    """

    def __init__(self, weight: Tensor, packing: Packing) -> None:
        self.dense = packing.linear(weight, None)
        self.table = weight.detach().to(packing.dtype).t().contiguous()

    def __call__(self, latents: Latents) -> Tensor:
        """Return the product (B, out) in float32."""
        if latents.indices is None:
            return self.dense(latents.z)
        # Sums are in float32, also for a bfloat16 table.
        return F.embedding_bag(latents.indices, self.table, mode="sum").float()


class FastGRU:
    """`GRUCell` for inference; normalised gates of x and h are one product.

    Args:
        cell: the cell to arrange.
        packing: arrangement of the products.
    """

    def __init__(self, cell: GRUCell, packing: Packing) -> None:
        z, action = cell.enter.products
        self.enter_z = LatentProduct(z.weight, packing)  # type: ignore[arg-type]
        self.enter_action = packing.linear(action.weight, z.bias)  # type: ignore[arg-type]
        self.finish = packing.chain([cell.enter.norm, cell.enter.act])
        self.plain = cell.plain
        x, h = cell.gates_x, cell.gates_h
        if self.plain:
            self.gates_x = packing.linear(x.weight, x.bias)
            self.gates_h = packing.linear(h.weight, h.bias)
        else:
            self.gates = packing.linear(torch.cat([x.weight, h.weight], 1), x.bias)
            self.norm = packing.chain([cell.norm])

    def __call__(self, h: Tensor, latents: Latents, action: Tensor) -> Tensor:
        """Return the next h (B, deter).

        Args:
            h: (B, deter).
            latents: z (B, latent).
            action: (B, action) encoded.
        """
        x = self.finish(self.enter_z(latents).add_(self.enter_action(action)))
        if self.plain:
            return gru(h, self.gates_x(x), self.gates_h(h))
        return reset_first_gru(h, *self.norm(self.gates(torch.cat([x, h], -1))).chunk(3, -1))


class FastBlockGRU:
    """`BlockGRUCell` for inference; its three inputs are one product.

    Args:
        cell: the cell to arrange.
        packing: arrangement of the products.
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
        self.gates = _block_product(cell.gates, cell.gates_bias, packing)
        self.blocks = cell.blocks

    def __call__(self, h: Tensor, latents: Latents, action: Tensor) -> Tensor:
        """Return the next h (B, deter); see `FastGRU`."""
        from_z = self.finish_z(self.enter_z(latents).add_(self.bias_z))
        from_action = self.enter_action(limit_actions(action))
        inputs = torch.cat([self.enter_h(h), from_z, from_action], -1)
        gates = self.gates(self.finish(self.mix(inputs) + self.mix_h(h)))
        reset, candidate, update = gates.unflatten(-1, (self.blocks, 3, -1)).unbind(2)
        blocks = h.unflatten(-1, (self.blocks, -1))
        return reset_first_gru(blocks, reset, candidate, update).flatten(1)


def _block_product(weight: Tensor, bias: Tensor | None, packing: Packing) -> Layer:
    """Return a block-diagonal layer from (B, blocks x in) to (B, blocks x out).

    Args:
        weight: (blocks, in, out).
        bias: (blocks, 1, out) or None.
        packing: arrangement of the products.
    """
    blocks = len(weight)
    if packing.device.type == "cpu":
        biases = [None] * blocks if bias is None else list(bias.squeeze(1))
        pairs = zip(weight.transpose(1, 2), biases, strict=True)
        products = [packing.linear(matrix, vector) for matrix, vector in pairs]

        def one_by_one(x: Tensor) -> Tensor:
            parts = zip(products, x.chunk(blocks, -1), strict=True)
            return torch.cat([product(part) for product, part in parts], -1)

        return one_by_one
    weight = weight.detach().to(packing.dtype)
    bias = None if bias is None else bias.detach()

    def batched(x: Tensor) -> Tensor:
        parts = x.to(packing.dtype).unflatten(-1, (blocks, -1)).transpose(0, 1)
        product = torch.bmm(parts, weight).float()
        return (product if bias is None else product + bias).transpose(0, 1).flatten(1)

    return batched


class FastHead:
    """A head on (h, z) for inference.

    Args:
        head: layers of the head, the first of them linear.
        deter: width of h.
        packing: arrangement of the products.
    """

    def __init__(self, head: nn.Sequential, deter: int, packing: Packing) -> None:
        first, *rest = head
        weight: Tensor = first.weight  # type: ignore[assignment]
        self.over_h = packing.linear(weight[:, :deter], first.bias)  # type: ignore[arg-type]
        self.over_z = LatentProduct(weight[:, deter:], packing)
        self.rest = packing.chain(rest)

    def __call__(self, h: Tensor, latents: Latents) -> Tensor:
        """Return the outputs (B, out) for h (B, deter) and z (B, latent)."""
        return self.rest(self.over_z(latents).add_(self.over_h(h)))


class FastRSSM(FastForm):
    """An RSSM for inference with a fixed number of rows; see `RSSM.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    worst_return: Tensor

    def __init__(self, model: RSSM, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        config, device = model.config, packing.device
        self.latent, self.encode_action, self.senses = (
            model.latent,
            model.encode_action,
            model.senses,
        )
        self.register_buffer("worst_return", model.worst_return)
        self.margin = config.range_margin if model.senses.sizes else None
        # On other devices indices gain nothing, and checking that z is one-hot is a host sync.
        self._indexed = device.type == "cpu" and config.classes >= MIN_INDEXED_CLASSES
        self._classes = torch.arange(config.classes, dtype=torch.float32, device=device)
        self._offsets = torch.arange(config.stoch, device=device) * config.classes
        cumulative_uniform = (self._classes + 1) / max(config.classes, 1)
        self._unimix, self._uniform = config.unimix, config.unimix * cumulative_uniform
        self._cell = (
            FastBlockGRU(model.cell, packing)
            if isinstance(model.cell, BlockGRUCell)
            else FastGRU(model.cell, packing)
        )
        self._arrange_heads(model, packing)

    def _arrange_heads(self, model: RSSM, packing: Packing) -> None:
        """Divide the first layer of each head into a product with h and one with z."""
        heads: list[nn.Sequential] = [model.reward.net, model.continuation]
        if self.margin is not None:
            heads.append(model.senses.decode_vectors)
        self._prior = packing.chain(model.prior)
        self._heads = [FastHead(head, model.config.deter, packing) for head in heads]
        self._expected_reward = model.reward.expected

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        h = self._cell(state["h"], self._find_ones(state["z"]), self.encode_action(action))
        latents = self._sample(self._prior(h), noise, temperature)
        reward_outputs, continuation, *vectors = (head(h, latents) for head in self._heads)
        reward = self._expected_reward(reward_outputs)
        termination = (-continuation.squeeze(-1)).sigmoid()
        outside = None
        if self.margin is not None:
            outside = self.senses.outside_data(vectors[0], self.margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = {"h": h, "z": latents.z}
        return following, end_outside_data(prediction, outside, self.worst_return)

    def _find_ones(self, z: Tensor) -> Latents:
        """Return a state's z with the indices of its ones, if all of it is one-hot."""
        if not (self._indexed and host_sync_allowed(z.device)):
            return Latents(z, None)
        flat = z.detach().reshape(-1)
        # For one-hots this product is the class. Anything else fails the test after it.
        classes = (flat.view(-1, len(self._classes)) @ self._classes).view(len(z), -1)
        indices = classes.long().clamp_(0, len(self._classes) - 1).add_(self._offsets)
        ones = flat.view_as(z).gather(1, indices)
        # If each of n numbers is at least 1 and the sum of all squares is n, the others are 0.
        one_hot = float(ones.min()) >= 1.0 and float(flat.dot(flat)) == indices.numel()
        return Latents(z, indices if one_hot else None)

    def _sample(self, prior: Tensor, noise: Tensor, temperature: Temperature) -> Latents:
        """Draw from the prior (B, parameters), as `Latent.sample` does."""
        if isinstance(self.latent, Gaussians):
            mean, std = self.latent.moments(prior)
            if not is_one(temperature):
                std = std * per_row(temperature, std) ** 0.5
            return Latents(torch.addcmul(mean, std, quick_normal(noise)), None)
        if not (self._indexed and isinstance(self.latent, Categoricals)):
            return Latents(self.latent.sample(prior, noise, temperature), None)
        cumulative = self._cumulative(self.latent, prior, temperature)
        uniform = noise.contiguous().unsqueeze(-1)
        classes = torch.searchsorted(cumulative, uniform, right=True).squeeze(-1)
        # Rounding can leave the last sum just below one; uniforms beyond it select the last class.
        indices = classes.clamp_(max=len(self._classes) - 1).add_(self._offsets)
        z = torch.zeros_like(prior, dtype=torch.float32).scatter_(1, indices, 1.0)
        return Latents(z, indices)

    def _cumulative(self, latent: Categoricals, prior: Tensor, temperature: Temperature) -> Tensor:
        """Return the cumulative probabilities, (B, stoch, classes)."""
        if not is_one(temperature):
            return latent.tempered(prior, temperature).cumsum(-1)
        # A draw has no gradient, and each pass over these numbers takes a hundredth of a step.
        logits = prior.detach().unflatten(-1, (-1, len(self._classes)))
        cumulative = logits.softmax(-1).cumsum_(-1)
        return torch.add(self._uniform, cumulative, alpha=1.0 - self._unimix, out=cumulative)
