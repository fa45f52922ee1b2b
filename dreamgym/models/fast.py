"""The common base of the forms of a world model that are arranged for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from torch import Tensor

from dreamgym.models.base import Decodes, Segment, State, WorldModel
from dreamgym.models.observations import Observation


class FastForm(WorldModel):
    """A model for inference whose `step` is arranged for speed; see `WorldModel.prepare`.

    It holds the model that it was made from: everything but `step`, which a subclass provides,
    is that model's own. A subclass computes the same function as `model.step`, without gradients
    with respect to the weights, from weights that it copied in its constructor: later changes of
    the model's weights, and moves to another device, do not reach them.

    Args:
        model: the model to arrange, on the device where it will run; put into eval mode.

    Attributes:
        model: that model.
        decode: the model's method, present only if the model decodes.
    """

    decode: Callable[[State], Observation]

    def __init__(self, model: WorldModel) -> None:
        super().__init__(model.observation_space, model.action_space, model.config)
        self.model = model
        self.feature_dim, self.noise_dim = model.feature_dim, model.noise_dim
        self.has_uncertainty = model.has_uncertainty
        if isinstance(model, Decodes):
            self.decode = model.decode
        self.eval()

    @property
    def assumes_single_env_steps(self) -> bool:
        """See `WorldModel.assumes_single_env_steps`."""
        return self.model.assumes_single_env_steps

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        return self.model.initial(batch_size)

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`."""
        return self.model.observe(state, action, observation, noise)

    def features(self, state: State) -> Tensor:
        """See `WorldModel.features`."""
        return self.model.features(state)

    def loss(self, segment: Segment, noise: Tensor) -> NoReturn:
        """Refuse: a fast form cannot be fitted.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is for inference only; fit the {type(self.model).__name__} "
            "that it was prepared from (its `model`)"
        )
