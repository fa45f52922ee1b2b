"""Training a policy in the dream of a world, with any learner library of the table."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamgym._device import float32_by_default, threads
from dreamgym._files import atomic_file
from dreamgym.data import AnyDataset, DatasetSource, open_dataset
from dreamgym.data.spaces import space_to_json
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted
from dreamgym.train.config import TrainConfig
from dreamgym.train.policy import PolicyCard, TrainedPolicy, world_checksum
from dreamgym.train.registry import LEARNERS, Learner, find_learner
from dreamgym.world.world import World, as_world

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that a learner library needs for one training.

    Attributes:
        world: the world to dream in.
        learner: name of the learner library.
        algo: name of one of its algorithms.
        seed: seed of everything random.
        steps: dream steps in all; None for the algorithm's default.
        config: further settings.
        progress: called with (steps done, steps, figures); None for nothing.
        initial: policy of the same algorithm to go on from; None for fresh weights.
        real_data: real transitions for the batches of an off-policy algorithm; None for none.
    """

    world: World
    learner: str
    algo: str
    seed: int
    steps: int | None
    config: TrainConfig
    progress: Progress | None = None
    initial: TrainedPolicy | None = None
    real_data: AnyDataset | None = None

    @property
    def view(self) -> str:
        """View that the policy sees."""
        return self.config.view or self.world.default_view

    @property
    def dream_options(self) -> dict[str, Any]:
        """Options of `DreamVectorEnv`."""
        return {
            "view": self.view,
            "device": self.config.device,
            "temperature": self.config.temperature,
            "max_episode_steps": self.config.horizon,
            "starts": self.config.starts,
        }

    def make_dream(
        self, num_envs: int, *, output: str = "numpy", autoreset_mode: str = "SameStep"
    ) -> DreamVectorEnv:
        """Make the dream that is trained in."""
        return DreamVectorEnv(
            self.world,
            num_envs,
            output=output,
            autoreset_mode=autoreset_mode,
            **self.dream_options,
        )

    def card(self, env: DreamVectorEnv, *, settings: dict[str, Any], **values: Any) -> PolicyCard:
        """Make the card of a policy that this run trained.

        Args:
            env: the dream.
            settings: keyword arguments of the algorithm's class.
            **values: fields of `PolicyCard` that only the library knows: `steps`, `policy`,
                `reward_scale` and `curve`.
        """
        chosen = {key: value for key, value in asdict(self.config).items() if value is not None}
        chosen.pop("learner")
        chosen["net_arch"] = list(self.config.net_arch)
        return PolicyCard(
            algo=self.algo,
            learner=self.learner,
            view=self.view,
            env_id=self.world.env_id,
            world=self.world.name,
            world_checksum=world_checksum(self.world),
            seed=self.seed,
            observation_space=space_to_json(env.single_observation_space),
            action_space=space_to_json(env.single_action_space),
            hyperparameters={**chosen, **settings, "num_envs": env.num_envs},
            versions=_versions(LEARNERS[self.learner]),
            frame_skip=self.world.frame_skip.to_json(),
            **values,
        )


@float32_by_default()
def train_policy(  # noqa: PLR0913 - what to train is five of them
    world: World | str | Path,
    *,
    algo: str | None = None,
    learner: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    initial: TrainedPolicy | None = None,
    real_data: DatasetSource | None = None,
) -> TrainedPolicy:
    """Train a policy in the dream of a world; the real environment is not used.

    The policy standardises its input by fixed numbers measured in the dream, so it takes raw real
    observations (of its view). Rewards are scaled for the learner by a fixed factor; the learning
    curve and all figures stay in the real environment's units.

    Args:
        world: a world, its folder, or the name of one that ships with dreamgym.
        algo: name of an algorithm of `dreamgym.train.LEARNERS`; None for the learner's first.
        learner: name of the learner library; None for the first that has the algorithm, which is
            PPO of Stable-Baselines3 where there is none.
        seed: seed of everything random in the training. The global generators of Python, NumPy and
            torch are left unchanged.
        steps: dream steps, rounded up to whole rollouts of all copies; None for the algorithm's
            default.
        out: file to save the policy in, atomically; None saves nothing.
        config: further settings.
        progress: called with (steps done, steps, {"dream return": ..., "dream length": ...}).
        initial: policy of the same algorithm and spaces to go on from: its network, with its
            standardisation and its reward scale, is where the training starts.
        real_data: dataset, or several with weights, whose transitions make up `config.real_share`
            of every batch of an off-policy algorithm.

    Returns:
        The trained policy with its learner and its card.

    Raises:
        TrainingError: there is no such learner or algorithm, the algorithm cannot act in the
            world's action space or does not have a setting, a number is out of range, or `initial`
            or `real_data` is of another kind.
        PolicyFileError: nothing can be written to `out`; raised before the training if possible.
        TrainingInterrupted: Ctrl-C; the policy so far is in `<out>.interrupted.<suffix>`.
        ModuleNotFoundError: the learner library is not installed.
    """
    entry = find_learner(algo, learner)
    if seed < 0:
        raise TrainingError(f"seed is {seed}; expected 0 or more")
    if steps is not None and steps < 1:
        raise TrainingError(f"steps is {steps}; expected at least 1")
    run = TrainingRun(
        world=as_world(world),
        learner=entry.name,
        algo=algo or entry.algorithms[0],
        seed=seed,
        steps=steps,
        config=config or TrainConfig(),
        progress=progress,
        initial=initial,
    )
    _check_real_share(entry, run.config, real_data)
    if initial is not None:
        _check_initial(entry, run, initial)
    library = entry.library()
    reason = library.unsupported(run.algo, run.world.action_space)
    if reason is not None:
        raise TrainingError(reason)
    library.check(run)
    path = None if out is None else entry.policy_path(out)
    if path is not None:
        _check_writable(path)
    with ExitStack() as stack:
        if real_data is not None:
            run = replace(run, real_data=stack.enter_context(open_dataset(real_data)))
        stack.enter_context(_private_generators())
        stack.enter_context(threads(run.config.threads))
        policy, finished = library.train(run)
    if not finished:
        raise _interruption(policy, path)
    if path is not None:
        policy.save(path)
    return policy


def _check_real_share(
    learner: Learner, config: TrainConfig, real_data: DatasetSource | None
) -> None:
    if bool(config.real_share) != (real_data is not None):
        raise TrainingError(
            f"real_share is {config.real_share} and real_data is {real_data!r}; give both, the "
            "share of a batch and the dataset to draw it from, or neither"
        )
    if real_data is not None and not learner.takes_real_data:
        able = ", ".join(each.name for each in LEARNERS.values() if each.takes_real_data)
        raise TrainingError(
            f"batches of {learner.title} hold no real transitions; leave real_data and real_share "
            f"out, or use one of {able}"
        )


def _check_initial(learner: Learner, run: TrainingRun, initial: TrainedPolicy) -> None:
    """Check that a training can go on from a policy."""
    card = initial.card
    if not learner.goes_on:
        able = ", ".join(each.name for each in LEARNERS.values() if each.goes_on)
        raise TrainingError(
            f"a training with {learner.title} starts from fresh weights; leave initial out, or use "
            f"one of {able}"
        )
    for what, own, expected in (
        ("learner", card.learner, run.learner),
        ("algorithm", card.algo, run.algo),
        ("view", card.view, run.view),
    ):
        if own != expected:
            raise TrainingError(
                f"the {what} of the policy to go on from is {own!r}, that of the training "
                f"{expected!r}; give the same, or no initial policy"
            )


def _check_writable(path: Path) -> None:
    """Raise `PolicyFileError` where no policy can be saved, before time is spent on training."""
    if path.is_dir():
        raise PolicyFileError(f"{path} is a folder; expected the file to save the policy in")
    probe = path.with_name(f".{path.name}.writable")
    try:
        with atomic_file(probe) as temporary:
            temporary.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise PolicyFileError(f"no policy can be written to {path}: {error}") from error


def _interruption(policy: TrainedPolicy, path: Path | None) -> TrainingInterrupted:
    """Save an unfinished policy beside `path`, and return the exception that says so."""
    steps = policy.card.steps
    done = f"training was interrupted after {steps:,} dream steps"
    if path is None:
        message = f"{done}; no out was given, so nothing was saved"
        return TrainingInterrupted(message, path=None, steps=steps)
    saved = path.with_name(f"{path.stem}.interrupted{path.suffix}")
    try:
        policy.save(saved)
    except PolicyFileError as error:
        return TrainingInterrupted(f"{done}, and {error}", path=None, steps=steps)
    message = f"{done}; the policy so far is in {saved}, and {path} was not changed"
    return TrainingInterrupted(message, path=saved, steps=steps)


def _versions(learner: Learner) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("dreamgym", learner.requires, "torch", "gymnasium", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


@contextmanager
def _private_generators() -> Iterator[None]:
    """Restore the global generators after the block: learners seed them and draw from them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
