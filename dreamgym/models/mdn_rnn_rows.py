"""The arranged MDN-RNN on a CPU: in place, and some rows at a time, so that they stay in its cache.

Fresh memory costs a CPU more than what is computed in it: the kernel hands it out page by page. So
all that lies between a step's inputs and its results is written over again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamgym.models.asking import may_ask
from dreamgym.models.base import State, Temperature
from dreamgym.models.mdn_rnn_few import FEW, After, FewRows
from dreamgym.models.sampling import is_one, per_row

if TYPE_CHECKING:
    from dreamgym.models.mdn_rnn_arranged import ArrangedMDNRNN

ROWS = 512
"""Rows at a time."""


class RowsOnCPU:
    """The step of an arranged MDN-RNN in float32 states, without gradients.

    Args:
        model: arranged.
        num_envs: rows of every step; another number works, and is slower.
    """

    def __init__(self, model: ArrangedMDNRNN, num_envs: int) -> None:
        self.model, self.hidden = model, model.config.hidden
        self.size, self.mixtures = model.size, model.config.mixtures
        rows = min(num_envs, ROWS) if num_envs >= FEW else 0
        self.weights = torch.empty(rows, self.mixtures, self.size)
        self.total = torch.empty(rows, self.size)
        self.few = FewRows(model)
        self.compiled: Callable[..., After] | None = None

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
        if count < FEW and may_ask(taken.device):
            return self.few(state, taken, numbers, temperature)
        if count <= ROWS and self.compiled is not None:
            return self.compiled(state, taken, numbers, temperature)
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
            after, *rest = self._some(before, taken[rows], these, tau, (h[rows], c[rows]))
            found = [after["z"], *(leaf for leaf in rest if leaf is not None)]
            parts = parts or [leaf.new_empty(count, *leaf.shape[1:]) for leaf in found]
            for whole, leaf in zip(parts, found, strict=True):
                whole[rows] = leaf
        z, reward, termination, *unknown = parts
        return {"z": z, "h": h, "c": c}, reward, termination, unknown[0] if unknown else None

    def _some(
        self,
        state: State,
        taken: Tensor,
        numbers: tuple[Tensor, ...],
        temperature: Temperature,
        into: tuple[Tensor, Tensor],
    ) -> After:
        """As `_rows`, compiled if that is asked for."""
        if self.compiled is None:
            return self._rows(state, taken, numbers, temperature, into)
        found = self.compiled(state, taken, numbers, temperature)
        for own, leaf in zip(into, ("h", "c"), strict=True):
            own.copy_(found[0][leaf])
        return found

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
