"""Models whose step is in two: what needs only the noise, and the rest."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature


@runtime_checkable
class TakesNumbers(Protocol):
    """An arranged model that can turn the noise of many steps at once into what it samples with.

    `step(state, action, noise, temperature)` is `step_on(state, action, numbers(noise),
    temperature)`, bit for bit.
    """

    def numbers(self, noise: Tensor) -> tuple[Tensor, ...]:
        """What is drawn from uniforms, number by number.

        Args:
            noise: (..., noise_dim) uniforms in [0, 1).

        Returns:
            Tensors (..., any), of the same leading dimensions.
        """
        ...

    def step_on(
        self, state: State, action: Tensor, numbers: tuple[Tensor, ...], temperature: Temperature
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`.

        Args:
            state: leaves (B, ...).
            action: (B, ...) raw.
            numbers: leaves (B, any).
            temperature: a number or (B,).
        """
        ...
