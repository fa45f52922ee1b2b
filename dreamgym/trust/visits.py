"""Where a policy goes in a dream, and what the dream pays there, beside what the data has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data.policies import Policy, PolicyLike, check_action, make_policy
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.metrics import Bank, Limits
from dreamgym.models import Decodes
from dreamgym.models.observations import map_observation
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
        distances: distances from the nearest start state in units of their limit, a sample; empty
            where there is no limit.
        far: share of the steps beyond the limit of distance; the held-out data's own is 1%.
        unsure: share of the steps beyond the limit of uncertainty; None where there is none.
        reward_low: smallest reward of a step that did not end the dream.
        reward_high: largest reward of a step.
        paid_outside: share of the steps with a reward above the data's largest one by more than
            the margin. Lower ones than the data's attract no policy, and dreams that leave the
            data pay them by design.
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
    paid_outside: float
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
            "paid_outside": self.paid_outside,
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
        episodes: number of dreams, from the beginnings of real episodes.
        max_episode_steps: steps after which a dream is truncated; None for the world's horizon.
        temperature: temperature of the dreams.
        seed: seed of the dreams and of the policy.
    """
    env = DreamVectorEnv(
        world,
        episodes,
        device="cpu",
        view=getattr(policy, "view", None) or world.default_view,
        starts="beginnings",
        max_episode_steps=max_episode_steps,
        temperature=temperature,
        autoreset_mode="SameStep",
    )
    bank = None if limits.distance is None else Bank.of(env.engine.plain, world.starts.states)
    watch = _Watch(limits, bank, episodes)
    try:
        made = make_policy(policy, env, deterministic=True)
        observation, _ = env.reset(seed=seed)
        rows = list(range(episodes))
        made.reset(rows, [seed + row for row in rows])
        while watch.running.any():
            actions = [
                check_action(action, env.single_action_space)
                for action in made.act(observation, rows)
            ]
            observation, reward, terminated, truncated, info = env.step(np.stack(actions))
            ended = np.asarray(terminated) | np.asarray(truncated)
            watch.add(env, np.asarray(reward), np.asarray(terminated), ended, info)
            _restart(made, np.flatnonzero(ended).tolist(), seed)
    finally:
        env.close()
    return watch.visit()


def _restart(policy: Policy, rows: list[int], seed: int) -> None:
    """Reset rows whose dream restarted; their further steps are not counted."""
    if rows:
        policy.reset(rows, [seed + row for row in rows])


class _Watch:
    """Sums over the steps of dreams that still run their first episode."""

    def __init__(self, limits: Limits, bank: Bank | None, episodes: int) -> None:
        self.limits, self.bank = limits, bank
        self.running = np.ones(episodes, bool)
        self.returns, self.lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
        self.terminated = np.zeros(episodes, bool)
        self.distances: list[NDArray[Any]] = []
        self.steps = self.unsure = self.outside = 0
        self.low, self.high = np.inf, -np.inf
        self.examples: list[Example] = []

    def add(self, env: DreamVectorEnv, reward: Any, terminated: Any, ended: Any, info: Any) -> None:
        counted, going = self.running, self.running & ~ended
        self.returns += np.where(counted, reward, 0.0)
        self.lengths += counted
        self.terminated |= counted & terminated
        self._add_rewards(reward, counted, going)
        if self.limits.uncertainty is not None:
            above = np.asarray(info["uncertainty"]) > self.limits.uncertainty
            self.unsure += int((above & counted).sum())
        self.steps += int(counted.sum())
        if self.bank is not None and going.any():
            self._add_states(env, going)
        self.running = going

    def _add_rewards(self, reward: Any, counted: Any, going: Any) -> None:
        self.high = max(self.high, float(reward[counted].max(initial=-np.inf)))
        # the last reward of a dream that left the data is the worst return of all
        self.low = min(self.low, float(reward[going].min(initial=np.inf)))
        limits = self.limits
        if limits.reward_high is not None:
            above = reward > limits.reward_high + limits.reward_margin
            self.outside += int((above & counted).sum())

    def _add_states(self, env: DreamVectorEnv, going: Any) -> None:
        model, bank, limit = env.engine.plain, self.bank, self.limits.distance
        dreams = env.dreams
        if bank is None or limit is None or dreams is None:
            return
        rows = torch.from_numpy(np.flatnonzero(going))
        state = {key: leaf[rows] for key, leaf in dreams.model.items()}
        distance = bank.distance(model.features(state)).double().numpy() / max(limit, 1e-12)
        self.distances.append(distance)
        worst = int(distance.argmax())
        if len(self.examples) < EXAMPLES or distance[worst] > self.examples[-1].distance:
            one = {key: leaf[worst : worst + 1] for key, leaf in state.items()}
            step = int(self.lengths[int(rows[worst])])
            self.examples.append(Example(float(distance[worst]), step, _observation(model, one)))
            self.examples = sorted(self.examples, key=lambda each: -each.distance)[:EXAMPLES]

    def visit(self) -> Visit:
        """Return what was seen."""
        distances = np.concatenate(self.distances) if self.distances else np.zeros(0)
        every = max(1, len(distances) // KEPT_DISTANCES)
        return Visit(
            returns=self.returns,
            lengths=self.lengths,
            terminated=self.terminated,
            distances=distances[::every],
            far=float((distances > 1).mean()) if len(distances) else None,
            unsure=None if self.limits.uncertainty is None else self.unsure / max(1, self.steps),
            reward_low=self.low if np.isfinite(self.low) else self.high,
            reward_high=self.high,
            paid_outside=self.outside / max(1, self.steps),
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
