"""The arranged MDN-RNN in a few rows on a CPU: NumPy between the products.

With few rows a step costs as many calls as it has, and NumPy's take a third of the time of torch's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.models.base import State, Temperature
from dreamgym.models.sampling import is_one, per_row

if TYPE_CHECKING:
    from dreamgym.models.mdn_rnn_arranged import ArrangedMDNRNN

FEW = 64
"""Below this many rows a step costs as many calls as it has, and not what they compute."""

After = tuple[State, Tensor, Tensor, Tensor | None]
"""The next state, reward, termination probability, and which rows left the data's range."""

Floats = NDArray[np.float32]


class FewRows:
    """The step of an arranged MDN-RNN in float32 states, without gradients.

    Args:
        model: arranged.
    """

    def __init__(self, model: ArrangedMDNRNN) -> None:
        self.model, self.hidden = model, model.config.hidden
        self.size, self.mixtures = model.size, model.config.mixtures
        self.highest = math.log(model.ceiling)
        per_component = self.mixtures * self.size
        kinds = per_component * np.array([1, 2])[:, None] + np.arange(self.size)
        width = 3 * per_component + (0 if model.config.head else 2)
        # Where each row's log sigma and mean of the first component lie in the output layer's rows.
        self.places = width * np.arange(FEW)[:, None, None] + kinds

    @np.errstate(all="ignore")  # numbers go to zero and to infinity here as silently as in torch
    def __call__(
        self, state: State, taken: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature
    ) -> After:
        """See `RowsOnCPU.__call__`."""
        model, z = self.model, state["z"]
        inputs = np.concatenate([part.numpy() for part in model.inputs(state, taken)], 1)
        gates = model.linear["gates"](torch.from_numpy(inputs)).sigmoid_().numpy()
        c = gates[:, self.hidden : 2 * self.hidden] * state["c"].numpy()
        g = gates[:, 3 * self.hidden :]
        g *= 2
        g -= 1
        g *= gates[:, : self.hidden]
        c += g
        out = np.tanh(c)
        out *= gates[:, 2 * self.hidden : 3 * self.hidden]
        h = torch.from_numpy(out)
        y = model.outputs(h, z, taken)
        drawn = torch.from_numpy(self._draw(y.numpy(), numbers, temperature))
        new, unknown = model.moved(z, drawn)
        judged = model.judged(y, (h, z, new, taken))
        return {"z": new, "h": h, "c": torch.from_numpy(c)}, *judged, unknown

    def _draw(self, y: Floats, numbers: tuple[Tensor, ...], temperature: Temperature) -> Floats:
        """A sample (B, n) of the mixtures."""
        rows, n, k = len(y), self.size, self.mixtures
        choose, normal = (leaf.numpy() for leaf in numbers)
        logits = y[:, : k * n].reshape(rows, k, n)
        if not is_one(temperature):
            logits = logits / _array(per_row(temperature, torch.from_numpy(logits)))
        so_far = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
        below = so_far[:, -1:] * choose[:, None]
        component = (so_far[:, :-1] <= below).sum(1, keepdims=True)
        component *= n
        places = self.places[:rows] + component
        raw, mean = y.take(places).swapaxes(0, 1)
        sigma = np.exp(np.minimum(raw, self.highest))
        sigma += self.model.floor
        np.minimum(sigma, self.model.ceiling, out=sigma)
        if not is_one(temperature):
            sigma *= _array(per_row(temperature, torch.from_numpy(sigma))) ** 0.5
        sigma *= normal
        sigma += mean
        return sigma


def _array(number: float | Tensor) -> float | Floats:
    return number.numpy() if isinstance(number, Tensor) else number
