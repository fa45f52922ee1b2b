"""The same training with several seeds, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgym._files import local_path
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted
from dreamgym.train.registry import find_learner
from dreamgym.train.training import checkpoint_path, train_policy


def seed_path(out: str | Path, seed: int) -> Path:
    """Return the file of one seed: `policy.zip` becomes `policy-seed0.zip`."""
    path = local_path(out, PolicyFileError)
    return path.with_name(f"{path.stem}-seed{seed}{path.suffix}")


def train_seeds(
    world: str | Path,
    seeds: Sequence[int],
    *,
    out: str | Path,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **arguments: Any,
) -> list[Path]:
    """Train one policy for each seed, several at once.

    The processes start from a fresh interpreter ("spawn"), so a script calls it under
    `if __name__ == "__main__"`.

    Args:
        world: a world's folder, or the name of one that ships with dreamgym.
        seeds: seeds, each once.
        out: file of a policy, to whose name the seed is added (`seed_path`).
        processes: trainings that run at once; by default as many as there are processors, or one
            on a device that is not the CPU.
        progress: called with (policies done, policies).
        **arguments: further arguments of `train_policy`, which can be pickled.

    Returns:
        The policies' files, in the order of the seeds.

    Raises:
        TrainingError: there is no seed or one twice, or what `train_policy` raises; trainings that
            run are finished then, and those that wait are not started.
        TrainingInterrupted: Ctrl-C; each policy so far is beside its file.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise TrainingError(f"seeds are {seeds}; expected at least one, and each once")
    learner = find_learner(arguments.get("algo"), arguments.get("learner"))
    learner.require_installed()
    paths = [seed_path(learner.policy_path(out), seed) for seed in seeds]
    if processes is None:
        config = arguments.get("config")
        on_cpu = config is None or config.device == "cpu"
        processes = (os.cpu_count() or 1) if on_cpu else 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, len(seeds)),
        mp_context=context,
        initializer=_stop_when_terminated,
        max_tasks_per_child=1,  # so that none waits for ever where this process is killed
    ) as pool:
        trainings = [
            pool.submit(_train, world, {**_of_seed(arguments, seed), "seed": seed, "out": path})
            for seed, path in zip(seeds, paths, strict=True)
        ]
        try:
            for done, training in enumerate(as_completed(trainings), 1):
                training.result()
                if progress is not None:
                    progress(done, len(seeds))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            names = ", ".join(str(checkpoint_path(path)) for path in paths if not path.exists())
            message = (
                f"training was interrupted; the policies so far are in {names}; resume=True "
                "(--resume on the command line) goes on from there"
            )
            raise TrainingInterrupted(message, path=None, steps=0) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return paths


def _of_seed(arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the arguments with a folder of TensorBoard logs for the seed alone."""
    monitoring = arguments.get("monitoring")
    if monitoring is None or monitoring.tensorboard is None:
        return arguments
    folder = str(Path(monitoring.tensorboard) / f"seed{seed}")
    return {**arguments, "monitoring": replace(monitoring, tensorboard=folder)}


def _stop_when_terminated() -> None:
    """Let the process that waits alone take Ctrl-C; it terminates this one, which saves then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _train(world: str | Path, arguments: dict[str, Any]) -> None:
    """Train and save a policy; the policy itself stays in the process."""
    # The policy so far is saved, and the exception of the process that waits tells where.
    with suppress(TrainingInterrupted):
        train_policy(world, **arguments)
