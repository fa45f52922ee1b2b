"""Recording a real environment with a policy."""

from __future__ import annotations

import difflib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym._files import refuse_existing, refuse_unfinished
from dreamgym.data.hdf5.reader import open_native
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.policies import Policy, PolicyLike, make_policy
from dreamgym.data.recorder import Recorder
from dreamgym.errors import DatasetError

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
        policy: A name such as `"random"` or `"sticky:0.8"`, a function from an observation to an
            action, an object with `predict` (whose actions are sampled), or a `Policy`; see
            `dreamgym.data.policies.make_policy`.
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
        chosen = make_policy(policy, made)
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
        chosen = make_policy(policy, made)
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
        policy.reset([0], [policy_seed])
        number += 1
        ended = False
        while not ended and done_steps < steps:
            observation, _, terminated, truncated, _ = recorder.step(
                policy.act([observation], [0])[0]
            )
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


_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What several processes record together.

    Attributes:
        steps: Steps in all shards together.
        policy: As for `record`; a function must be one that can be pickled by name.
        seed: Of the whole; every shard and every episode has seeds of its own.
        workers: Processes, and so shards.
    """

    steps: int
    policy: Any = "random"
    seed: int = 0
    workers: int = 2


def record_shards(
    env_id: str,
    out: str | os.PathLike[str],
    plan: ShardPlan,
    *,
    progress: Progress | None = None,
) -> Path:
    """Record with several processes into a folder of shards, which `Dataset` reads as one.

    The same plan gives the same data. Interrupted, every process closes its shard with what it has.

    Args:
        env_id: Id of a Gymnasium environment; `"package:Id-v0"` where a package registers it.
        out: The folder to make; must not exist.
        plan: Steps, policy, seed, processes.
        progress: Called now and then with the steps done in all, and the steps wanted.

    Returns:
        The folder.

    Raises:
        DatasetError: `out` exists, or a process failed; the message says how.
        ValueError: A number is out of range, or there is no such policy.
    """
    _require_sense(plan)
    folder = Path(out)
    if folder.exists():
        raise DatasetError("it exists already", path=folder, remedy="choose another name")
    make_env(env_id).close()  # an unknown id is better said once, and before anything is made
    folder.mkdir(parents=True)
    return _run(env_id, folder, plan, progress)


def resume_shards(
    env_id: str,
    out: str | os.PathLike[str],
    plan: ShardPlan,
    *,
    progress: Progress | None = None,
) -> Path:
    """Go on with a folder of shards until they hold the plan's steps; no seed comes twice.

    Args:
        env_id: As for `record_shards`.
        out: A folder that `record_shards` made, also one that was interrupted. Shards of killed
            processes must be recovered before.
        plan: As it was, but for `steps`, which the shards shall hold in the end; its seed is that
            of the shards.
        progress: As for `record_shards`.

    Returns:
        The folder.

    Raises:
        DatasetError: It is no such folder, was recorded by another number of processes, with
            another policy or from another environment, or a process failed.
        ValueError: A number is out of range, or there is no such policy.
    """
    _require_sense(plan)
    folder = Path(out)
    shards = sorted(folder.glob("*.h5*"))
    unfinished = [path for path in shards if path.suffix == ".partial"]
    if unfinished:
        refuse_unfinished(unfinished[0].with_suffix(""))
    ours = {shard_path(folder, number) for number in range(plan.workers)}
    strange = [path for path in shards if path.suffix == ".h5" and path not in ours]
    if strange or not ours & set(shards):
        raise DatasetError(
            f"it holds {len(shards)} shards, and is to be gone on with by {plan.workers} processes",
            path=folder,
            remedy="give as many processes as it was recorded with",
        )
    first = open_native(min(ours & set(shards)), 0)
    first.close()
    seed = first.metadata.seed
    return _run(env_id, folder, plan if seed is None else replace(plan, seed=seed), progress)


def _require_sense(plan: ShardPlan) -> None:
    if plan.workers < 1 or plan.steps < plan.workers:
        raise ValueError(f"{plan.steps} steps with {plan.workers} workers; at least 1 step each")


def _run(env_id: str, folder: Path, plan: ShardPlan, progress: Progress | None) -> Path:
    """Start the processes, wait for them, and say what went wrong in them."""
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", plan.workers, lock=False)
    failures: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(env_id, folder, plan, number, done, failures))
        for number in range(plan.workers)
    ]
    for worker in workers:
        worker.start()
    _wait(workers, done, plan, progress)
    if not failures.empty():
        number, message = failures.get()
        raise DatasetError(f"worker {number} failed: {message}", path=shard_path(folder, number))
    died = [number for number, worker in enumerate(workers) if worker.exitcode != 0]
    if died:
        number = died[0]
        raise DatasetError(
            f"worker {number} died with exit code {workers[number].exitcode}",
            path=shard_path(folder, number),
            remedy="save what it left with `dreamgym recover`",
        )
    if progress is not None:
        progress(plan.steps, plan.steps)
    return folder


def shard_path(folder: Path, number: int) -> Path:
    """The file of one process."""
    return folder / f"shard-{number:04d}.h5"


def _wait(workers: list[Any], done: Any, plan: ShardPlan, progress: Progress | None) -> None:
    try:
        while any(worker.is_alive() for worker in workers):
            if progress is not None:
                progress(sum(done), plan.steps)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        # Ctrl-C in a terminal reaches them by itself; another signal, or an error, does not.
        for worker in workers:
            _interrupt(worker)
        raise
    finally:
        for worker in workers:
            worker.join()


def _interrupt(worker: BaseProcess) -> None:
    if worker.is_alive() and worker.pid is not None:
        if os.name == "nt":
            worker.terminate()
        else:
            os.kill(worker.pid, signal.SIGINT)


def _work(
    env_id: str, folder: Path, plan: ShardPlan, number: int, done: Any, failures: Any
) -> None:
    """One process: its share of the steps, with seeds that no other has."""
    share = plan.steps // plan.workers + (number < plan.steps % plan.workers)

    def count(now: int, _: int) -> None:
        done[number] = now

    try:
        env, path = make_env(env_id), shard_path(folder, number)
        policy = make_policy(plan.policy, env)
        if path.exists():
            with DatasetWriter.extend(path) as writer:
                require_same(writer, env, policy)
                recorder = Recorder(env, writer, env_index=number)
                with recorder:
                    run(recorder, policy, steps=share, seed=plan.seed, progress=count)
            return
        recorder = Recorder(env, path, policy=policy.name, seed=plan.seed, env_index=number)
        with recorder:
            run(recorder, policy, steps=share, seed=plan.seed, progress=count)
    except KeyboardInterrupt:
        raise SystemExit(0) from None  # the parent raises its own
    except Exception as error:
        failures.put((number, f"{type(error).__name__}: {error}"))
