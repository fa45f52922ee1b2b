"""Recording a real environment with a policy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym.data.aside import refuse_existing
from dreamgym.data.errors import DatasetError
from dreamgym.data.policies import Policy, PolicyLike, make_policy
from dreamgym.data.recorder import Recorder
from dreamgym.data.writer import DatasetWriter

Progress = Callable[[int, int], None]
_PROGRESS_EVERY = 256  # steps


def record(
    env: str | gym.Env[Any, Any],
    *,
    steps: int,
    out: str | os.PathLike[str],
    policy: PolicyLike = "random",
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Record steps of a real environment to a native dataset.

    Each episode is reset with a seed of its own, which follows from `seed` and its number, and so
    do the random actions: the same arguments give the same data. The last episode is cut off when
    `steps` are done, and kept as incomplete. Interrupted (Ctrl-C), or stopped by any error, the
    file is closed and named all the same, with everything that was recorded up to then.

    Args:
        env: Id of a Gymnasium environment, or an environment, which is left open.
        steps: Steps to record, at least 1.
        out: The dataset to make; must not exist.
        policy: `"random"`, `"sticky-random"`, `"sticky:0.8"` (the probability of repeating the last
            action), a function from an observation to an action, or a `Policy`, which is seeded.
        seed: Of the recording, at least 0.
        progress: Called now and then with the steps done and the steps wanted.

    Returns:
        The path of the dataset.

    Raises:
        DatasetError: There is no such environment, `out` exists, what the environment gives does
            not fit its spaces, or the disk is full.
        UnsupportedSpaceError: The environment has a space that dreamgym does not support.
        ValueError: There is no such policy, or a number is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; record at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    out = Path(out)
    refuse_existing(out)
    made = make_env(env) if isinstance(env, str) else env
    try:
        chosen = make_policy(policy, made.action_space)
        recorder = Recorder(made, out, policy=chosen.name, seed=seed)
        try:
            run(recorder, chosen, steps=steps, seed=seed, progress=progress)
        finally:
            recorder.finish()
    finally:
        if made is not env:
            made.close()
    return out


def resume(
    env: str | gym.Env[Any, Any],
    *,
    steps: int,
    out: str | os.PathLike[str],
    policy: PolicyLike = "random",
    progress: Progress | None = None,
) -> Path:
    """Go on with a recording until it holds `steps` steps; the seeds go on where they stopped.

    The complete episodes are then those of a recording that was never interrupted.

    Args:
        env: As for `record`; its spaces must be those of the dataset.
        steps: Steps that the dataset shall hold in the end.
        out: A dataset that `record` made, also one that was interrupted or recovered.
        policy: The policy that it was recorded with.
        progress: As for `record`.

    Returns:
        The path of the dataset; it is unchanged where it holds `steps` steps already.

    Raises:
        DatasetError: It is no dataset, or comes from another environment or policy.
        UnsupportedSpaceError: As for `record`.
        ValueError: There is no such policy.
    """
    out = Path(out)
    made = make_env(env) if isinstance(env, str) else env
    try:
        chosen = make_policy(policy, made.action_space)
        with DatasetWriter.extend(out) as writer:
            seed = require_same(writer, made, chosen)
            recorder = Recorder(made, writer)
            try:
                run(recorder, chosen, steps=steps, seed=seed, progress=progress)
            finally:
                recorder.finish()
    finally:
        if made is not env:
            made.close()
    return out


def require_same(writer: DatasetWriter, env: gym.Env[Any, Any], policy: Policy) -> int:
    """The seed of the recording, if environment and policy are those that it was made with."""
    metadata, path = writer.metadata, writer.path
    if (env.observation_space, env.action_space) != (
        metadata.observation_space,
        metadata.action_space,
    ):
        raise DatasetError(
            f"it was recorded from {metadata.env_id}, whose spaces are not those of {env}",
            path=path,
        )
    if policy.name != metadata.policy:
        raise DatasetError(
            f"it was recorded with the policy {metadata.policy!r}, not {policy.name!r}",
            path=path,
            remedy="give the same policy, or record to another file",
        )
    if metadata.seed is None:
        raise DatasetError(
            "it holds no seed of the recording, so that its episodes might be repeated",
            path=path,
            remedy="record to another file",
        )
    return metadata.seed


def run(
    recorder: Recorder, policy: Policy, *, steps: int, seed: int, progress: Progress | None
) -> None:
    """Step the recorder's environment until its file holds `steps` steps.

    Args:
        recorder: Open; it is the caller's to finish.
        policy: Chooses the actions.
        steps: Steps that the file shall hold in the end.
        seed: Of the recording; see `episode_seeds`.
        progress: Called now and then with the steps done and the steps wanted.
    """
    done_steps, number = recorder.writer.num_steps, recorder.writer.num_episodes
    if done_steps >= steps:
        return
    while done_steps < steps:
        reset_seed, policy_seed = episode_seeds(seed, number, recorder.env_index)
        observation, _ = recorder.reset(seed=reset_seed)
        policy.begin(policy_seed)
        number += 1
        ended = False
        while not ended and done_steps < steps:
            observation, _, terminated, truncated, _ = recorder.step(policy.act(observation))
            ended = terminated or truncated
            done_steps += 1
            if progress is not None and done_steps % _PROGRESS_EVERY == 0:
                progress(done_steps, steps)
    if progress is not None and steps % _PROGRESS_EVERY:
        progress(steps, steps)


def episode_seeds(seed: int, episode: int, env_index: int = 0) -> tuple[int, int]:
    """The seed of an episode's reset and that of its policy; every one of them is different.

    They depend on nothing but the arguments, so that a recording can go on where it stopped.
    """
    words = np.random.SeedSequence(seed, spawn_key=(env_index, episode)).generate_state(2)
    return int(words[0]), int(words[1])


def make_env(env_id: str) -> gym.Env[Any, Any]:
    """`gymnasium.make`, with an error that says which ids there are.

    Raises:
        DatasetError: There is no such environment, or something that it needs is not installed.
    """
    try:
        # The recorder checks every step against the spaces itself.
        return gym.make(env_id, disable_env_checker=True)
    except (gym.error.UnregisteredEnv, gym.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, gym.error.DependencyNotInstalled):
            raise DatasetError(f"the environment {env_id!r} cannot be made: {error}") from error
        near = difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.4)
        hint = f"; the nearest ids: {', '.join(near)}" if near else ""
        raise DatasetError(
            f"there is no environment {env_id!r}{hint}",
            remedy="where another package brings it, install that and write 'package:Id-v0'",
        ) from error
