"""The RSSM's recurrent cells arranged for speed: the same functions as `rssm_layers` has."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.packed import Layer, Packing, layer_norm, model_device
from dreamgym.models.rssm.model import RSSM
from dreamgym.models.rssm.modules import BlockGRUCell, Categoricals, Gaussians, GRUCell


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


class FastGRU:
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


class FastBlockGRU:
    """`BlockGRUCell` for inference: as `FastGRU`, and the three inputs through one product.

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
        """One step; see `FastGRU`."""
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


FEWEST_CLASSES = 8

"""With fewer, a product with all of z is faster than a sum of rows."""


class FastRSSM(RSSM):
    """An RSSM for inference with a fixed number of rows; see `RSSM.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        packing: rows of every step, and the products' dtype and device.
    """

    def __init__(self, model: RSSM, num_envs: int, dtype: torch.dtype) -> None:
        packing = Packing(num_envs, dtype, model_device(model))
        super(RSSM, self).__init__(model.observation_space, model.action_space, model.config)
        for name in ("latent", "feature_dim", "noise_dim"):
            setattr(self, name, getattr(model, name))
        for name, part in model.named_children():
            setattr(self, name, part)
        self.register_buffer("worst_return", model.worst_return)
        config, device = model.config, packing.device
        # On other devices a search by index is no gain, and asking about z would stop the device.
        self._indexed = device.type == "cpu" and config.classes >= FEWEST_CLASSES
        self._classes = torch.arange(config.classes, dtype=torch.float32, device=device)
        self._places = torch.arange(config.stoch, device=device) * config.classes
        chances = torch.arange(1, config.classes + 1, device=device) / max(config.classes, 1)
        self._uniform = config.unimix * chances
        if config.blocks:
            self._cell = FastBlockGRU(model.cell, packing)  # type: ignore[arg-type]
        else:
            self._cell = FastGRU(model.cell, packing)  # type: ignore[arg-type, assignment]
        self._arrange_heads(model, packing)
        self.eval()

    def _arrange_heads(self, model: RSSM, packing: Packing) -> None:
        heads: list[nn.Sequential] = [model.reward.net, model.continuation]
        self._watched = model.config.range_margin is not None and bool(model.senses.sizes)
        if self._watched:
            heads.append(model.senses.decode_vectors)
        deter = model.config.deter
        firsts: list[nn.Linear] = [head[0] for head in heads]  # type: ignore[misc]
        self._prior_width = model.prior[0].out_features
        self._widths = [first.out_features for first in firsts]
        over_h = [model.prior[0].weight, *(first.weight[:, :deter] for first in firsts)]
        bias = torch.cat([model.prior[0].bias, *(first.bias for first in firsts)])  # type: ignore[list-item]
        self._over_h = packing.linear(torch.cat(over_h), bias)  # type: ignore[arg-type]
        over_z = torch.cat([first.weight[:, deter:] for first in firsts])
        self._over_z = LatentProduct(over_z, packing)
        self._rest_of_prior = packing.chain(list(model.prior)[1:])
        self._rest_of_heads = [packing.chain(list(head)[1:]) for head in heads]

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        return self._moved(state["h"], self._read(state["z"]), action, noise, temperature)

    def _moved(
        self,
        h: Tensor,
        before: Latents,
        action: Tensor,
        noise: Tensor,
        temperature: Temperature,
    ) -> tuple[State, Prediction]:
        """The step from h (B, deter) and latents."""
        h = self._cell(h, before, self.encode_action(action))
        over_h = self._over_h(h)
        given = self._rest_of_prior(over_h[:, : self._prior_width])
        latents = self._draw(given, noise, temperature)
        firsts = self._over_z(latents).add_(over_h[:, self._prior_width :])
        pairs = zip(self._rest_of_heads, firsts.split(self._widths, -1), strict=True)
        rewarded, goes_on, *seen = (rest(first) for rest, first in pairs)
        reward = self.reward.expected(rewarded)
        termination = (-goes_on.squeeze(-1)).sigmoid()
        if self._watched:
            unknown = self.senses.outside(seen[0], self.config.range_margin)  # type: ignore[arg-type]
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        after = {"h": h, "z": latents.z}
        return after, Prediction(reward, termination, torch.zeros_like(reward))

    def _read(self, z: Tensor) -> Latents:
        """A state's z with the places of its ones, if it is one-hot all through."""
        if not (self._indexed and host_sync_allowed(z.device)):
            return Latents(z, None)
        flat = z.detach().reshape(-1)
        # Of one-hots this product is the class, and no others pass what is asked below.
        classes = (flat.view(-1, len(self._classes)) @ self._classes).view(len(z), -1)
        index = classes.long().clamp_(0, len(self._classes) - 1).add_(self._places)
        ones = flat.view_as(z).gather(1, index)
        one_hot = bool((ones == 1.0).all()) and float(flat.dot(flat)) == index.numel()
        return Latents(z, index if one_hot else None)

    def _draw(self, given: Tensor, noise: Tensor, temperature: Temperature) -> Latents:
        """A sample of the prior (B, parameters)."""
        if isinstance(self.latent, Gaussians):
            return Latents(_gaussian(self.latent, given, noise, temperature), None)
        if not self._indexed:
            return Latents(self.latent.sample(given, noise, temperature), None)
        sums = self._running_sums(given, temperature)
        found = torch.searchsorted(sums, noise.contiguous().unsqueeze(-1), right=True).squeeze(-1)
        # Rounding can leave the last sum just under one: what lies beyond it is the last class.
        index = found.clamp_(max=len(self._classes) - 1).add_(self._places)
        z = torch.zeros_like(given, dtype=torch.float32).scatter_(1, index, 1.0)
        return Latents(z, index)

    def _running_sums(self, given: Tensor, temperature: Temperature) -> Tensor:
        """Cumulative chances, (B, stoch, classes)."""
        share = 1.0 - self.config.unimix
        if is_one(temperature):
            chances = given.unflatten(-1, (-1, len(self._classes))).softmax(-1)
            return chances.cumsum(-1).mul_(share).add_(self._uniform)
        latent = self.latent
        if not isinstance(latent, Categoricals):
            raise TypeError(f"{type(latent).__name__} has no classes")
        log = latent.log_chances(given)
        return (log / per_row(temperature, log)).softmax(-1).cumsum(-1)


def _gaussian(latent: Gaussians, given: Tensor, noise: Tensor, temperature: Temperature) -> Tensor:
    """`Gaussians.sample`, with a faster inverse of the normal distribution function."""
    mean, std = latent.moments(given)
    if not is_one(temperature):
        std = std * per_row(temperature, std) ** 0.5
    return torch.addcmul(mean, std, quick_normal(noise))
