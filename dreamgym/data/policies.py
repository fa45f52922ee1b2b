"""Policies: one form for recording, evaluation, transfer and the command line.

Users pass a name, a function, an object with `predict`, or a `Policy`. `make_policy` turns each of
them into a `Policy`, which acts in several episodes side by side and is reset when one starts.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from dreamgym._settings import closest
from dreamgym.data.agent_wrappers import wrappers_of
from dreamgym.data.frame_skip import FrameSkip, frame_skip_of
from dreamgym.data.layout import index_rows
from dreamgym.errors import PolicyError

DEFAULT_STICKINESS = 0.8
POLICY_NAMES = ("random", "sticky-random", "sticky", "held")
"""Names of random policies, without the number after a colon."""


@runtime_checkable
class Policy(Protocol):
    """Chooses the actions of episodes that run side by side, one episode a row.

    A row is a number that stays with an episode from its `reset` on. What a policy remembers, such
    as a recurrent state or a random generator, it keeps by row.

    It may have further attributes: `observation_space` and `action_space`, which must fit the
    environment; `frame_skip`, the `FrameSkip` that its actions are for; and `view`.

    Attributes:
        name: stored in datasets; different policies have different names.
    """

    name: str

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each of `rows`: forget the previous one and seed all randomness."""
        ...

    def act(self, observations: Any, rows: Sequence[int]) -> Sequence[Any]:
        """Choose actions.

        Args:
            observations: the observations of `rows`: a list of them, or a batch (N, ...), which is
                an array or a dict of arrays.
            rows: N row numbers, each of which was reset before.

        Returns:
            N actions.
        """
        ...


@runtime_checkable
class Predicts(Protocol):
    """An object with Stable-Baselines3's `predict`, which acts on batches of observations.

    `state` and `episode_start` are passed where the method takes them, so recurrent policies keep
    their memory. Where the object has a method `seeded(seed)`, actions are sampled inside that
    context manager, which makes them reproducible; otherwise the object's own generator decides.
    """

    def predict(self, observation: Any, *, deterministic: bool = False) -> Any:
        """Return the actions of a batch, or a tuple (actions, state)."""
        ...


PolicyLike = str | Callable[[Any], Any] | Predicts | Policy
"""What users may pass as a policy; see `make_policy`."""


def make_policy(
    policy: PolicyLike,
    env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
    *,
    deterministic: bool = False,
    min_batch: int = 1,
    unroll: bool = True,
) -> Policy:
    """Make a `Policy` of what a user passed, and check that it can act in `env`.

    Args:
        policy: one of

            - `"random"`; `"sticky-random"` or `"sticky:P"`, which repeats the last action with
              probability P; `"held:N"`, random actions that are each held for N steps;
            - a function from one observation to one action;
            - an object with `predict(observations, state, episode_start, deterministic)`, which
              acts on batches, such as `dreamgym.train.TrainedPolicy` or a Stable-Baselines3 model,
              whose `VecNormalize`, `VecFrameStack` and `VecTransposeImage` are applied; or that
              method itself;
            - a `Policy`, such as `dreamgym.transfer.LatentAgent`.
        env: the environment to act in, single or vectorised.
        deterministic: whether `predict` returns the most likely action instead of a sample.
        min_batch: smallest batch that `predict` is called with; missing rows are filled up.
        unroll: whether a policy with a frame skip may act in an environment without one: its
            actions are then spread over the steps that they are for.

    Raises:
        PolicyError: there is no policy of that name, the value is not a policy, its spaces or
            frame skip do not fit the environment, or it was trained behind wrappers that are
            missing here.
    """
    made = _as_policy(policy, env, deterministic)
    if isinstance(made, PredictPolicy):
        made = made.with_min_batch(min_batch)
    if isinstance(env, gym.vector.VectorEnv):
        return made
    if isinstance(made, PredictPolicy):
        made.wrappers.check_env(env)
        made.use_masks_of([env])
    skip = getattr(made, "frame_skip", None)
    spread = unroll and isinstance(skip, FrameSkip) and frame_skip_of(env) == FrameSkip() != skip
    check_spaces(made, env, unroll=spread)
    if spread and isinstance(skip, FrameSkip):
        return UnrolledPolicy(made, skip, env.action_space)
    return made


def _as_policy(policy: Any, env: Any, deterministic: bool) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Predicts):
        return PredictPolicy(policy, deterministic=deterministic)
    owner = getattr(policy, "__self__", None)
    if getattr(policy, "__name__", "") == "predict" and isinstance(owner, Predicts):
        return PredictPolicy(owner, deterministic=deterministic)
    if callable(policy):
        return FunctionPolicy(policy)
    vectorised = isinstance(env, gym.vector.VectorEnv)
    space = env.single_action_space if vectorised else env.action_space
    if isinstance(policy, str):
        return _named_policy(policy, space)
    raise PolicyError(
        f"a policy of type {type(policy).__name__} was given; expected {_EXPECTED}. A policy in a "
        "file is read with dreamgym.train.load_policy(path)"
    )


_EXPECTED = (
    "'random', 'sticky-random', 'sticky:0.8' (the probability of repeating an action), 'held:4' "
    "(the steps for which an action is held), a function from one observation to one action, or an "
    "object with .predict(observations, deterministic=)"
)


def _named_policy(text: str, space: gym.Space[Any]) -> Policy:
    name, _, value = text.partition(":")
    if text == "random":
        return RandomPolicy(space)
    if text in ("sticky-random", "sticky"):
        return StickyRandomPolicy(space, DEFAULT_STICKINESS)
    if name in ("sticky", "sticky-random"):
        try:
            stickiness = float(value)
        except ValueError:
            raise PolicyError(
                f"policy {text!r} has no number after the colon; expected e.g. 'sticky:0.8'"
            ) from None
        return StickyRandomPolicy(space, stickiness)
    if name == "held":
        if not value.isdecimal():
            raise PolicyError(
                f"policy {text!r} has no whole number after the colon; expected e.g. 'held:4'"
            )
        return HeldRandomPolicy(space, int(value))
    near = closest(name, POLICY_NAMES)
    hint = f"did you mean {near!r}? " if near else ""
    raise PolicyError(
        f"there is no policy {text!r}; {hint}expected {_EXPECTED}. A policy in a file is read with "
        "dreamgym.train.load_policy(path)"
    )


def draws_at_random(name: str) -> bool:
    """Return whether the policy of this name draws its actions without regard to observations.

    Args:
        name: its name, or those of several, joined by " + ".
    """
    return all(each.partition(":")[0] in POLICY_NAMES for each in name.split(" + "))


class _RowwiseRandomPolicy(ABC):
    """Base of the random policies: each row has its own generator, so rows are independent."""

    def __init__(self, action_space: gym.Space[Any]) -> None:
        self._action_space = copy.deepcopy(action_space)
        self._spaces: dict[int, gym.Space[Any]] = {}
        self._actions: dict[int, Iterator[Any]] = {}

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        for row, seed in zip(rows, seeds, strict=True):
            if row not in self._spaces:
                self._spaces[row] = copy.deepcopy(self._action_space)
            self._spaces[row].seed(seed)
            self._actions[row] = self._episode(self._spaces[row], seed)

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`; the observations do not matter."""
        return [next(self._actions[row]) for row in rows]

    @abstractmethod
    def _episode(self, space: gym.Space[Any], seed: int) -> Iterator[Any]:
        """Yield the actions of one episode from a space that was just seeded."""


class RandomPolicy(_RowwiseRandomPolicy):
    """Independent actions, drawn from the action space."""

    name = "random"

    def _episode(self, space: gym.Space[Any], seed: int) -> Iterator[Any]:
        while True:
            yield space.sample()


class StickyRandomPolicy(_RowwiseRandomPolicy):
    """Random actions, each of which repeats the previous one with a fixed probability.

    Independent actions cancel out before a sluggish system has moved; sticky ones reach further.

    Args:
        action_space: the space that actions are drawn from.
        stickiness: probability of repeating the previous action, in [0, 1).
    """

    def __init__(self, action_space: gym.Space[Any], stickiness: float) -> None:
        if not 0.0 <= stickiness < 1.0:
            raise PolicyError(
                f"the stickiness is {stickiness}; expected at least 0 and below 1, as in "
                "'sticky:0.8'"
            )
        super().__init__(action_space)
        self.name = f"sticky:{stickiness:g}"
        self._stickiness = stickiness

    def _episode(self, space: gym.Space[Any], seed: int) -> Iterator[Any]:
        generator = np.random.default_rng([seed, 1])
        action = space.sample()
        while True:
            yield action
            if generator.random() >= self._stickiness:
                action = space.sample()


class HeldRandomPolicy(_RowwiseRandomPolicy):
    """Random actions, each held for a fixed number of steps: data for a "repeated" frame skip.

    Args:
        action_space: the space that actions are drawn from.
        steps: steps for which an action is held, at least 1.
    """

    def __init__(self, action_space: gym.Space[Any], steps: int) -> None:
        if steps < 1:
            raise PolicyError(
                f"actions are held for {steps} steps; expected at least 1, as in 'held:4'"
            )
        super().__init__(action_space)
        self.name = f"held:{steps}"
        self._steps = steps

    def _episode(self, space: gym.Space[Any], seed: int) -> Iterator[Any]:
        while True:
            action = space.sample()
            for _ in range(self._steps):
                yield action


class FunctionPolicy:
    """A function from one observation to one action. It is not seeded.

    Args:
        function: the function, which is called once for each row. It may return (action, None), as
            `predict` of a policy without memory does.
        name: the policy's name; by default `callable:` and the function's qualified name.
    """

    def __init__(self, function: Callable[[Any], Any], *, name: str | None = None) -> None:
        qualified = getattr(function, "__qualname__", type(function).__qualname__)
        self.name = name or f"callable:{qualified}"
        self._function = function
        self._works = False

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`; a function has nothing to reset."""

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`.

        Raises:
            PolicyError: the function takes a batch, or returns a state, which it is not given back.
        """
        return [self._call(observation) for observation in as_rows(observations)]

    def _call(self, observation: Any) -> Any:
        try:
            answer = self._function(observation)
        except Exception as error:
            if not self._works and self._takes_a_batch(observation):
                raise PolicyError(
                    "the policy is a function of a batch of observations (N, ...), and a function "
                    "is given one observation at a time; pass "
                    "lambda observation: function(observation[None])[0], or an object with "
                    "predict(observations, deterministic=), which is given a batch"
                ) from error
            raise
        self._works = True
        if not isinstance(answer, tuple) or len(answer) != 2 or _are_numbers(answer):
            return _without_gradient(answer)
        action, state = answer
        if state is not None:
            raise PolicyError(
                "the policy is a function that returned (action, state), and a function is not "
                "given its state at the next step, nor informed of the start of an episode; pass "
                "the object with predict(observations, state, episode_start, deterministic) itself"
            )
        return _without_gradient(action)

    def _takes_a_batch(self, observation: Any) -> bool:
        try:
            return len(self._function(as_batch([observation]))) == 1
        except Exception:  # it fails for another reason, which the first error tells
            return False


def _without_gradient(action: Any) -> Any:
    """Return a torch tensor, perhaps with a gradient or on a GPU, as one that NumPy takes."""
    return action.detach().cpu() if hasattr(action, "detach") else action


def _are_numbers(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float | np.generic) for value in values)


class PredictPolicy:
    """An object with `predict` as a `Policy`: batches its rows and keeps its recurrent state.

    Where the object is a live agent of a learner library, the wrappers that it was trained behind
    are applied to the observations; see `dreamgym.data.agent_wrappers`.

    Every call has the same number of rows, so that the recurrent state keeps its shape; rows that
    have no episode are filled with the observation of another one.

    Args:
        policy: the object; see `Predicts`.
        name: the policy's name; by default the object's `name`, or its class.
        deterministic: whether to take the most likely action; else actions are sampled.
        min_batch: smallest batch that `predict` is called with.

    Attributes:
        wrappers: what the object was trained behind.

    Raises:
        PolicyError: the object was trained behind statistics that it was loaded without.
    """

    def __init__(
        self,
        policy: Predicts,
        *,
        name: str | None = None,
        deterministic: bool = False,
        min_batch: int = 1,
    ) -> None:
        how = "deterministic" if deterministic else "sampled"
        own_name = getattr(policy, "name", None)
        base = own_name if isinstance(own_name, str) else f"predict:{type(policy).__qualname__}"
        self.name = name or f"{base} {how}"
        self._policy = policy
        self._deterministic = deterministic
        self._batch_size = min_batch
        self._keywords = _memory_keywords(policy)
        self.wrappers = wrappers_of(policy)
        self._mask_envs: Sequence[gym.Env[Any, Any]] = []
        self._state: Any = None
        self._starting: set[int] = set()
        self._sampling_seeds: dict[int, int] = {}

    @property
    def observation_space(self) -> gym.Space[Any] | None:
        """Observation space that the policy was made for; None where it has none."""
        return self.wrappers.observation_space or getattr(self._policy, "observation_space", None)

    @property
    def action_space(self) -> gym.Space[Any] | None:
        """Action space that the policy was made for; None where it has none."""
        return getattr(self._policy, "action_space", None)

    @property
    def frame_skip(self) -> FrameSkip | None:
        """Frame skip that an action is for; None where the policy has none."""
        return getattr(self._policy, "frame_skip", None)

    @property
    def view(self) -> str | None:
        """View of a world that the policy sees, "observation" or "latent"; None where unknown."""
        return getattr(self._policy, "view", None)

    def with_min_batch(self, min_batch: int) -> PredictPolicy:
        """Return this policy, without memory, for batches of at least `min_batch` rows."""
        return PredictPolicy(
            self._policy, name=self.name, deterministic=self._deterministic, min_batch=min_batch
        )

    def use_masks_of(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        """Give `predict` the action masks of environments, where it takes them and they have them.

        Args:
            envs: the environment of each row.
        """
        takes_masks = "action_masks" in _parameters(self._policy)
        if takes_masks and envs[0].has_wrapper_attr("action_masks"):
            self._mask_envs = envs

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        self._batch_size = max(self._batch_size, 1 + max(rows))
        self._starting.update(rows)
        self._sampling_seeds.update(zip(rows, seeds, strict=True))

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`.

        Raises:
            PolicyError: `predict` did not return one action a row.
        """
        source = np.zeros(self._batch_size, np.intp)
        source[list(rows)] = np.arange(len(rows))
        starts = np.zeros(self._batch_size, bool)
        starts[list(self._starting)] = True
        acting = np.zeros(self._batch_size, bool)
        acting[list(rows)] = True
        batch = self.wrappers(index_rows(as_batch(observations), source), starts, acting)
        memory = {"state": self._state, "episode_start": starts}
        masks = {}
        if self._mask_envs:
            envs = [self._mask_envs[row] for row in rows]
            listed = [env.get_wrapper_attr("action_masks")() for env in envs]
            masks["action_masks"] = np.stack(listed)[source]
        with self._sampling(rows):
            outputs = self._policy.predict(
                batch,
                deterministic=self._deterministic,
                **{key: memory[key] for key in self._keywords},
                **masks,
            )
        self._starting.difference_update(rows)
        if isinstance(outputs, tuple):
            self._state = outputs[1] if len(outputs) > 1 else None
            outputs = outputs[0]
        actions = np.asarray(_without_gradient(outputs))
        if actions.shape[:1] != (self._batch_size,):
            raise PolicyError(
                f"the policy's predict() returned actions of shape {actions.shape} for a batch of "
                f"{self._batch_size} observations; expected ({self._batch_size}, ...), one action "
                "a row"
            )
        return [actions[row] for row in rows]

    def _sampling(self, rows: Sequence[int]) -> AbstractContextManager[Any]:
        seeded = getattr(self._policy, "seeded", None)
        if self._deterministic or seeded is None:
            return nullcontext()
        seed = sum(self._sampling_seeds[row] for row in rows) % 2**63
        for row in rows:
            self._sampling_seeds[row] += 1  # the next step of the episode
        manager: AbstractContextManager[Any] = seeded(seed)
        return manager


class UnrolledPolicy:
    """A policy with a frame skip in an environment without one.

    The policy acts once for each block of steps that one of its actions covers.

    Args:
        policy: the policy.
        frame_skip: the frame skip that its actions are for.
        action_space: the environment's action space.
    """

    def __init__(self, policy: Policy, frame_skip: FrameSkip, action_space: gym.Space[Any]) -> None:
        self.name = policy.name
        self._policy = policy
        self._frame_skip = frame_skip
        self._action_space = action_space
        self._queues: dict[int, deque[Any]] = {}

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        self._policy.reset(rows, seeds)
        self._queues.update({row: deque() for row in rows})

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`."""
        due = [index for index, row in enumerate(rows) if not self._queues[row]]
        if due:
            listed = as_rows(observations)
            due_rows = [rows[index] for index in due]
            actions = self._policy.act([listed[index] for index in due], due_rows)
            for row, action in zip(due_rows, actions, strict=True):
                self._queues[row].extend(self._frame_skip.split(action, self._action_space))
        return [self._queues[row].popleft() for row in rows]


def _memory_keywords(policy: Predicts) -> list[str]:
    """Return which of `state` and `episode_start` the policy's `predict` takes."""
    parameters = _parameters(policy)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return ["state", "episode_start"]
    return [name for name in ("state", "episode_start") if name in parameters]


def _parameters(policy: Predicts) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the policy's `predict`; none where it is implemented in C."""
    try:
        return inspect.signature(policy.predict).parameters
    except (TypeError, ValueError):
        return {}


def as_batch(observations: Any) -> Any:
    """Stack a list of observations into one batch (N, ...); return a batch as it is."""
    if not isinstance(observations, list):
        return observations
    if isinstance(observations[0], dict):
        return {
            key: as_batch([observation[key] for observation in observations])
            for key in observations[0]
        }
    return np.stack([np.asarray(observation) for observation in observations])


def as_rows(observations: Any) -> list[Any]:
    """Split a batch (N, ...) into a list of observations; return a list as it is."""
    if not isinstance(observations, dict):
        return list(observations)
    parts = {key: as_rows(part) for key, part in observations.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def check_action(action: Any, space: gym.Space[Any]) -> Any:
    """Return an action in the dtype of its space.

    Raises:
        PolicyError: it has another shape, or is not a whole number where the space is discrete.
    """
    array = np.asarray(action)
    expected = space.shape or ()
    if array.shape != expected:
        raise PolicyError(
            f"the policy returned an action of shape {array.shape}; expected {expected}, one "
            f"action of {space}. A function is given one observation at a time; an object with "
            "predict() is given a batch"
        )
    if space.dtype is not None and space.dtype.kind in "iu" and array.dtype.kind not in "biu":
        raise PolicyError(
            f"the policy returned an action of dtype {array.dtype}; expected whole numbers, "
            f"because the action space is {space}"
        )
    return array.astype(space.dtype, copy=False)[()]


def check_spaces(policy: Any, env: gym.Env[Any, Any], *, unroll: bool = False) -> None:
    """Check that a policy's spaces and frame skip, where it has them, are those of `env`.

    Shapes, kinds of dtypes and action bounds must agree. Observation bounds may differ, because a
    policy does not depend on them.

    Args:
        policy: the policy.
        env: the environment to act in.
        unroll: whether the policy's actions are spread over the steps of its frame skip.

    Raises:
        PolicyError: they differ; the message names both.
    """
    skip = getattr(policy, "frame_skip", None)
    if isinstance(skip, FrameSkip) and skip != frame_skip_of(env) and not unroll:
        raise PolicyError(
            f"the policy acts with {skip}, {_name(env)} has {frame_skip_of(env)}; use the world's "
            "own real environment (world.real_env), or wrap it in dreamgym.data.SkipFrames"
        )
    action_space = env.action_space
    if unroll and isinstance(skip, FrameSkip):
        action_space = skip.space(action_space)
    for role, expected in (
        ("observation space", env.observation_space),
        ("action space", action_space),
    ):
        own = getattr(policy, role.replace(" ", "_"), None)
        if isinstance(own, gym.Space) and not _fits(own, expected, bounds=role == "action space"):
            raise PolicyError(
                f"the policy's {role} is {own}, that of {_name(env)} is {expected}; "
                + _remedy(policy)
            )


def _remedy(policy: Any) -> str:
    if getattr(policy, "view", None) == "latent":
        return (
            "the policy sees the latent view of a world: pass "
            "dreamgym.transfer.LatentAgent(policy, world), or wrap the environment in "
            "dreamgym.transfer.LatentObservation(env, world)"
        )
    return "use the environment that the policy was trained for"


def _name(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else str(env)


def _fits(own: gym.Space[Any], expected: gym.Space[Any], *, bounds: bool) -> bool:
    if isinstance(own, gym.spaces.Dict) and isinstance(expected, gym.spaces.Dict):
        return own.spaces.keys() == expected.spaces.keys() and all(
            _fits(own[key], expected[key], bounds=bounds) for key in own.spaces
        )
    if isinstance(own, gym.spaces.Box) and isinstance(expected, gym.spaces.Box):
        same_kind = np.dtype(own.dtype).kind == np.dtype(expected.dtype).kind
        return (own.shape == expected.shape and same_kind) and (
            not bounds
            or (np.allclose(own.low, expected.low) and np.allclose(own.high, expected.high))
        )
    return own == expected
