"""The RSSM's step arranged for speed: the same function as `RSSM.step`.

What is done otherwise: z is multiplied by the places of its ones, not by all of its zeros; the
first layers of prior, heads and decoder share one product with h, and those of heads and decoder
one with z; gates as in `rssm_arranged_cells`; and a class is found by search in running sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dreamgym.models.arranged_layers import Packing
from dreamgym.models.asking import may_ask
from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.compiled_parts import Compiler
from dreamgym.models.rssm import RSSM
from dreamgym.models.rssm_arranged_cells import (
    ArrangedBlockGRU,
    ArrangedGRU,
    LatentProduct,
    Latents,
)
from dreamgym.models.rssm_latents import Categoricals, Gaussians
from dreamgym.models.sampling import is_one, per_row, quick_normal

FEWEST_CLASSES = 8
"""With fewer, a product with all of z is faster than a sum of rows."""


class ArrangedRSSM(RSSM):
    """An RSSM for inference with a fixed number of rows; see `RSSM.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        packing: rows of every step, and the products' dtype and device.
    """

    def __init__(self, model: RSSM, packing: Packing) -> None:
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
            self._cell = ArrangedBlockGRU(model.cell, packing)  # type: ignore[arg-type]
        else:
            self._cell = ArrangedGRU(model.cell, packing)  # type: ignore[arg-type, assignment]
        self._arrange_heads(model, packing)
        self._compiled: Callable[..., tuple[State, Prediction]] | None = None
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
        # Apart from the question about z this asks the device nothing.
        before = self._read(state["z"])
        # Compiled for one kind of latents only: others come of states that somebody has made.
        usual = (before.places is not None) == self._indexed
        move = self._compiled if self._compiled is not None and usual else self._moved
        return move(state["h"], before, action, noise, temperature)

    def compile_parts(self, compiler: Compiler | None) -> None:
        """See `CompilesParts.compile_parts`."""
        self._compiled = compiler and compiler(self._moved)

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
        if not (self._indexed and may_ask(z.device)):
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
