"""The MDN-RNN's step arranged for speed: the same function as `MDNRNN.step`.

What is done otherwise: one product gives all gates, with the rows of g doubled so that one sigmoid
serves all four (tanh x = 2 sigmoid 2x - 1); one product gives mixtures and linear heads; the
component is found by comparing one uniform number with running sums of unnormalised weights; and
only the chosen component's sigma is computed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.mdn_rnn import LOG_SIGMA_MAX, MDNRNN
from dreamgym.models.packed import packed_linear
from dreamgym.models.sampling import SMALLEST_UNIFORM, per_row


class ArrangedMDNRNN(MDNRNN):
    """An MDN-RNN for inference with a fixed number of rows; see `MDNRNN.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        num_envs: rows of every step.
        dtype: of the matrix products.
    """

    def __init__(self, model: MDNRNN, num_envs: int, dtype: torch.dtype) -> None:
        super(MDNRNN, self).__init__(model.observation_space, model.action_space, model.config)
        for name in ("size", "feature_dim", "noise_dim"):
            setattr(self, name, getattr(model, name))
        self.vision, self.encode_action = model.vision, model.encode_action
        self.mixture = model.mixture  # for `initial`, which makes states like its weights
        for name in ("reward_mean", "reward_std", "worst_return"):
            self.register_buffer(name, getattr(model, name))
        lstm, config = model.lstm, model.config
        i, f, g, o = torch.cat([lstm.weight_ih, lstm.weight_hh], 1).chunk(4)
        b_i, b_f, b_g, b_o = lstm.bias.chunk(4)
        gates, bias = torch.cat([i, f, o, 2 * g]), torch.cat([b_i, b_f, b_o, 2 * b_g])
        self._gates = packed_linear(gates, bias, num_envs, dtype)
        self._trunk = None
        if config.trunk:
            self._trunk = packed_linear(model.trunk.weight, model.trunk.bias, num_envs, dtype)
        self._out = packed_linear(*_output_layer(model), num_envs, dtype)
        self._hidden_heads = model.heads if config.head else None
        if config.head:
            layers = [layer for layer in model.heads if isinstance(layer, nn.Linear)]
            self._head_layers = [
                packed_linear(layer.weight, layer.bias, num_envs, dtype) for layer in layers
            ]
        self.eval().requires_grad_(False)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded, vision, z = self.encode_action(action), self.vision, state["z"]
        after = self._next(state, encoded)
        h = after["h"]
        hidden = h
        if self._trunk is not None:
            hidden = F.silu(self._trunk(torch.cat([h, z, encoded], -1)))
        y = self._out(hidden)
        drawn = self._draw(y, noise, temperature)
        moved = torch.addcmul(z * vision.carried, drawn, vision.delta_std)
        free = vision.within_space(moved)
        new = torch.clamp(free, vision.low, vision.high)
        unknown = (free != new).any(-1)
        reward, termination = self._judge(y, h, z, new)
        reward = reward * self.reward_std + self.reward_mean
        prediction = Prediction(
            reward=torch.where(unknown, self.worst_return, reward),
            termination=torch.where(unknown, 1.0, termination.sigmoid()),
            uncertainty=torch.zeros_like(reward),
        )
        return {"z": new, **after}, prediction

    def _next(self, state: State, encoded: Tensor) -> State:
        """The LSTM's leaves of the next state."""
        width = self.config.hidden
        inputs = [state["z"], encoded]
        after = {}
        if self.config.restart_flag:
            inputs.append(state["restart"])
            after["restart"] = torch.zeros_like(state["restart"])
        gates = self._gates(torch.cat([*inputs, state["h"]], -1)).sigmoid()
        i, f, o = gates[:, :width], gates[:, width : 2 * width], gates[:, 2 * width : 3 * width]
        g = gates[:, 3 * width :] * 2 - 1
        c = torch.addcmul(f * state["c"], i, g)
        h = ((2 * c).sigmoid() * 2 - 1) * o
        return {"h": h, "c": c, **after}

    def _draw(self, y: Tensor, noise: Tensor, temperature: Temperature) -> Tensor:
        """A sample (B, n) of the mixtures, whose parameters lie component by component."""
        n, k = self.size, self.config.mixtures
        choose, spread = noise[:, :n], noise[:, n:]
        logits = y[:, : k * n].view(-1, k, n)
        mean, raw = (
            y[:, k * n : 2 * k * n].view(-1, k, n),
            y[:, 2 * k * n : 3 * k * n].view(-1, k, n),
        )
        tempered = logits if _is_one(temperature) else logits / per_row(temperature, logits)
        weights = (tempered - tempered.amax(1, keepdim=True)).exp()
        below = choose * weights.sum(1)
        sum_so_far = weights[:, 0]
        chosen_mean, chosen_raw = mean[:, 0], raw[:, 0]
        for component in range(1, k):
            beyond = below >= sum_so_far
            chosen_mean = torch.where(beyond, mean[:, component], chosen_mean)
            chosen_raw = torch.where(beyond, raw[:, component], chosen_raw)
            sum_so_far = sum_so_far + weights[:, component]
        low = self.config.log_sigma_min
        sigma = (low + F.softplus(chosen_raw - low)).clamp(max=LOG_SIGMA_MAX).exp()
        if not _is_one(temperature):
            sigma = sigma * per_row(temperature, sigma) ** 0.5
        uniform = spread.clamp(SMALLEST_UNIFORM, 1.0 - 2 * SMALLEST_UNIFORM)
        return torch.addcmul(chosen_mean, sigma, torch.erfinv(2 * uniform - 1), value=math.sqrt(2))

    def _judge(self, y: Tensor, h: Tensor, z: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised reward and termination logit."""
        if self._hidden_heads is None:
            return y[:, -2], y[:, -1]
        x = torch.cat([h, new, (new - z) / self.vision.delta_std], -1)
        first, second, last = self._head_layers
        out = last(F.silu(second(F.silu(first(x)))))
        return out[:, 0], out[:, 1]


def _is_one(temperature: Temperature) -> bool:
    return not isinstance(temperature, Tensor) and temperature == 1.0


def _output_layer(model: MDNRNN) -> tuple[Tensor, Tensor]:
    """Weight and bias of the mixtures, component by component, and of linear heads behind them."""
    shape = (3, model.size, model.config.mixtures)
    layers = [
        tensor.unflatten(0, shape).transpose(1, 2).flatten(0, 2)
        for tensor in (model.mixture.weight, model.mixture.bias)
    ]
    if not model.config.head:
        for head in (model.reward, model.termination):
            layers = [torch.cat([layers[0], head.weight]), torch.cat([layers[1], head.bias])]
    return layers[0], layers[1]
