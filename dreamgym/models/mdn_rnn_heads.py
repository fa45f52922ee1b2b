"""Heads of the MDN-RNN: what a step pays, and whether it ends the episode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.models.exact import Linear
from dreamgym.models.heads import mlp


class Judgement(NamedTuple):
    """Of a step; leaves (...).

    Attributes:
        reward: standardised, of a step after which the episode goes on.
        at_end: what is added to it where the episode ends.
        logit: of the probability that it does.
    """

    reward: Tensor
    at_end: Tensor
    logit: Tensor

    def paid(self, ends: Tensor) -> Tensor:
        """The standardised reward, (...), where the episode ends with probability `ends`."""
        return self.reward + ends * self.at_end


class LinearHeads(nn.Module):
    """Both heads read h, as in the published code.

    Args:
        hidden: width of h.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.reward: nn.Module = Linear(hidden, 1)
        self.termination: nn.Module = Linear(hidden, 1)

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> Judgement:
        """Judge steps from h (..., hidden) alone."""
        reward = self.reward(h).squeeze(-1)
        return Judgement(reward, torch.zeros_like(reward), self.termination(h).squeeze(-1))


class TransitionHeads(nn.Module):
    """Heads of two hidden layers, which judge the transition that was dreamt.

    The reward is blind to h, which foretells a reward before its cause is drawn: a dream would pay
    for what its noise undoes, and a policy learns to live on that. It is r + p d, with p the
    probability that the episode ends, which h does help to tell, and d what an end adds: +100 for
    a landing, say, that looks as every moment before it.

    Args:
        hidden: width of h.
        size: width of z.
        actions: width of an encoded action.
        width: of the hidden layers.
    """

    def __init__(self, hidden: int, size: int, actions: int, width: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.reward = mlp(2 * size + actions, width, 2)
        self.termination = mlp(hidden + 2 * size, width, 1)
        # Where no episode of the data ends, an end pays what any step pays.
        last = self.reward[-1]
        with torch.no_grad():
            last.weight[1].zero_()  # type: ignore[index]
            last.bias[1].zero_()  # type: ignore[index]

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> Judgement:
        """Judge steps.

        Args:
            h: (..., hidden).
            new: (..., size) the z that the step led to.
            change: (..., size) to it, in units of the deltas' spread.
            encoded: (..., actions).
        """
        reward, at_end = self.reward(torch.cat([new, change, encoded], -1)).unbind(-1)
        logit = self.termination(torch.cat([h, new, change], -1)).squeeze(-1)
        return Judgement(reward, at_end, logit)


Layers = dict[str, tuple[Tensor, Tensor]]


def linear_layer(
    heads: LinearHeads, reward_mean: Tensor, reward_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight (2, hidden) and bias (2,) of reward and termination logit, the reward in its units."""
    both = [layer for layer in (heads.reward, heads.termination) if isinstance(layer, nn.Linear)]
    weight = torch.cat([layer.weight for layer in both]).detach().clone()
    bias = torch.cat([layer.bias for layer in both]).detach().clone()
    weight[0] *= reward_std
    bias[0] = bias[0] * reward_std + reward_mean
    return weight, bias


def transition_layers(heads: TransitionHeads, reward_mean: Tensor, reward_std: Tensor) -> Layers:
    """Both heads side by side as one, of (h, new z, change, action): zeros keep them apart.

    Args:
        heads: whose weights to take.
        reward_mean: () of the standardised reward.
        reward_std: () likewise.

    Returns:
        Weight and bias of `head0`, `head1` and `head2`, which gives the reward and what an end
        adds to it, in the reward's own units, and the termination's logit.
    """
    pay, end = (
        [layer for layer in head if isinstance(layer, nn.Linear)]
        for head in (heads.reward, heads.termination)
    )
    width, hidden = pay[0].out_features, heads.hidden
    first = pay[0].weight.new_zeros(2 * width, hidden + pay[0].in_features)
    first[:width, hidden:] = pay[0].weight.detach()
    first[width:, : end[0].in_features] = end[0].weight.detach()
    later = [
        torch.block_diag(a.weight, b.weight).detach() for a, b in zip(pay[1:], end[1:], strict=True)
    ]
    weights = [first, *later]
    biases = [torch.cat([a.bias, b.bias]).detach() for a, b in zip(pay, end, strict=True)]
    # What an end adds is a difference: the mean belongs to the first output alone.
    scale = torch.stack([reward_std, reward_std, torch.ones_like(reward_std)])
    shift = reward_mean * torch.tensor([1.0, 0.0, 0.0], device=scale.device)
    weights[-1], biases[-1] = weights[-1] * scale[:, None], biases[-1] * scale + shift
    return {f"head{k}": layer for k, layer in enumerate(zip(weights, biases, strict=True))}
