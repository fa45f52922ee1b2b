"""The online loop as two processes: an actor that never waits, and a learner beside it.

Wu et al. 2022, "DayDreamer: world models for physical robot learning", arXiv 2206.14176, section 2:
the actor records episodes with the newest weights that it finds, the learner fits and trains on the
episodes that it finds. They share a folder and nothing else:

    episodes/00000.h5   a dataset of `round_steps` real steps; it has its name when it is complete
    weights.json        the newest version; replaced atomically
    version-001/        a world and a policy; never changed once weights.json names it
    actor.jsonl         a line for each episode: the version that acted, and its age

Either may be killed at any moment and started again. The next start of an actor that was killed
saves every step that it took, those of the open episode as one that was cut off; a learner that was
killed makes its version anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym._files import atomic_file, local_path
from dreamgym.data import Dataset, record
from dreamgym.data.policies import make_policy
from dreamgym.errors import OnlineError
from dreamgym.online.config import ImproveConfig
from dreamgym.online.exploration import NoisyPolicy
from dreamgym.online.stages import (
    acting,
    checked_learner,
    first_policy,
    fit_world,
    forget_fit,
    save_killed,
    train_in_dreams,
)
from dreamgym.train import load_policy
from dreamgym.transfer.real import EnvSource, env_maker, make_env

Progress = Callable[[dict[str, Any]], None]

WEIGHTS = "weights.json"
POLL_SECONDS = 0.1
"""Time between two looks of a learner for new episodes."""


class LatestPolicy:
    """A `Policy` that takes the newest weights of a learner at the start of every episode.

    It never waits: until there are weights, it is the first policy. A robot's own loop calls
    `reset([0], [seed])` at the start of an episode and `act([observation], [0])[0]` at every step.

    Args:
        folder: folder that the actor and the learner share.
        env: environment to act in, for its spaces.
        config: settings; `first_policy` and `noise` are used.
        log: file to which a line of JSON is added at the start of every episode: `version` (0 for
            the first policy), `age_seconds` since these weights were published, `age_steps` acted
            with them so far, and `time`. None writes nothing.
    """

    name = "latest"

    def __init__(
        self,
        folder: str | Path,
        env: gym.Env[Any, Any],
        config: ImproveConfig | None = None,
        *,
        log: str | Path | None = None,
    ) -> None:
        self._folder, self._env = local_path(folder, OnlineError), env
        self._config = config or ImproveConfig()
        self._log = None if log is None else local_path(log, OnlineError)
        self._policy = first_policy(self._config, env)
        self._weights: dict[str, Any] = {"version": 0, "time": time.time()}
        self._steps = 0

    @property
    def version(self) -> int:
        """Version of the weights that act; 0 for the first policy."""
        return int(self._weights["version"])

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`; newer weights are loaded if there are any."""
        newest = read_weights(self._folder)
        if newest is not None and newest["version"] != self.version:
            path = newest["policy"]
            policy = None if path is None else load_policy(self._folder / path)
            own = acting(self._config, policy, self._folder / newest["world"])
            noisy = NoisyPolicy(own, self._env.action_space, self._config.noise)
            self._policy = make_policy(noisy, self._env)  # which spreads the actions of blocks
            self._weights, self._steps = newest, 0
        if self._log is not None:
            now = time.time()
            line = {
                "version": self.version,
                "age_seconds": round(now - self._weights["time"], 3),
                "age_steps": self._steps,
                "time": now,
            }
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._policy.reset(rows, seeds)

    def act(self, observations: Any, rows: Sequence[int]) -> Sequence[Any]:
        """See `Policy.act`."""
        self._steps += len(rows)
        return self._policy.act(observations, rows)


def act(
    env: EnvSource,
    folder: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    config: ImproveConfig | None = None,
    progress: Progress | None = None,
) -> None:
    """Record real steps with the newest weights, as the actor of two processes.

    Args:
        env: an id, an `EnvSpec` or its JSON, or a function that makes a `gym.Env`.
        folder: folder that is shared with the learner. It has one actor at a time.
        steps: real steps to record in this call; None records until it is stopped.
        seed: seed of the episodes; every start of the actor has its own episodes.
        config: settings, the learner's; `round_steps` is the size of a dataset.
        progress: called after each dataset with `dataset` (its path), `steps` (in it) and the
            `version` of the weights that acted last, 0 for the first policy.

    Raises:
        TransferError: there is no such environment.
        DatasetError: another actor is recording in this folder.
    """
    config, folder = config or ImproveConfig(), local_path(folder, OnlineError)
    episodes = folder / "episodes"
    for name in {path.name.partition(".h5")[0] for path in episodes.glob("*.h5*")}:
        save_killed(episodes / f"{name}.h5")  # of an actor that was killed
    recorded, number = 0, _next_number(folder)
    with make_env(env_maker(env)) as made:
        policy = LatestPolicy(folder, made, config, log=folder / "actor.jsonl")
        while steps is None or recorded < steps:
            count = (
                config.round_steps if steps is None else min(config.round_steps, steps - recorded)
            )
            # a seed of its own, so that no dataset repeats the episodes of another
            own = int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
            out = episodes / f"{number:05d}.h5"
            limit = config.max_episode_steps
            record(
                made,
                steps=count,
                out=out,
                policy=policy,
                seed=own,
                max_episode_steps=limit,
                keep_open=True,
            )
            recorded, number = recorded + count, number + 1
            if progress is not None:
                progress({"dataset": str(out), "steps": count, "version": policy.version})


def learn(
    folder: str | Path,
    *,
    versions: int | None = None,
    seed: int = 0,
    config: ImproveConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit and train on the episodes that an actor records, as the learner of two processes.

    It waits for `config.first_steps` real steps, and then for a new dataset before each version.
    The real environment is not used.

    Args:
        folder: folder that is shared with the actor.
        versions: number of the last version to publish; those that are there count. None goes on
            until it is stopped.
        seed: seed of everything random.
        config: settings; `evaluation_episodes` and `bonus` do not apply.
        progress: called after each version with what `weights.json` holds.

    Returns:
        What `weights.json` holds: `version`, `policy` (None with a planner) and `world` (paths
        relative to the folder),
        `real_steps` that the world was fitted to, and the `time` of publishing.
    """
    config, folder = config or ImproveConfig(), local_path(folder, OnlineError)
    suffix = None if config.planner is not None else checked_learner(config).suffix
    newest = read_weights(folder)
    while newest is None or versions is None or newest["version"] < versions:
        seen = 0 if newest is None else newest["real_steps"]
        data = _wait_for_data(folder, max(seen + 1, config.first_steps))
        version = 1 if newest is None else newest["version"] + 1
        made = folder / f"version-{version:03d}"
        if made.exists():  # of a learner that was killed
            shutil.rmtree(made)
        total = sum(int(count) for _, count in data)
        last = None if newest is None else folder / newest["world"]
        steps = total - seen
        world = fit_world(config, data, made / "world", steps=steps, last=last, seed=seed)
        if suffix is not None:
            train_in_dreams(
                config,
                world,
                made / f"policy{suffix}",
                data=data,
                steps=steps,
                bonus=0.0,
                initial=None if newest is None else load_policy(folder / newest["policy"]),
                seed=seed + version,
            )
        newest = {
            "version": version,
            "policy": None if suffix is None else f"{made.name}/policy{suffix}",
            "world": f"{made.name}/world",
            "real_steps": total,
            "time": time.time(),
        }
        with atomic_file(folder / WEIGHTS) as temporary:
            temporary.write_text(json.dumps(newest), encoding="utf-8")
        if last is not None:
            forget_fit(last)
        if progress is not None:
            progress(newest)
    return newest


def read_weights(folder: Path) -> dict[str, Any] | None:
    """Return what `weights.json` holds; None before the first version."""
    try:
        found: dict[str, Any] = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _next_number(folder: Path) -> int:
    """Return the number of the next dataset of `act`, after those that are there."""
    return 1 + max(
        (int(each.stem) for each in _datasets(folder) if each.stem.isdigit()), default=-1
    )


def _datasets(folder: Path) -> list[Path]:
    """Return the complete datasets of the actor."""
    return sorted((folder / "episodes").glob("*.h5"))


def _wait_for_data(folder: Path, steps: int) -> list[tuple[Path, float]]:
    """Wait until there are as many real steps; return the datasets and their steps."""
    counts: dict[Path, float] = {}
    while True:
        for path in _datasets(folder):
            if path not in counts:
                with Dataset(path) as data:
                    counts[path] = float(data.num_steps)
        if sum(counts.values()) >= steps:
            return list(counts.items())
        time.sleep(POLL_SECONDS)
