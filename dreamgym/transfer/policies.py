"""One way to ask any policy for actions: batches of observations in, batches of actions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data import FrameSkip, frame_skip_of
from dreamgym.errors import TransferError

BATCH = 32  # rows of every call to a policy, see `Actor.act`


@runtime_checkable
class Predicts(Protocol):
    """A policy as Stable-Baselines3 has it."""

    def predict(self, observation: Any, *, deterministic: bool = False) -> Any:
        """Actions for a batch of observations: themselves, or a tuple that starts with them."""
        ...


Policy = Predicts | Callable[[Any], Any]


class PolicyRunner:
    """Asks one policy for the actions of many episodes."""

    def __init__(self, policy: Policy, env: gym.Env, *, deterministic: bool = True) -> None:
        """Check that `policy` can act in `env`.

        Args:
            policy: anything with `predict(observations, deterministic=)`, or a callable from a
                batch of observations to a batch of actions.
            env: one environment of the kind to act in.
            deterministic: passed to `predict`; a callable decides for itself.

        Raises:
            TransferError: it is neither, or its spaces (where it has them) do not fit.
        """
        if not isinstance(policy, Predicts) and not callable(policy):
            raise TransferError(
                f"a policy of type {type(policy).__name__} was given; wanted something with "
                ".predict(observations, deterministic=), a callable from observations to actions, "
                "or 'random'"
            )
        check_spaces(policy, env)
        self._policy = policy
        self._deterministic = deterministic
        self._action_space = env.action_space
        self._observation_space = env.observation_space

    def act(self, observations: list[Any]) -> list[Any]:
        """Actions for the observations of at most `BATCH` episodes.

        The policy is always handed `BATCH` rows, the spare ones filled with the first: a matrix
        product may round differently for another number of rows, and an episode must not depend
        on how many run beside it.

        Args:
            observations: n real observations, 1 <= n <= BATCH.

        Returns:
            n actions, each in the environment's action space's dtype.

        Raises:
            TransferError: the policy's answer is not one action for each row.
        """
        count = len(observations)
        rows = observations + [observations[0]] * (BATCH - count)
        batch = _stack(self._observation_space, rows)
        if isinstance(self._policy, Predicts):
            answer = self._policy.predict(batch, deterministic=self._deterministic)
            answer = answer[0] if isinstance(answer, tuple) else answer
        else:
            answer = self._policy(batch)
        return self._rows(answer, count)

    def _rows(self, answer: Any, count: int) -> list[Any]:
        actions = np.asarray(answer)
        space = self._action_space
        wanted = (BATCH, *(space.shape or ()))
        if actions.shape != wanted:
            raise TransferError(
                f"the policy answered {BATCH} observations with an array of shape "
                f"{actions.shape}; wanted {wanted}: one action of {space} a row"
            )
        if isinstance(space, gym.spaces.Discrete):
            return [space.dtype.type(action) for action in actions[:count]]
        return [np.asarray(action, space.dtype) for action in actions[:count]]


def check_spaces(policy: Any, env: gym.Env) -> None:
    """Refuse a policy whose spaces or frame skip are not those of `env`; one without them passes.

    Shapes, dtypes' kinds and action bounds must agree; observation bounds may differ, because a
    policy does not depend on them.

    Raises:
        TransferError: naming both spaces, or both frame skips.
    """
    skip = getattr(policy, "frame_skip", None)
    if isinstance(skip, FrameSkip) and skip != frame_skip_of(env):
        raise TransferError(
            f"the policy acts with {skip}, {_name(env)} has {frame_skip_of(env)}; use the world's "
            "own real environment (world.real_env), or wrap it in dreamgym.data.SkipFrames"
        )
    for role in ("observation_space", "action_space"):
        own, wanted = getattr(policy, role, None), getattr(env, role)
        if isinstance(own, gym.Space) and not _fits(own, wanted, bounds=role == "action_space"):
            raise TransferError(
                f"the policy's {role.replace('_', ' ')} is {own}, that of {_name(env)} is "
                f"{wanted}; "
                "use the environment the policy was trained for, or (a policy that sees the latent "
                "view) wrap it in dreamgym.transfer.LatentObservation(env, world)"
            )


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec is not None else str(env)


def _fits(own: gym.Space, wanted: gym.Space, *, bounds: bool) -> bool:
    if isinstance(own, gym.spaces.Dict) and isinstance(wanted, gym.spaces.Dict):
        return own.spaces.keys() == wanted.spaces.keys() and all(
            _fits(own[key], wanted[key], bounds=bounds) for key in own.spaces
        )
    if isinstance(own, gym.spaces.Box) and isinstance(wanted, gym.spaces.Box):
        same = own.shape == wanted.shape and np.dtype(own.dtype).kind == np.dtype(wanted.dtype).kind
        return same and (
            not bounds or (np.allclose(own.low, wanted.low) and np.allclose(own.high, wanted.high))
        )
    return own == wanted


def _stack(space: gym.Space, rows: list[Any]) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: _stack(part, [row[key] for row in rows]) for key, part in space.spaces.items()}
    stacked: NDArray[Any] = np.stack([np.asarray(row) for row in rows])
    return stacked
