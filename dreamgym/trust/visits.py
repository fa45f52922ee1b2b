"""Where a policy goes in dreams and which rewards it gets, beside what the data has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data.policies import PolicyLike
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.metrics import Bank, Limits
from dreamgym.models import Decodes
from dreamgym.models.observations import map_observation
from dreamgym.models.reduction import float64_on_host
from dreamgym.transfer.dream_episodes import DreamStep, run_dream_episodes
from dreamgym.transfer.evaluation import Evaluation
from dreamgym.world.world import World

EXAMPLES = 3
"""Farthest states that are kept as examples."""

KEPT_DISTANCES = 2000
"""Distances that are kept for a histogram."""


class Example(NamedTuple):
    """A dreamt state far from the data.

    Attributes:
        distance: distance in units of the limit.
        step: step of the dream.
        observation: decoded observation, JSON-plain; None where it is not one vector.
    """

    distance: float
    step: int
    observation: list[float] | None


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Dreams under one policy.

    Attributes:
        returns: (N,) undiscounted returns.
        lengths: (N,) steps.
        terminated: (N,) bool.
        distances: (D,) distances of dreamt states from the nearest start state in units of their
            limit, a sample of at most twice 2,000; empty where there is no limit.
        far: share of the steps beyond the limit of distance; the held-out data's own is 1%.
        unsure: share of the steps beyond the limit of uncertainty; None where there is none.
        reward_low: smallest reward of a step that did not end the dream.
        reward_high: largest reward of a step.
        rewards_outside: share of the steps with a reward above the data's largest one by more than
            the margin. Lower ones than the data's attract no policy, and dreams that leave the
            data have them by design.
        examples: the farthest states.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    distances: NDArray[np.float64]
    far: float | None
    unsure: float | None
    reward_low: float
    reward_high: float
    rewards_outside: float
    examples: list[Example]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values."""
        return {
            "return_mean": float(self.returns.mean()),
            "length_mean": float(self.lengths.mean()),
            "far": self.far,
            "unsure": self.unsure,
            "reward_low": self.reward_low,
            "reward_high": self.reward_high,
            "rewards_outside": self.rewards_outside,
            "distances": [round(float(value), 4) for value in self.distances],
            "examples": [each._asdict() for each in self.examples],
        }


@float32_by_default()
def visit(  # noqa: PLR0913 - who dreams what, how often and how long are six of them
    policy: PolicyLike,
    world: World,
    *,
    limits: Limits,
    episodes: int = 32,
    max_episode_steps: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Visit:
    """Run a policy for one episode in each of several dreams, and compare them with the limits.

    Args:
        policy: a name, a function, a `TrainedPolicy`, or anything else that `evaluate` takes; one
            without an attribute `view` is taken to see the world's default view.
        world: the world.
        limits: what the data has shown.
        episodes: number of dreams, from the starts of real episodes.
        max_episode_steps: steps after which a dream is truncated; None for the world's horizon.
        temperature: temperature of the dreams.
        seed: seed of the dreams and of the policy.
    """
    watch = Watch(limits, world)
    steps = world.horizon if max_episode_steps is None else max_episode_steps
    episodes_run = run_dream_episodes(
        policy,
        world,
        limits=np.full(episodes, steps),
        seed=seed,
        temperature=temperature,
        on_step=watch.add,
    )
    return watch.visit(episodes_run)


class Watch:
    """Sums over the steps of dreams in their first episode.

    Args:
        limits: what the data has shown.
        world: the world that dreams.
    """

    def __init__(self, limits: Limits, world: World) -> None:
        self.limits, self.world = limits, world
        self.bank: Bank | None = None
        self.distances: list[NDArray[Any]] = []
        self.steps = self.unsure = self.outside = self.age = 0
        self.low, self.high = np.inf, -np.inf
        self.examples: list[Example] = []

    def add(self, step: DreamStep) -> None:
        """Count one step."""
        counted, going = step.counted, step.counted & ~step.ended
        self._add_rewards(step.reward, counted, going)
        if self.limits.uncertainty is not None:
            above = np.asarray(step.info["uncertainty"]) > self.limits.uncertainty
            self.unsure += int((above & counted).sum())
        self.steps += int(counted.sum())
        self.age += 1
        if self.limits.distance is not None and going.any():
            self._add_states(step.env, going, self.limits.distance)

    def _add_rewards(self, reward: Any, counted: Any, going: Any) -> None:
        self.high = max(self.high, float(reward[counted].max(initial=-np.inf)))
        # the last reward of a dream that left the data is the worst return of all
        self.low = min(self.low, float(reward[going].min(initial=np.inf)))
        limits = self.limits
        if limits.reward_high is not None:
            above = reward > limits.reward_high + limits.reward_margin
            self.outside += int((above & counted).sum())

    def _add_states(self, env: DreamVectorEnv, going: Any, limit: float) -> None:
        model, dreams = env.engine.plain, env.dreams
        if dreams is None:
            return
        if self.bank is None:
            self.bank = Bank.of(model, self.world.starts.states)
        rows = torch.from_numpy(np.flatnonzero(going)).to(env.device)
        state = {key: leaf[rows] for key, leaf in dreams.model.items()}
        distance = float64_on_host(self.bank.distance(model.features(state))).numpy()
        distance /= max(limit, 1e-12)
        self.distances.append(distance)
        worst = int(distance.argmax())
        if len(self.examples) < EXAMPLES or distance[worst] > self.examples[-1].distance:
            one = {key: leaf[worst : worst + 1] for key, leaf in state.items()}
            shown = _observation(model, one)
            self.examples.append(Example(float(distance[worst]), self.age, shown))
            self.examples = sorted(self.examples, key=lambda each: -each.distance)[:EXAMPLES]

    def visit(self, dreams: Evaluation) -> Visit:
        """Return what was seen in these dreams."""
        distances = np.concatenate(self.distances) if self.distances else np.zeros(0)
        every = max(1, len(distances) // KEPT_DISTANCES)
        return Visit(
            returns=dreams.returns,
            lengths=dreams.lengths,
            terminated=~np.asarray(dreams.truncated, bool),
            distances=distances[::every],
            far=float((distances > 1).mean()) if len(distances) else None,
            unsure=None if self.limits.uncertainty is None else self.unsure / max(1, self.steps),
            reward_low=self.low if np.isfinite(self.low) else self.high,
            reward_high=self.high,
            rewards_outside=self.outside / max(1, self.steps),
            examples=self.examples,
        )


def _observation(model: Any, state: Any) -> list[float] | None:
    """Return the decoded observation of a single state, where it is a vector."""
    if not isinstance(model, Decodes):
        return None
    decoded = map_observation(lambda leaf: leaf[0], model.decode(state))
    if isinstance(decoded, dict) or decoded.ndim != 1:
        return None
    return [float(value) for value in decoded]
