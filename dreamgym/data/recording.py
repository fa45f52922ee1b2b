"""Recording a real environment with a policy, in one process or in several."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym._files import local_path, new_dataset_path, refuse_unfinished, replace_path
from dreamgym._interrupts import uninterrupted
from dreamgym._settings import closest
from dreamgym.data.hdf5.reader import open_native
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.policies import Policy, PolicyLike, make_policy
from dreamgym.data.recorder import Recorder
from dreamgym.data.spaces import same_spaces
from dreamgym.errors import DatasetError

Progress = Callable[[int, int], None]
"""Takes what is done and what there is to do, in steps or episodes."""

_PROGRESS_EVERY = 256  # steps
_INTERRUPT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SHARD_NAMES = "shard-*.h5"


def record(  # noqa: PLR0913 - what to record, and how, are three each
    env: str | gym.Env[Any, Any],
    *,
    steps: int,
    out: str | os.PathLike[str],
    policy: PolicyLike = "random",
    seed: int = 0,
    max_episode_steps: int | None = None,
    commit_every: int = 1,
    overwrite: bool = False,
    keep_open: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Record steps of a real environment to a native dataset.

    Each episode is reset with its own seed, derived from `seed` and the number of the episode, and
    so are the policy's random actions: the same arguments give the same data. The last episode is
    cut off after `steps` steps and kept as incomplete. If the recording is interrupted (Ctrl-C) or
    stopped by an error, the file is still closed and renamed to `out`, with everything that was
    recorded until then.

    Args:
        env: id of a Gymnasium environment, or an environment, which stays open.
        steps: number of steps to record, at least 1.
        out: the dataset to create.
        policy: a name such as `"random"` or `"sticky:0.8"`, a function from an observation to an
            action, an object with `predict` (whose actions are sampled), or a `Policy`; see
            `dreamgym.data.policies.make_policy`.
        seed: seed of the recording, at least 0.
        max_episode_steps: steps after which an episode is truncated, if it has not ended before;
            None for the environment's own time limit. A task without an end needs it.
        commit_every: number of episodes in a commit, which takes milliseconds. A kill of the
            process loses the episodes since the last one; Ctrl-C and errors lose nothing.
        overwrite: whether to replace an existing `out`. It is replaced once the new dataset is
            complete; if the recording is interrupted or fails, `out` is unchanged and the episodes
            recorded until then are in `<out>.new`.
        keep_open: whether a kill keeps the open episode as well, see `Recorder`.
        progress: callback that receives the steps done and the steps to do.

    Returns:
        The path of the dataset.

    Raises:
        DatasetError: there is no such environment, `out` exists and `overwrite` is False, a value
            does not fit its space, or the disk is full.
        UnsupportedSpaceError: the environment has a space that dreamgym does not support.
        ValueError: there is no such policy, or a number is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; record at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    _check_limit(max_episode_steps)
    out = local_path(out)
    if overwrite and out.is_dir():
        raise DatasetError(
            "it is a folder, and one process records to a file", path=out, remedy="name a file"
        )
    with _created(out, overwrite) as target, _opened_env(env, max_episode_steps) as opened:
        chosen = make_policy(policy, opened)
        recorder = Recorder(
            opened,
            target,
            policy=chosen.name,
            seed=seed,
            commit_every=commit_every,
            keep_open=keep_open,
        )
        try:
            _record_steps(recorder, chosen, steps=steps, seed=seed, progress=progress)
        finally:
            recorder.finish()
    return out


def resume(  # noqa: PLR0913 - as for record
    env: str | gym.Env[Any, Any],
    *,
    steps: int,
    out: str | os.PathLike[str],
    policy: PolicyLike = "random",
    max_episode_steps: int | None = None,
    commit_every: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Continue a recording until it holds `steps` steps.

    The seeds of the episodes continue as well: the complete episodes are those of a recording that
    was never interrupted.

    Args:
        env: id of a Gymnasium environment, or an environment, which stays open. Its spaces, id,
            keyword arguments, time limit and wrappers must be those of the dataset.
        steps: number of steps that the dataset holds in the end.
        out: a dataset that `record` created, also one that was interrupted or recovered.
        policy: the policy that it was recorded with.
        max_episode_steps: as for `record`.
        commit_every: as for `record`.
        progress: callback that receives the steps done and the steps to do.

    Returns:
        The path of the dataset; it is unchanged if it already holds `steps` steps.

    Raises:
        DatasetError: `out` is not a native dataset, or was recorded from another environment or
            with another policy.
        UnsupportedSpaceError: the environment has a space that dreamgym does not support.
        ValueError: there is no such policy.
    """
    _check_limit(max_episode_steps)
    out = local_path(out)
    with _opened_env(env, max_episode_steps) as opened:
        chosen = make_policy(policy, opened)
        with DatasetWriter.extend(out, commit_every=commit_every) as writer:
            seed = _check_same_recording(writer, opened, chosen)
            recorder = Recorder(opened, writer)
            try:
                _record_steps(recorder, chosen, steps=steps, seed=seed, progress=progress)
            finally:
                recorder.finish()
    return out


def make_env(env_id: str) -> gym.Env[Any, Any]:
    """Make an environment by its id; an error names the nearest id.

    Raises:
        DatasetError: there is no such environment, or something that it needs is not installed.
    """
    try:
        # The recorder checks every step against the spaces itself.
        return gym.make(env_id, disable_env_checker=True)
    except (gym.error.UnregisteredEnv, gym.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, gym.error.DependencyNotInstalled):
            raise DatasetError(f"the environment {env_id!r} cannot be made: {error}") from error
        if isinstance(error, ModuleNotFoundError):
            raise DatasetError(
                f"the environment {env_id!r} cannot be made: {error}",
                remedy="install the module, or name the one that registers the id: 'module:Id-v0'",
            ) from error
        near = closest(env_id, gym.registry)
        hint = f"; the nearest registered id is {near!r}" if near else ""
        raise DatasetError(
            f"there is no environment {env_id!r}{hint}",
            remedy="if another package registers it, install that and write 'package:Id-v0'",
        ) from error


@contextmanager
def _opened_env(
    env: str | gym.Env[Any, Any], max_episode_steps: int | None
) -> Iterator[gym.Env[Any, Any]]:
    """Make an environment and close it after the block; one that was passed in stays open."""
    if not isinstance(env, str):
        yield _limited(env, max_episode_steps)
        return
    made = make_env(env)
    try:
        yield _limited(made, max_episode_steps)
    finally:
        made.close()


def _limited(env: gym.Env[Any, Any], max_episode_steps: int | None) -> gym.Env[Any, Any]:
    """Return an environment with a time limit, unless it has a shorter one of its own."""
    if not isinstance(env, gym.Env):
        raise DatasetError(
            f"the environment is a {type(env).__name__}; expected a single gymnasium.Env or an id",
            remedy="pass one environment; to record several side by side, use VectorRecorder, or "
            "the command line's --workers with an id",
        )
    own = env.spec.max_episode_steps if env.spec is not None else None
    if max_episode_steps is None or (own is not None and own <= max_episode_steps):
        return env
    return gym.wrappers.TimeLimit(env, max_episode_steps)


def _check_limit(max_episode_steps: int | None) -> None:
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}; it must be at least 1")


@contextmanager
def _created(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the path to record to; if it is not `out`, let it replace `out` after the block.

    If the block fails, an existing `out` is unchanged and the new recording stays beside it.
    """
    target = new_dataset_path(out, overwrite=overwrite)
    try:
        yield target
    except BaseException as error:
        if target != out and target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        if target != out and target.exists():
            error.add_note(f"{out} is unchanged; the episodes recorded until now are in {target}")
        raise
    if target != out:
        with uninterrupted():
            replace_path(target, out)


def _check_same_recording(writer: DatasetWriter, env: gym.Env[Any, Any], policy: Policy) -> int:
    """Return the seed of a recording; raise unless it was made with this environment and policy."""
    metadata, path = writer.metadata, writer.path
    if not same_spaces(env, metadata):
        raise DatasetError(
            f"it was recorded from {metadata.env_id}, whose spaces are not those of {env}",
            path=path,
        )
    differences = _spec_differences(metadata, DatasetMetadata.of_env(env))
    if differences:
        raise DatasetError(
            f"it was recorded from another environment than {env}: {differences}",
            path=path,
            remedy="pass the environment that it was recorded from, or record to another file",
        )
    if policy.name != metadata.policy:
        raise DatasetError(
            f"it was recorded with the policy {metadata.policy!r}, not {policy.name!r}",
            path=path,
            remedy="give the same policy, or record to another file",
        )
    if metadata.seed is None:
        raise DatasetError(
            "it does not say with which seed it was recorded: its episodes might be repeated",
            path=path,
            remedy="record to another file",
        )
    return metadata.seed


def _spec_differences(recorded: DatasetMetadata, given: DatasetMetadata) -> str:
    """Describe how an environment's spec differs from the recorded one; empty if it does not.

    The way of rendering does not matter. Where JSON can hold neither spec, only the ids and the
    names of the classes are known.
    """
    if given.env_id != recorded.env_id:
        name = "it has no id" if given.env_id is None else f"its id is {given.env_id!r}"
        return f"{name}, the recorded one is {recorded.env_id!r}"
    if recorded.env_spec is None and given.env_spec is None:
        if recorded.env_name in (None, given.env_name):  # older recordings have no name
            return ""
        return f"it is a {given.env_name}, the recorded one a {recorded.env_name}"
    if recorded.env_spec is None or given.env_spec is None:
        which = "its" if given.env_spec is None else "the recorded"
        return f"{which} spec cannot be written as JSON (a wrapper or argument is a function)"
    before, now = json.loads(recorded.env_spec), json.loads(given.env_spec)
    for spec in (before, now):
        spec["kwargs"] = {k: v for k, v in spec.get("kwargs", {}).items() if k != "render_mode"}
        spec["wrappers"] = [
            f"{each['name']}({each['kwargs']})" for each in spec.get("additional_wrappers") or ()
        ]
    fields = {
        "time limit": "max_episode_steps",
        "keyword arguments": "kwargs",
        "wrappers": "wrappers",
    }
    return "; ".join(
        f"its {name}: {now.get(key)}, the recorded: {before.get(key)}"
        for name, key in fields.items()
        if now.get(key) != before.get(key)
    )


def _record_steps(
    recorder: Recorder, policy: Policy, *, steps: int, seed: int, progress: Progress | None
) -> None:
    """Step the recorder's environment until its file holds `steps` steps.

    Args:
        recorder: an open recorder, which the caller finishes.
        policy: chooses the actions.
        steps: number of steps that the file holds in the end.
        seed: seed of the recording, see `_episode_seeds`.
        progress: callback that receives the steps done and the steps to do.
    """
    steps_done, episode = recorder.writer.num_steps, recorder.writer.num_episodes
    if steps_done >= steps:
        return
    while steps_done < steps:
        reset_seed, policy_seed = _episode_seeds(seed, episode, recorder.env_index)
        observation, _ = recorder.reset(seed=reset_seed)
        policy.reset([0], [policy_seed])
        episode += 1
        ended = False
        while not ended and steps_done < steps:
            observation, _, terminated, truncated, _ = recorder.step(
                policy.act([observation], [0])[0]
            )
            ended = terminated or truncated
            steps_done += 1
            if progress is not None and steps_done % _PROGRESS_EVERY == 0:
                progress(steps_done, steps)
    if progress is not None and steps % _PROGRESS_EVERY:
        progress(steps, steps)


def _episode_seeds(seed: int, episode: int, env_index: int = 0) -> tuple[int, int]:
    """Return the seeds of an episode's reset and of its policy.

    They depend on the arguments alone, so that a recording can be continued, and differ from those
    of every other episode and environment.
    """
    words = np.random.SeedSequence(seed, spawn_key=(env_index, episode)).generate_state(2)
    return int(words[0]), int(words[1])


# ---------------------------------------------------------------------------- several processes


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What several processes record together.

    Attributes:
        steps: number of steps in all shards together.
        policy: the policy, as for `record`; a function must be picklable.
        seed: seed of the whole recording; every shard and every episode has its own.
        workers: number of processes, each of which writes one shard.
        max_episode_steps: as for `record`.
        commit_every: as for `record`, in each process.
    """

    steps: int
    policy: Any = "random"
    seed: int = 0
    workers: int = 2
    max_episode_steps: int | None = None
    commit_every: int = 1


def record_shards(
    env_id: str,
    out: str | os.PathLike[str],
    plan: ShardPlan,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Record with several processes into a folder of shards, which `Dataset` reads as one.

    The same plan gives the same data. If the recording is interrupted, every process closes its
    shard with what it has.

    Args:
        env_id: id of a Gymnasium environment; `"package:Id-v0"` if a package registers it.
        out: the folder to create.
        plan: steps, policy, seed and processes.
        overwrite: whether to replace an existing folder of shards. It is replaced once the new one
            is complete; if the recording is interrupted or fails, `out` is unchanged and the
            episodes recorded until then are in `<out>.new`.
        progress: callback that receives the steps done in all processes and the steps to do.

    Returns:
        The folder.

    Raises:
        DatasetError: `out` exists and `overwrite` is False, `out` is not a folder of shards, or a
            process failed.
        ValueError: a number is out of range, or there is no such policy.
    """
    _check_plan(plan)
    folder = local_path(out)
    if overwrite and folder.exists():
        _require_only_shards(folder)
    with _created(folder, overwrite) as target:
        make_env(env_id).close()  # report an unknown id once, before anything is created
        target.mkdir(parents=True)
        _run_workers(env_id, target, plan, progress)
    return folder


def resume_shards(
    env_id: str,
    out: str | os.PathLike[str],
    plan: ShardPlan,
    *,
    progress: Progress | None = None,
) -> Path:
    """Continue a folder of shards until they hold the plan's steps; no seed is used twice.

    Args:
        env_id: id of a Gymnasium environment; `"package:Id-v0"` if a package registers it.
        out: a folder that `record_shards` created, also one that was interrupted. Shards of killed
            processes must be recovered first.
        plan: the plan that it was recorded with, but for `steps`, the number of steps that the
            shards hold in the end. Its seed is ignored: the shards know theirs.
        progress: callback that receives the steps done in all processes and the steps to do.

    Returns:
        The folder.

    Raises:
        DatasetError: `out` is not such a folder, was recorded by another number of processes, with
            another policy or from another environment, or a process failed.
        ValueError: a number is out of range, or there is no such policy.
    """
    _check_plan(plan)
    folder = local_path(out)
    files = sorted(folder.glob("*.h5*"))
    unfinished = [path for path in files if path.suffix == ".partial"]
    if unfinished:
        refuse_unfinished(unfinished[0].with_suffix(""))
    expected = {_shard_path(folder, number) for number in range(plan.workers)}
    unexpected = [path for path in files if path.suffix == ".h5" and path not in expected]
    present = expected & set(files)
    if unexpected or not present:
        raise DatasetError(
            f"it holds {len(files)} shards, which {plan.workers} processes cannot continue",
            path=folder,
            remedy="give as many processes as it was recorded with",
        )
    first = open_native(min(present), 0)
    first.close()
    seed = first.metadata.seed
    _run_workers(env_id, folder, plan if seed is None else replace(plan, seed=seed), progress)
    return folder


def _check_plan(plan: ShardPlan) -> None:
    if plan.workers < 1 or plan.steps < plan.workers:
        raise ValueError(
            f"the plan has {plan.steps} steps with {plan.workers} workers; expected at least 1 "
            "worker, and 1 step for each"
        )
    _check_limit(plan.max_episode_steps)


def _require_only_shards(folder: Path) -> None:
    """Raise unless a path is a folder of shards and nothing else, which may be replaced."""
    if not folder.is_dir():
        raise DatasetError(
            "it is a file, and several processes record to a folder",
            path=folder,
            remedy="name a folder",
        )
    others = sorted(set(folder.iterdir()) - set(folder.glob(_SHARD_NAMES)))
    if others:
        raise DatasetError(
            f"it holds more than shards, such as {others[0].name}",
            path=folder,
            remedy="choose another name, or move it away",
        )


def _shard_path(folder: Path, number: int) -> Path:
    """Return the file of one process."""
    return folder / f"shard-{number:04d}.h5"


def _run_workers(env_id: str, folder: Path, plan: ShardPlan, progress: Progress | None) -> None:
    """Start the processes, wait for them, and raise what went wrong in them."""
    context = multiprocessing.get_context("spawn")
    steps_done = context.Array("q", plan.workers, lock=False)
    failures: Any = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(env_id, folder, plan, number, steps_done, failures))
        for number in range(plan.workers)
    ]
    for worker in workers:
        worker.start()
    _wait(workers, steps_done, plan, progress)
    if not failures.empty():
        number, message = failures.get()
        raise DatasetError(f"worker {number} failed: {message}", path=_shard_path(folder, number))
    died = [number for number, worker in enumerate(workers) if worker.exitcode != 0]
    if died:
        number = died[0]
        raise DatasetError(
            f"worker {number} died with exit code {workers[number].exitcode}",
            path=_shard_path(folder, number),
            remedy="save its episodes with `dreamgym recover`",
        )
    if progress is not None:
        progress(plan.steps, plan.steps)


def _wait(workers: list[Any], steps_done: Any, plan: ShardPlan, progress: Progress | None) -> None:
    try:
        while any(worker.is_alive() for worker in workers):
            if progress is not None:
                progress(sum(steps_done), plan.steps)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        # Ctrl-C in a terminal reaches the workers too; another signal, or an error, does not. A
        # worker that is still importing may lose it.
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                _interrupt(worker)
            for worker in workers:
                worker.join(_INTERRUPT_SECONDS)
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
    env_id: str, folder: Path, plan: ShardPlan, number: int, steps_done: Any, failures: Any
) -> None:
    """Record the share of one process."""
    share = plan.steps // plan.workers + (number < plan.steps % plan.workers)
    interrupts = 0

    def interrupt(*_: Any) -> None:
        # Raised wherever the signal arrives, an exception would be lost in a destructor, or leave
        # the file unfinished. One Ctrl-C comes twice, from the terminal and from the parent.
        nonlocal interrupts
        interrupts += 1
        if interrupts > 2:
            raise KeyboardInterrupt

    def report(done: int, _: int) -> None:
        steps_done[number] = done
        if interrupts:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        env = _limited(make_env(env_id), plan.max_episode_steps)
        path = _shard_path(folder, number)
        policy = make_policy(plan.policy, env)
        if path.exists():
            with DatasetWriter.extend(path, commit_every=plan.commit_every) as writer:
                _check_same_recording(writer, env, policy)
                with Recorder(env, writer, env_index=number) as recorder:
                    _record_steps(recorder, policy, steps=share, seed=plan.seed, progress=report)
            return
        with Recorder(
            env,
            path,
            policy=policy.name,
            seed=plan.seed,
            commit_every=plan.commit_every,
            env_index=number,
        ) as recorder:
            _record_steps(recorder, policy, steps=share, seed=plan.seed, progress=report)
    except KeyboardInterrupt:
        raise SystemExit(0) from None  # the parent raises its own
    except Exception as error:
        failures.put((number, f"{type(error).__name__}: {error}"))
