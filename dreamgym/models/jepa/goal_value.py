"""The value of a goal: how many steps lead from one embedding to another, learned offline.

The distance between embeddings says how alike two observations are, not how far one is from the
other: behind a wall it misleads a planner. In arXiv 2601.00844 minus the distance is a value
function, trained by the expectile regression of IQL (Kostrikov et al. 2021, arXiv 2110.06169, eq.
5). There the value shapes the encoder; here it has an embedding of its own on top, so that the
world model is the same with it and without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamgym.models.jepa.config import JEPAConfig
from dreamgym.models.nn.layers import mlp
from dreamgym.models.reduction import masked_mean


class GoalValue(nn.Module):
    """V(s, g) = -|f(s) - f(g)|, for a cost of one a step until the goal, discounted.

    With the discount d, a goal that is n steps away has the value -(1 - d^n) / (1 - d). There is no
    slow target network: with IQL's rate of 0.005 a value falls by one in 200 updates, and a fit has
    a few thousand.

    Args:
        width: width D of the model's embeddings.
        config: config of the model.
    """

    def __init__(self, width: int, config: JEPAConfig) -> None:
        super().__init__()
        self.objective = config.objective
        self.network = mlp(width, config.width, config.goal_value)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return f of embeddings: (..., D) as (..., goal_value)."""
        return self.network(embeddings)

    def error(self, embeddings: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Return the expectile loss of one-step values, for goals of two kinds in equal parts.

        One kind is later in the same segment, the other is anywhere in another one; values of
        goals further away than a segment come from bootstrapping.

        Args:
            embeddings: (B, L + 1, D), without gradient.
            observed: (B, L + 1) bool, false on padding.
            noise: (B, L + 1, n) uniforms; the first and the last of each choose the goals.
        """
        batch, times = observed.shape
        rows = torch.arange(batch, device=noise.device).unsqueeze(1)
        now = torch.arange(times - 1, device=noise.device)
        first, last = noise[:, :-1, 0], noise[:, :-1, -1]
        later = now + 1 + (first * (times - 1 - now)).long()
        others = (rows + 1 + (last * (batch - 1)).long()) % batch
        anywhere = (first * times).long()
        here = self.network(embeddings)
        errors = []
        for row, time in ((rows, later), (others, anywhere)):
            value = -(here[:, :-1] - here[row, time]).norm(dim=-1)
            with torch.no_grad():
                following = -(here[:, 1:] - here[row, time]).norm(dim=-1)
                difference = -1.0 + self.objective.value_discount * following - value
                share = self.objective.expectile
                weight = torch.where(difference > 0, share, 1.0 - share)
            target = difference + value.detach()
            mask = observed[:, 1:] & observed[row, time]
            errors.append(masked_mean(weight * (target - value).square(), mask))
        return torch.stack(errors).mean()
