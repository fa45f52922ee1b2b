"""Recording with several processes, each writing a shard of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dreamgym.data.aside import refuse_unfinished
from dreamgym.data.errors import DatasetError
from dreamgym.data.native import open_native
from dreamgym.data.policies import make_policy
from dreamgym.data.recorder import Recorder
from dreamgym.data.recording import Progress, make_env, require_same, run
from dreamgym.data.writer import DatasetWriter

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
        policy = make_policy(plan.policy, env.action_space)
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
