"""The JEPA's step arranged for speed: the same function as `JEPA.step`.

The predictor is `jepa_arranged_predictor`. Besides, what the probe reads off a predicted embedding
is read once, and noise is left out where there is no spread.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.arranged_layers import Packing
from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.compiled_parts import Compiler
from dreamgym.models.jepa import GROUNDING, JEPA
from dreamgym.models.jepa_arranged_predictor import ArrangedPredictor, projection
from dreamgym.models.jepa_senses import Probe
from dreamgym.models.observations import assemble
from dreamgym.models.sampling import is_one, per_row, quick_normal


class ArrangedJEPA(JEPA):
    """A JEPA for inference with a fixed number of rows; see `JEPA.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        packing: rows of every step, and the products' dtype and device.
    """

    def __init__(self, model: JEPA, packing: Packing) -> None:
        super(JEPA, self).__init__(model.observation_space, model.action_space, model.config)
        self.feature_dim, self.noise_dim = model.feature_dim, model.noise_dim
        for name in ("inverse", "probe", "target"):
            setattr(self, name, None)
        for name, part in model.named_children():
            setattr(self, name, part)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        if self.probe is not None and self.probe.whole:
            self.decode = self._decode
        self._predict = ArrangedPredictor(model, packing)
        self._kept = None if self.carrier is None else self.carrier.persistence
        self._certain = not bool(model.residual.any())
        self._judge = packing.chain(model.heads)
        self._probed = Probed(model, packing) if model.probe and model.senses.sizes else None
        self.eval()

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded = self.encode_action(action)
        old = state["embeddings"][:, -1]
        free = new = self._expected(state, encoded)
        if not self._certain:
            spread = self.residual
            if not is_one(temperature):
                spread = spread * per_row(temperature, old) ** 0.5
            free = new = torch.addcmul(free, spread, quick_normal(noise))
        unknown = None
        if self._probed is not None:
            new, unknown = self._probed(free)
        reward, termination = self._judge(torch.cat([new, new - old, encoded], -1)).unbind(-1)
        reward, termination = reward * self.reward_std + self.reward_mean, termination.sigmoid()
        if unknown is not None:
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        return self._move(state, encoded, new, self._still_unread(state)), prediction

    def compile_parts(self, compiler: Compiler | None) -> None:
        """See `CompilesParts.compile_parts`."""
        self._predict.compiled = compiler and compiler(self._predict.some)

    def _still_unread(self, state: State) -> Tensor | None:
        """See `JEPA._still_unread`."""
        return None if self._kept is None else state["unread"] * self._kept

    def _expected(self, state: State, encoded: Tensor) -> Tensor:
        """The expected next embedding (B, D) after an encoded action (B, A)."""
        actions = torch.cat([state["actions"][:, 1:], encoded.unsqueeze(1)], 1)
        seen = F.pad(state["seen"][:, :-1] > 0.5, (0, 1), value=True)
        projected = self._predict(state["embeddings"], actions, seen)
        if self.config.predicts == "change":
            return state["embeddings"][:, -1] + projected
        return projected


class Probed:
    """What the probe of a JEPA with vectors has to say of a predicted embedding.

    Args:
        model: whose weights to take.
        packing: of the products.
    """

    def __init__(self, model: JEPA, packing: Packing) -> None:
        if not isinstance(model.probe, Probe):
            raise ValueError("this JEPA has no probe; give probe='vectors' or 'all'")
        self.probe, self.senses, self.margin = model.probe, model.senses, model.config.range_margin
        linear, (widen, _, narrow) = self.probe.linear, self.probe.bent
        self.size = linear.out_features
        weight = torch.cat([linear.weight, widen.weight])  # type: ignore[list-item]
        self.first = packing.linear(weight, torch.cat([linear.bias, widen.bias]))  # type: ignore[list-item]
        self.narrow = packing.linear(narrow.weight, None)  # type: ignore[arg-type]
        self.grounds = not self.senses.image_keys
        if self.grounds:
            self.encode = packing.chain(model.senses.encode_vectors)
            self.project = projection(model.projector, packing)

    def __call__(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, D) pulled to those of observations, and where (B,) they left them."""
        read = self._read(free)
        unknown = self.probe.outside(read, self.margin)
        if not self.grounds:
            return free, unknown
        once = self._embed(read)
        near = 2.0 * once - self._embed(self._read(once))
        return free + GROUNDING * (near - free), unknown

    def _read(self, embeddings: Tensor) -> Tensor:
        straight, bent = self.first(embeddings).tensor_split((self.size,), -1)
        return straight + self.narrow(F.silu(bent))

    def _embed(self, vectors: Tensor) -> Tensor:
        """The embedding of the observation that vectors (B, n) stand for."""
        seen = self.senses.standard(assemble(self.probe.shown(vectors)))
        return self.project(self.encode(seen))
