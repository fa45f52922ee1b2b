"""The MDN-RNN's step arranged for speed: the same function as `MDNRNN.step`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.mdn_rnn.model import (
    LOG_SIGMA_MAX,
    MDNRNN,
    LinearHeads,
    TransitionHeads,
    linear_layer,
    transition_layers,
)
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.packed import packed_linear

if TYPE_CHECKING:
    pass


After = tuple[State, Tensor, Tensor, Tensor | None]

"""The next state, reward, termination probability, and which rows left the data's range."""


ROWS = 512

"""Rows at a time."""


class RowsOnCPU:
    """The step of an arranged MDN-RNN in float32 states, without gradients.

    Args:
        model: arranged.
        num_envs: rows of every step; another number works, and is slower.
    """

    def __init__(self, model: FastMDNRNN, num_envs: int) -> None:
        self.model, self.hidden = model, model.config.hidden
        self.size, self.mixtures = model.size, model.config.mixtures
        rows = min(num_envs, ROWS)
        self.weights = torch.empty(rows, self.mixtures, self.size)
        self.total = torch.empty(rows, self.size)

    def __call__(
        self, state: State, taken: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature
    ) -> After:
        """One step.

        Args:
            state: leaves (B, ...).
            taken: (B, actions) as the products take them.
            numbers: of `ArrangedMDNRNN.numbers`.
            temperature: a number or (B,).
        """
        count = len(taken)
        h, c = (leaf.new_empty(count, self.hidden) for leaf in (state["h"], state["c"]))
        if count <= ROWS:
            return self._rows(state, taken, numbers, temperature, (h, c))
        parts: list[Tensor] = []
        for at in range(0, count, ROWS):
            rows = slice(at, at + ROWS)
            tau = temperature
            if isinstance(tau, Tensor) and tau.ndim:
                tau = tau[rows]
            before = {key: leaf[rows] for key, leaf in state.items()}
            these = tuple(leaf[rows] for leaf in numbers)
            after, *rest = self._rows(before, taken[rows], these, tau, (h[rows], c[rows]))
            found = [after["z"], *(leaf for leaf in rest if leaf is not None)]
            parts = parts or [leaf.new_empty(count, *leaf.shape[1:]) for leaf in found]
            for whole, leaf in zip(parts, found, strict=True):
                whole[rows] = leaf
        z, reward, termination, *unknown = parts
        return {"z": z, "h": h, "c": c}, reward, termination, unknown[0] if unknown else None

    def _rows(
        self,
        state: State,
        taken: Tensor,
        numbers: tuple[Tensor, ...],
        temperature: Temperature,
        into: tuple[Tensor, Tensor],
    ) -> After:
        """The same for rows that fit in the cache; the next h and c are written into `into`."""
        model, z = self.model, state["z"]
        gates = model.linear["gates"](torch.cat(model.inputs(state, taken), -1))
        i, f, o, g = gates.sigmoid_().split(self.hidden, 1)
        h, c = into
        torch.mul(f, state["c"], out=c).addcmul_(i, g, value=2).sub_(i)
        torch.mul(c, 2, out=h).sigmoid_().mul_(2).sub_(1).mul_(o)
        y = model.outputs(h, z, taken)
        new, unknown = model.moved(z, self._draw(y, numbers, temperature))
        return {"z": new, "h": h, "c": c}, *model.judged(y, (h, z, new, taken)), unknown

    def _scratch(self, rows: int) -> tuple[Tensor, Tensor]:
        """Memory for the weights (B, k, n) and their sum (B, n)."""
        if rows > len(self.weights):
            self.weights = self.weights.new_empty(rows, self.mixtures, self.size)
            self.total = self.total.new_empty(rows, self.size)
        return self.weights[:rows], self.total[:rows]

    def _draw(self, y: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature) -> Tensor:
        """A sample (B, n) of the mixtures: as few numbers as can be are read and written."""
        rows, (choose, normal) = len(y), numbers
        n, k = self.size, self.mixtures
        logits, raw, mean = y[:, : 3 * k * n].view(rows, 3, k, n).unbind(1)
        if not is_one(temperature):
            logits.div_(per_row(temperature, logits))
        weights, total = self._scratch(rows)
        torch.sub(logits, logits.amax(1, True), out=weights).exp_()
        below = torch.sum(weights, 1, out=total).mul_(choose)
        so_far, *more = weights.unbind(1)
        means, raws = mean.unbind(1), raw.unbind(1)
        chosen_mean, chosen_raw = means[0], raws[0]
        for component in range(1, k):
            beyond = below >= so_far
            chosen_mean = torch.where(beyond, means[component], chosen_mean)
            chosen_raw = torch.where(beyond, raws[component], chosen_raw)
            so_far.add_(more[component - 1])
        sigma = chosen_raw.exp().add_(self.model.floor).clamp_(max=self.model.ceiling)
        return self._placed(chosen_mean, sigma, normal, temperature)

    @staticmethod
    def _placed(mean: Tensor, sigma: Tensor, normal: Tensor, temperature: Temperature) -> Tensor:
        if not is_one(temperature):
            sigma.mul_(per_row(temperature, sigma) ** 0.5)
        return torch.addcmul(mean, sigma, normal)


FARTHEST_CENTRE = 2.0

"""Actions whose range lies farther from zero, in half widths, are centred before the product:
within it, they would lose digits."""


class FastMDNRNN(MDNRNN):
    """An MDN-RNN for inference with a fixed number of rows; see `MDNRNN.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        num_envs: rows of every step.
        dtype: of the matrix products.
    """

    space_low: Tensor
    space_high: Tensor

    def __init__(self, model: MDNRNN, num_envs: int, dtype: torch.dtype) -> None:
        super(MDNRNN, self).__init__(model.observation_space, model.action_space, model.config)
        for name in ("size", "feature_dim", "noise_dim"):
            setattr(self, name, getattr(model, name))
        self.vision, self.encode_action = model.vision, model.encode_action
        self.mixture = model.mixture  # for `initial`, which makes states like its weights
        self.register_buffer("worst_return", model.worst_return)
        self.floor, self.ceiling = math.exp(model.config.log_sigma_min), math.exp(LOG_SIGMA_MAX)
        self._limits(model)
        rows = min(num_envs, ROWS)
        layers = {"gates": _gate_layer(model), "out": _output_layer(model)}
        if model.config.trunk:
            layers["trunk"] = (model.trunk.weight, model.trunk.bias)
        self.raw_actions = _centred(model)
        if self.raw_actions:
            for name, at in (("gates", model.size), ("trunk", model.config.hidden + model.size)):
                if name in layers:
                    layers[name] = _taking_raw_actions(*layers[name], at, model)
        if isinstance(model.heads, TransitionHeads):
            layers |= transition_layers(model.heads, model.reward_mean, model.reward_std)
            if self.raw_actions:
                at = model.config.hidden + 2 * model.size
                layers["head0"] = _taking_raw_actions(*layers["head0"], at, model)
        self.linear = {name: packed_linear(*layer, rows, dtype) for name, layer in layers.items()}
        plain_floats = model.mixture.weight.dtype == torch.float32
        on_cpu = model.mixture.weight.device.type == "cpu" and plain_floats
        self._on_cpu = RowsOnCPU(self, num_envs) if on_cpu else None
        self.eval().requires_grad_(False)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        choose, spread = noise[..., : self.size], noise[..., self.size :]
        numbers = choose, quick_normal(spread)
        taken = action if self.raw_actions else self.encode_action(action)
        if self._on_cpu is not None and not torch.compiler.is_compiling():
            after, reward, termination, unknown = self._on_cpu(state, taken, numbers, temperature)
        else:
            after, reward, termination, unknown = self._whole(state, taken, numbers, temperature)
        if unknown is not None:
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        if self.config.restart_flag:
            after["restart"] = torch.zeros_like(state["restart"])
        return after, Prediction(reward, termination, torch.zeros_like(reward))

    def inputs(self, state: State, taken: Tensor) -> list[Tensor]:
        """What the gates' product sees, to be concatenated."""
        if self.config.restart_flag:
            return [state["z"], taken, state["restart"], state["h"]]
        return [state["z"], taken, state["h"]]

    def moved(self, z: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """The new z that a drawn delta leads to, and whether it left the data's range."""
        if self.unlimited:
            return drawn, None
        vision = self.vision
        free = torch.addcmul(z * vision.carried, drawn, vision.delta_std)
        free = torch.clamp(free, self.space_low, self.space_high)
        new = torch.clamp(free, vision.low, vision.high)
        return new, (free != new).any(-1)

    def outputs(self, h: Tensor, z: Tensor, taken: Tensor) -> Tensor:
        """The mixtures' parameters (B, 3 k n), and those of linear heads behind them."""
        if not self.config.trunk:
            return self.linear["out"](h)
        hidden = F.silu(self.linear["trunk"](torch.cat([h, z, taken], -1)))
        # Linear heads read h itself.
        return self.linear["out"](hidden if self.config.head else torch.cat([hidden, h], -1))

    def judged(self, y: Tensor, said: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Reward and termination probability, (B,) each.

        Args:
            y: what `outputs` gave.
            said: h, z, the new z and the action, as the products take it.
        """
        if not self.config.head:
            return y[:, -2].contiguous(), y[:, -1].sigmoid()
        h, z, new, taken = said
        x = torch.cat([h, new, (new - z) / self.vision.delta_std, taken], -1)
        hidden = F.silu(self.linear["head1"](F.silu(self.linear["head0"](x))))
        reward, at_end, logit = self.linear["head2"](hidden).unbind(-1)
        termination = logit.sigmoid()
        return torch.addcmul(reward, termination, at_end), termination

    def _whole(
        self, state: State, taken: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature
    ) -> tuple[State, Tensor, Tensor, Tensor | None]:
        """All rows at once, nothing written in place: to be compiled, or captured as a graph."""
        gates = self.linear["gates"](torch.cat(self.inputs(state, taken), -1)).sigmoid()
        i, f, o, g = gates.chunk(4, -1)
        c = torch.addcmul(f * state["c"], i, g * 2 - 1)
        h = ((2 * c).sigmoid() * 2 - 1) * o
        y = self.outputs(h, state["z"], taken)
        new, unknown = self.moved(state["z"], self._draw(y, numbers, temperature))
        judged = self.judged(y, (h, state["z"], new, taken))
        return ({"z": new, "h": h, "c": c}, *judged, unknown)

    def _draw(self, y: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature) -> Tensor:
        """A sample (B, n) of the mixtures."""
        n, k = self.size, self.config.mixtures
        choose, normal = numbers
        logits, raw, mean = y[:, : 3 * k * n].view(-1, 3, k, n).unbind(1)
        tempered = logits if is_one(temperature) else logits / per_row(temperature, logits)
        weights = (tempered - tempered.amax(1, keepdim=True)).exp()
        below = choose * weights.sum(1)
        sum_so_far = weights[:, 0]
        chosen_mean, chosen_raw = mean[:, 0], raw[:, 0]
        for component in range(1, k):
            beyond = below >= sum_so_far
            chosen_mean = torch.where(beyond, mean[:, component], chosen_mean)
            chosen_raw = torch.where(beyond, raw[:, component], chosen_raw)
            sum_so_far = sum_so_far + weights[:, component]
        sigma = (chosen_raw.exp() + self.floor).clamp(max=self.ceiling)
        if not is_one(temperature):
            sigma = sigma * per_row(temperature, sigma) ** 0.5
        return torch.addcmul(chosen_mean, sigma, normal)

    def _limits(self, model: MDNRNN) -> None:
        """The space's bounds in z's units, and whether anything is limited: latents are not."""
        vision = model.vision
        space_low = (vision.space_low - vision.mean) / vision.std
        space_high = (vision.space_high - vision.mean) / vision.std
        self.register_buffer("space_low", space_low)
        self.register_buffer("space_high", space_high)
        bounds = torch.stack([space_low, space_high, vision.low, vision.high])
        self.unlimited = bool(
            bounds.isinf().all() and (vision.carried == 0).all() and (vision.delta_std == 1).all()
        )


def _gate_layer(model: MDNRNN) -> tuple[Tensor, Tensor]:
    """Weight over (input, h) and bias of the gates, in the order i, f, o, 2 g."""
    lstm = model.lstm
    i, f, g, o = torch.cat([lstm.weight_ih, lstm.weight_hh], 1).chunk(4)
    b_i, b_f, b_g, b_o = lstm.bias.chunk(4)
    return torch.cat([i, f, o, 2 * g]), torch.cat([b_i, b_f, b_o, 2 * b_g])


def _output_layer(model: MDNRNN) -> tuple[Tensor, Tensor]:
    """Weight and bias of the mixtures and of linear heads behind them.

    Component by component; first all logits, then what log sigma comes from, then all means.
    """
    shape = (3, model.size, model.config.mixtures)
    layers = []
    for tensor in (model.mixture.weight, model.mixture.bias):
        logits, mean, raw = tensor.unflatten(0, shape).transpose(1, 2).unbind(0)
        layers.append(torch.cat([logits.flatten(0, 1), raw.flatten(0, 1), mean.flatten(0, 1)]))
    weight, bias = layers
    if isinstance(model.heads, LinearHeads):
        heads = linear_layer(model.heads, model.reward_mean, model.reward_std)
        both = torch.block_diag if model.config.trunk else lambda *parts: torch.cat(parts)
        return both(weight.detach(), heads[0]), torch.cat([bias, heads[1]])
    return weight, bias


def _centred(model: MDNRNN) -> bool:
    """Whether raw actions can be given to the products."""
    encode = model.encode_action
    if not hasattr(encode, "centre") or len(model.action_space.shape or ()) != 1:
        return False
    return bool((encode.centre.abs() <= FARTHEST_CENTRE * encode.scale).all())


def _taking_raw_actions(
    weight: Tensor, bias: Tensor, at: int, model: MDNRNN
) -> tuple[Tensor, Tensor]:
    """The same layer for actions that are not centred and scaled, which lie from input `at` on."""
    encode, weight = model.encode_action, weight.detach().clone()
    place = slice(at, at + encode.dim)
    weight[:, place] /= encode.scale
    return weight, bias.detach() - weight[:, place] @ encode.centre
