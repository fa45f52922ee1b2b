"""The MDN-RNN's step arranged for speed: the same function as `MDNRNN.step`.

One matrix product gives all gates, one the mixtures (and linear heads), one the first layers of all
heads, and one their last layers. Normalisers of rewards are folded into the weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature, end_outside_data, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.mdn_rnn.config import LOG_SIGMA_MAX
from dreamgym.models.mdn_rnn.model import MDNRNN, LinearHeads, TransitionHeads
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.packed import Packing
from dreamgym.models.weights import OPEN_BOUNDS

Layer = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out,)."""


class FastMDNRNN(FastForm):
    """An MDN-RNN for inference with a fixed number of rows; see `MDNRNN.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    worst_return: Tensor
    terminal_reward_low: Tensor
    terminal_reward_high: Tensor

    def __init__(self, model: MDNRNN, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        config = model.config
        self.size, self.mixtures = model.size, config.mixtures
        self.trunk, self.restart_flag = bool(config.trunk), config.restart_flag
        self.linear_heads = isinstance(model.heads, LinearHeads)
        self.sigma_min, self.sigma_max = math.exp(config.log_sigma_min), math.exp(LOG_SIGMA_MAX)
        self.encode_action, self.vision = model.encode_action, model.vision
        bounds = () if self.linear_heads else OPEN_BOUNDS
        for name in ("worst_return", *bounds):
            self.register_buffer(name, getattr(model, name))
        layers = {"mixture": _mixture_layer(model)}
        if config.trunk:
            layers["trunk"] = model.trunk.weight, model.trunk.bias
        if isinstance(model.heads, TransitionHeads):
            layers |= joint_head_layers(model.heads, model.reward_mean, model.reward_std)
        packing = Packing(num_envs, dtype, model_device(model))
        self.lstm = packing.lstm(model.lstm)
        self.linear = {name: packing.linear(*layer) for name, layer in layers.items()}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded, z = self.encode_action(action), state["z"]
        inputs = [z, encoded, state["restart"]] if self.restart_flag else [z, encoded]
        h, c = self.lstm(torch.cat(inputs, -1), state["h"], state["c"])
        outputs, vision = self._mixture_outputs(h, z, encoded), self.vision
        delta = self._sample_delta(outputs, noise, temperature)
        new, outside = vision.limit(torch.addcmul(z * vision.carried, delta, vision.delta_std))
        reward, termination = self._reward_termination(outputs, h, z, new, encoded)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = {"z": new, "h": h, "c": c}
        if self.restart_flag:
            following["restart"] = torch.zeros_like(state["restart"])
        return following, end_outside_data(prediction, outside, self.worst_return)

    def _mixture_outputs(self, h: Tensor, z: Tensor, encoded: Tensor) -> Tensor:
        """Return the mixtures' parameters (B, 3 k n), followed by the outputs of linear heads."""
        hidden = h
        if self.trunk:
            hidden = F.silu(self.linear["trunk"](torch.cat([h, z, encoded], -1)))
            if self.linear_heads:  # which read h, not the trunk
                hidden = torch.cat([hidden, h], -1)
        return self.linear["mixture"](hidden)

    def _sample_delta(self, outputs: Tensor, noise: Tensor, temperature: Temperature) -> Tensor:
        """Draw (B, n) from the mixtures, as `Mixture.sample` does."""
        choose, spread = noise.chunk(2, -1)
        n, k = self.size, self.mixtures
        logits, raw, mean = outputs[:, : 3 * k * n].view(-1, 3, k, n).unbind(1)
        if not is_one(temperature):
            logits = logits / per_row(temperature, logits)
        weights = logits.softmax(1)
        cumulative, chosen_mean, chosen_raw = weights[:, 0], mean[:, 0], raw[:, 0]
        for component in range(1, k):
            # With a weight of 0 or 1 `lerp` selects exactly, in a tenth of the time of `where`.
            beyond = choose.clone().ge_(cumulative)
            chosen_mean = torch.lerp(chosen_mean, mean[:, component], beyond)
            chosen_raw = torch.lerp(chosen_raw, raw[:, component], beyond)
            cumulative = cumulative + weights[:, component]
        sigma = (chosen_raw.exp() + self.sigma_min).clamp(max=self.sigma_max)
        if not is_one(temperature):
            sigma = sigma * per_row(temperature, sigma) ** 0.5
        return torch.addcmul(chosen_mean, sigma, quick_normal(spread))

    def _reward_termination(
        self, outputs: Tensor, h: Tensor, z: Tensor, new: Tensor, encoded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return reward and termination probability, (B,) each."""
        if self.linear_heads:
            return outputs[:, -2].contiguous(), outputs[:, -1].sigmoid()
        x = torch.cat([h, new, (new - z) / self.vision.delta_std, encoded], -1)
        first = F.silu(self.linear["head0"](x)).chunk(3, -1)
        second = [self.linear[f"head1_{k}"](each) for k, each in enumerate(first)]
        hidden = F.silu(torch.cat(second, -1))
        reward, end_bonus, logit = self.linear["head2"](hidden).unbind(-1)
        termination = logit.sigmoid()
        at_end = (reward + end_bonus).clamp(self.terminal_reward_low, self.terminal_reward_high)
        return torch.lerp(reward, at_end, termination), termination


def _mixture_layer(model: MDNRNN) -> Layer:
    """Return the layer to the mixtures, and to linear heads after them.

    Outputs are in the order (kind, component, dimension), with the kinds logits, raw log sigma and
    mean, so that each component's parameters are adjacent.
    """
    shape = (3, model.size, model.config.mixtures)
    weight, bias = (
        tensor.detach().unflatten(0, shape).transpose(1, 2)[[0, 2, 1]].flatten(0, 2)
        for tensor in (model.mixture.weight, model.mixture.bias)
    )
    if not isinstance(model.heads, LinearHeads):
        return weight, bias
    head_weight, head_bias = _linear_head_layer(model.heads, model.reward_mean, model.reward_std)
    join = torch.block_diag if model.config.trunk else lambda *weights: torch.cat(weights)
    return join(weight, head_weight), torch.cat([bias, head_bias])


def _linear_head_layer(heads: LinearHeads, reward_mean: Tensor, reward_std: Tensor) -> Layer:
    """Return the layer from h to the reward in its own units and the termination's logit."""
    layers = [head for head in (heads.reward, heads.termination) if isinstance(head, nn.Linear)]
    weight = torch.cat([layer.weight for layer in layers]).detach()
    bias = torch.cat([layer.bias for layer in layers]).detach()
    weight[0] *= reward_std
    bias[0] = bias[0] * reward_std + reward_mean
    return weight, bias


def joint_head_layers(
    heads: TransitionHeads, reward_mean: Tensor, reward_std: Tensor
) -> dict[str, Layer]:
    """Join the first and the last layers of the three heads.

    The layers between stay apart: joined, two thirds of their weights would be zeros.

    Args:
        heads: the heads.
        reward_mean: () mean of the rewards.
        reward_std: () standard deviation of the rewards.

    Returns:
        `head0` on (h, new z, change of z, action); `head1_0`, `head1_1` and `head1_2` on a third of
        its outputs each; and `head2`, which gives the reward and the end bonus in the reward's own
        units, and the termination's logit.
    """
    networks = [
        [layer for layer in head if isinstance(layer, nn.Linear)]
        for head in (heads.reward, heads.end_bonus, heads.termination)
    ]
    firsts, seconds, lasts = zip(*networks, strict=True)
    width, hidden = firsts[0].out_features, heads.hidden
    first = firsts[0].weight.new_zeros(3 * width, hidden + firsts[0].in_features)
    # The termination reads (h, new, change), the other two (new, change, action).
    first[: 2 * width, hidden:] = torch.cat([layer.weight.detach() for layer in firsts[:2]])
    first[2 * width :, : firsts[2].in_features] = firsts[2].weight.detach()
    last = torch.block_diag(*(layer.weight.detach() for layer in lasts))
    # The end bonus is a difference of rewards, so the mean belongs to the first output only.
    scale = torch.stack([reward_std, reward_std, torch.ones_like(reward_std)])
    shift = reward_mean * torch.tensor([1.0, 0.0, 0.0], device=scale.device)
    return {
        "head0": (first, torch.cat([layer.bias.detach() for layer in firsts])),
        **{f"head1_{k}": (layer.weight, layer.bias) for k, layer in enumerate(seconds)},
        "head2": (
            last * scale[:, None],
            torch.cat([layer.bias.detach() for layer in lasts]) * scale + shift,
        ),
    }
