"""The common base of the forms of a world model that are arranged for speed."""

from __future__ import annotations

from typing import NoReturn, cast

from torch import Tensor

from dreamgym.models.base import Decodes, Segment, State, WorldModel, forward_hooks
from dreamgym.models.observations import Observation


@forward_hooks(lambda form: [form.model])
class FastForm(WorldModel):
    """A model for inference whose `step` is arranged for speed; see `WorldModel.prepare`.

    It holds the model that it was made from: everything but `step`, which a subclass provides,
    is that model's own, hooks included. A subclass computes the same function as `model.step`,
    without gradients with respect to the weights, from weights that it copied in its constructor:
    later changes of the model's weights, and moves to another device, do not reach them.

    Args:
        model: the model to arrange, on the device where it will run; put into eval mode.

    Attributes:
        model: that model.
    """

    def __init__(self, model: WorldModel) -> None:
        super().__init__(model.observation_space, model.action_space, model.config)
        self.model = model
        self.feature_dim, self.noise_dim = model.feature_dim, model.noise_dim
        self.has_uncertainty = model.has_uncertainty
        self.eval()

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

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; available if the model decodes (`decodes`)."""
        return cast(Decodes, self.model).decode(state)

    def loss(self, segment: Segment, noise: Tensor) -> NoReturn:
        """Refuse: a fast form cannot be fitted.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is for inference only; fit the {type(self.model).__name__} "
            "that it was prepared from (its `model`)"
        )
