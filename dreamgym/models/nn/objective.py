"""Units of the targets, and weights of the losses, of models with stochastic latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.codecs import Units

RewardUnits = Literal["raw", "two-hot", "symlog-two-hot", "standard", "sign"]
FreeNatsOf = Literal["step", "batch"]


SIGNS = 3
"""Signs of a reward: -1, 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """What a `RewardHead` predicts.

    Attributes:
        rewards: "raw" or "standard" predict the mean; "two-hot" predicts a categorical over bins
            at the symexp of evenly spaced points (arXiv 2301.04104, equation 10), and its output
            layer starts at zero; "symlog-two-hot" is the same for the reward's symlog, whose mean
            is then taken before the symexp; "sign" is a categorical over the reward's sign, as with
            rewards of Atari games, and predicts its mean.
        bins: bins of two-hot rewards; an odd number, so that one of them is at zero.
    """

    rewards: RewardUnits = "standard"
    bins: int = 255

    def __post_init__(self) -> None:
        check_choice("rewards", self.rewards, get_args(RewardUnits))
        if self.bins < 3 or self.bins % 2 == 0:
            raise ValueError(f"bins={self.bins}: expected an odd number of at least 3")

    @property
    def reward_outputs(self) -> int:
        """Outputs of the network that predicts rewards."""
        if self.rewards == "sign":
            return SIGNS
        return self.bins if self.is_two_hot else 1

    @property
    def is_two_hot(self) -> bool:
        """Whether rewards are predicted as categoricals."""
        return self.rewards in ("two-hot", "symlog-two-hot", "sign")


@dataclass(frozen=True, kw_only=True)
class LatentObjective(RewardObjective):
    """Targets and losses of a model with stochastic latents: units, and the weight of each loss.

    The loss of a predicted observation or reward is its squared error, summed over dimensions; with
    a weight of 0.5 that is the negative log likelihood of a unit-variance normal distribution, up
    to a constant.

    The defaults are for standardised vectors of an environment with little randomness: a high
    weight of the reconstruction and few free nats. A dream samples from a prior that may be as far
    from the posterior as the free nats allow, at every step, and that error accumulates.

    Attributes:
        vectors: units in which vectors are encoded and predicted: "raw", "symlog" (arXiv
            2301.04104, equation 9) or "standard", by the moments of the training data.
        image_size: side in pixels that images are resized to.
        vector: weight of the vectors' squared errors.
        image: weight of the images' squared errors, with pixels in [0, 1].
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
        dyn: weight of KL(stop_gradient(posterior) || prior), which trains the prior.
        rep: weight of KL(posterior || stop_gradient(prior)), which keeps the posterior predictable.
            Equal weights give the plain KL, 0.8 and 0.2 the KL balancing of DreamerV2.
        free_nats: free bits (nats) for each KL term.
        free_nats_of: whether the free nats apply to each step ("step") or to the mean over all
            steps ("batch").
    """

    vectors: Units = "standard"
    image_size: int = 64
    vector: float = 20.0
    image: float = 1.0
    reward: float = 1.0
    termination: float = 1.0
    dyn: float = 1.0
    rep: float = 0.1
    free_nats: float = 0.1
    free_nats_of: FreeNatsOf = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("vectors", self.vectors, get_args(Units))
        check_choice("free_nats_of", self.free_nats_of, get_args(FreeNatsOf))
        check_at_least(self, 1, "image_size")
        weights = ("vector", "image", "reward", "termination", "dyn", "rep")
        check_at_least(self, 0, *weights, "free_nats")

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of losses (), each times the weight of its name, or 1 if there is none."""
        weighted = (getattr(self, name, 1.0) * term for name, term in terms.items())
        return sum(weighted, start=torch.zeros(()))
