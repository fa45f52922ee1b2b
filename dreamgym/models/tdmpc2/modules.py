"""Networks of TD-MPC2: layers, Q functions, and the policy over encoded actions."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import HALF_LOG_TAU, categorical, normal
from dreamgym.models.nn.layers import LayerNorm, Linear, at_least_float32

WEIGHT_STD = 0.02
"""Standard deviation of the initial weights."""

MIN_LOG_STD, MAX_LOG_STD = -10.0, 2.0

SQUASH_EPSILON = 1e-6
"""Keeps the logarithm of tanh's derivative finite."""


class SimNorm(nn.Module):
    """Softmax over groups of numbers (Lavoie et al. 2022, arXiv 2204.00616).

    Args:
        group: numbers of one group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., n)."""
        # On a CPU a softmax over the last dimension is four times as slow if that is so small.
        groups = at_least_float32(x).unflatten(-1, (-1, self.group)).transpose(-1, -2).contiguous()
        return groups.softmax(-2).transpose(-1, -2).flatten(-2)


class Mish(nn.Module):
    """The activation x tanh(softplus(x)) of arXiv 1908.08681.

    On a CPU it takes half the time of `torch.nn.Mish`, whose kernel is not vectorised.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of (...)."""
        return x * F.softplus(x).tanh()


def normed(inputs: int, outputs: int, act: nn.Module, dropout: float = 0.0) -> list[nn.Module]:
    """Return a dense layer, a layer norm and an activation, with dropout before the norm."""
    drop = [nn.Dropout(dropout)] if dropout else []
    return [nn.Linear(inputs, outputs), *drop, LayerNorm(outputs), act]


def mlp(inputs: int, width: int, last: list[nn.Module], dropout: float = 0.0) -> nn.Sequential:
    """Return two hidden layers with dropout in the first, and the last layers given."""
    first = normed(inputs, width, Mish(), dropout)
    return initialised(nn.Sequential(*first, *normed(width, width, Mish()), *last))


def initialised(layers: nn.Sequential) -> nn.Sequential:
    """Give dense layers truncated normal weights and zero biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=WEIGHT_STD)
            nn.init.zeros_(layer.bias)
    return layers


def head(inputs: int, width: int, outputs: int, *, zero: bool, dropout: float = 0) -> nn.Sequential:
    """Return an MLP of which the last layer is linear, with weights that start at zero if asked."""
    layers = mlp(inputs, width, [Linear(width, outputs)], dropout)
    if zero:
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
    return layers


class QFunctions(nn.Module):
    """An ensemble of categorical Q functions.

    Args:
        networks: the networks, from latent and action to logits.
    """

    def __init__(self, networks: list[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, z: Tensor, action: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """Return logits (N, ..., bins) of all networks, or of N of them in the order given.

        Args:
            z: (..., latent).
            action: (..., A), encoded.
            only: indices of the networks to evaluate; None for all.
        """
        inputs = torch.cat([z, action], -1)
        indices = range(len(self.networks)) if only is None else only
        return torch.stack([self.networks[index](inputs) for index in indices])

    def frozen(self, z: Tensor, action: Tensor, only: Sequence[int] | None = None) -> Tensor:
        """Return the same, without a gradient into the weights."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        logits: Tensor = torch.func.functional_call(self, weights, (z, action, only))
        return logits


def as_buffers(module: nn.Module) -> nn.Module:
    """Turn the parameters of a module into buffers, which no optimizer sees; return it."""
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            delattr(each, name)
            each.register_buffer(name, parameter.detach().clone())
    return module


class Policy(nn.Module):
    """A policy over actions as `ActionEncoder` encodes them.

    A Box has a normal distribution squashed by tanh, so that actions reach its bounds; of a number
    without bounds they are within one standard deviation of the data. Choices have categoricals,
    whose samples pass gradients straight through.

    Args:
        latent: width of the latent.
        width: width of the hidden layers.
        encoder: encoder of the actions.

    Attributes:
        uniforms: number of uniforms that a sample needs.
    """

    def __init__(self, latent: int, width: int, encoder: ActionEncoder) -> None:
        super().__init__()
        self.space, self.is_box = encoder.space, isinstance(encoder.space, gym.spaces.Box)
        self.sizes: list[int] = []
        if isinstance(encoder.space, gym.spaces.MultiDiscrete):
            self.sizes = np.ravel(encoder.space.nvec).tolist()
        elif isinstance(encoder.space, gym.spaces.Discrete):
            self.sizes = [int(encoder.space.n)]
        self.uniforms = encoder.dim if self.is_box else len(self.sizes)
        self.net = head(latent, width, encoder.dim * (1 + self.is_box), zero=False)

    def sample(self, z: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions, differentiably.

        Args:
            z: (..., latent).
            uniforms: (..., uniforms) in [0, 1).

        Returns:
            (..., A) encoded actions, and (...) an estimate of the entropy for a Box, of squashed
            actions, or the entropy of the choices.
        """
        outputs = self.net(z)
        if self.is_box:
            return _squashed_normal(outputs, normal(uniforms))
        actions, entropies = [], []
        choices = zip(outputs.split(self.sizes, -1), uniforms.unbind(-1), strict=True)
        for logits, uniform in choices:
            log = logits.log_softmax(-1)
            chosen = _one_hot(categorical(logits.detach(), uniform), log)
            actions.append(chosen + log.exp() - log.exp().detach())
            entropies.append(-(log.exp() * log).sum(-1))
        return torch.cat(actions, -1), torch.stack(entropies).sum(0)

    def mode(self, z: Tensor) -> Tensor:
        """Return encoded actions (..., A): the squashed mean, or the most likely choices."""
        outputs = self.net(z)
        if self.is_box:
            return outputs.chunk(2, -1)[0].tanh()
        parts = outputs.split(self.sizes, -1)
        return torch.cat([_one_hot(logits.argmax(-1), logits) for logits in parts], -1)

    def to_raw(self, encoded: Tensor, encoder: ActionEncoder) -> Tensor:
        """Return raw actions (..., *shape) within the space for encoded ones (..., A)."""
        space, lead = self.space, encoded.shape[:-1]
        if isinstance(space, gym.spaces.Box):
            # A number that never changed in the data has an infinite scale.
            scale = torch.where(encoder.scale.isinf(), 0.0, encoder.scale)
            low, high = (
                torch.as_tensor(bound.reshape(-1).astype(np.float32), device=encoded.device)
                for bound in (space.low, space.high)
            )
            raw = (encoded * scale + encoder.centre).clamp(low, high)
            if not np.issubdtype(space.dtype, np.floating):
                raw = raw.round().long()
            return raw.reshape(*lead, *space.shape)
        values = zip(encoded.split(self.sizes, -1), encoder.value.split(self.sizes), strict=True)
        raw = torch.stack([value[part.argmax(-1)] for part, value in values], -1)
        return raw.reshape(*lead, *(space.shape or ()))


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    classes = torch.arange(like.shape[-1], device=like.device)
    return torch.eq(index.unsqueeze(-1), classes).to(like.dtype)


def _squashed_normal(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions (..., A) and minus their log densities (...), from outputs (..., 2 A)."""
    mean, raw = outputs.chunk(2, -1)
    log_std = MIN_LOG_STD + 0.5 * (MAX_LOG_STD - MIN_LOG_STD) * (raw.tanh() + 1.0)
    action = (mean + log_std.exp() * noise).tanh()
    log_density = -0.5 * noise.square() - log_std - HALF_LOG_TAU
    log_slope = (F.relu(1.0 - action.square()) + SQUASH_EPSILON).log()
    return action, (log_slope - log_density).sum(-1)
