"""The table of learner libraries. The rest of the package knows none of them by name.

A library is one entry in `LEARNERS` and one module in `dreamgym.train` that has the functions of
`LearnerLibrary`. It is imported when it is first used.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from dreamgym._agents import WRAPPERS_OF
from dreamgym._extras import import_extra
from dreamgym._files import local_path
from dreamgym._settings import nearest
from dreamgym.errors import PolicyFileError, TrainingError

if TYPE_CHECKING:
    import gymnasium as gym
    from torch import nn

    from dreamgym.train.policy import TrainedPolicy
    from dreamgym.train.training import TrainingRun


class LearnerLibrary(Protocol):
    """Functions of a learner's module."""

    def adapter(self, env: Any, **options: Any) -> Any:
        """Return a `DreamVectorEnv` as the kind of environment that the library trains in."""
        ...

    def unsupported(self, algo: str, space: gym.Space[Any]) -> str | None:
        """Return why an algorithm cannot act in an action space, and what to do; None if it can."""
        ...

    def check(self, run: TrainingRun) -> None:
        """Raise `TrainingError` where the run's settings do not fit its algorithm."""
        ...

    def train(self, run: TrainingRun) -> tuple[TrainedPolicy, bool]:
        """Train, and return the policy and whether it was trained to the end.

        It trains for `run.steps_left(...)` dream steps, from `run.initial` where that is given, and
        calls `run.report` after each update. At a Ctrl-C it returns the policy as it was then.
        """
        ...

    def save(self, policy: TrainedPolicy, path: Path) -> None:
        """Write a policy that has its learner, with its card, atomically.

        Raises:
            PolicyFileError: it cannot be written there; the previous file is unchanged.
        """
        ...

    def actor(self, policy: TrainedPolicy) -> nn.Module:
        """Return a policy's deterministic actor: raw observations (B, ...) to raw actions (B, ...).

        It works on tensors alone, so that it can be exported.
        """
        ...

    def load(self, path: Path, *, algo: str | None, env: gym.Env[Any, Any] | None) -> TrainedPolicy:
        """Read a policy, executing nothing that is in its file.

        `algo` and `env` stand in for the card of a file that dreamgym did not write.

        Raises:
            PolicyFileError: the file cannot be used.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One learner library.

    Attributes:
        name: name in `train_policy(learner=)` and `dreamgym train --learner`.
        goes_on: whether a training can go on from a policy (`TrainingRun.initial`).
        resumes: whether a training can be resumed though it cannot go on from any policy.
        takes_real_data: whether batches can hold real transitions (`TrainingRun.real_data`).
        title: the library's own name.
        requires: module of the library.
        extra: extra of dreamgym that installs the library; empty where none is needed.
        module: module of dreamgym that has the functions of `LearnerLibrary`.
        algorithms: names of its algorithms.
        suffix: suffix of its policy files. Learners that share one share their file's format, in
            which the card says who wrote it.
        agent_wrappers: path of the class that knows what the library's live agents were trained
            behind, a subclass of `dreamgym.data.agent_wrappers.AgentWrappers`; empty for nothing.
    """

    name: str
    goes_on: bool = False
    resumes: bool = False
    takes_real_data: bool = False
    title: str
    requires: str
    extra: str
    module: str
    algorithms: tuple[str, ...]
    suffix: str
    agent_wrappers: str = ""

    def library(self) -> LearnerLibrary:
        """Import the learner's module.

        Raises:
            ModuleNotFoundError: the library is not installed; the message names the extra.
        """
        self.require_installed()
        return cast(LearnerLibrary, importlib.import_module(self.module))

    def require_installed(self) -> None:
        """Raise `ModuleNotFoundError` with the extra's name where the library is missing."""
        user = f"the learner {self.name!r}"
        import_extra(self.requires, user, {self.requires: self.extra})

    def policy_path(self, path: str | Path) -> Path:
        """Return `path`, with the learner's suffix where it does not end with it."""
        path = local_path(path, PolicyFileError)
        return path if path.suffix == self.suffix else path.with_name(path.name + self.suffix)


LEARNERS = {
    learner.name: learner
    for learner in (
        Learner(
            name="sb3",
            goes_on=True,
            takes_real_data=True,
            title="Stable-Baselines3",
            requires="stable_baselines3",
            extra="sb3",
            module="dreamgym.train.sb3",
            algorithms=("PPO", "A2C", "SAC", "TD3", "DDPG", "DQN"),
            suffix=".zip",
            agent_wrappers="dreamgym.train.sb3.agent_wrappers.SB3AgentWrappers",
        ),
        Learner(
            name="sb3-contrib",
            goes_on=True,
            title="sb3-contrib",
            requires="sb3_contrib",
            extra="sb3-contrib",
            module="dreamgym.train.sb3_contrib",
            algorithms=("TQC", "CrossQ", "QRDQN", "TRPO"),
            suffix=".zip",
        ),
        Learner(
            name="ppo",
            goes_on=True,
            title="dreamgym's own PPO",
            requires="torch",
            extra="",
            module="dreamgym.train.ppo",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="rsl_rl",
            goes_on=True,
            title="rsl_rl",
            requires="rsl_rl",
            extra="rsl-rl",
            module="dreamgym.train.rsl_rl",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="skrl",
            goes_on=True,
            title="skrl",
            requires="skrl",
            extra="skrl",
            module="dreamgym.train.skrl",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="torchrl",
            goes_on=True,
            title="TorchRL",
            requires="torchrl",
            extra="torchrl",
            module="dreamgym.train.torchrl",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="tianshou",
            goes_on=True,
            title="Tianshou",
            requires="tianshou",
            extra="tianshou",
            module="dreamgym.train.tianshou",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="sbx",
            goes_on=True,
            title="SBX",
            requires="sbx",
            extra="sbx",
            module="dreamgym.train.sbx",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="rllib",
            goes_on=True,
            title="RLlib",
            requires="ray",
            extra="rllib",
            module="dreamgym.train.rllib",
            algorithms=("PPO",),
            suffix=".safetensors",
        ),
        Learner(
            name="cma",
            resumes=True,
            title="CMA-ES",
            requires="cma",
            extra="cma",
            module="dreamgym.train.cma",
            algorithms=("CMA-ES",),
            suffix=".cma",
        ),
    )
}
"""Learners by name. Where several have an algorithm, the first one is the default."""


WRAPPERS_OF.update(
    {each.requires: each.agent_wrappers for each in LEARNERS.values() if each.agent_wrappers}
)


def find_learner(algo: str | None, name: str | None = None) -> Learner:
    """Return the learner that trains an algorithm.

    Args:
        algo: name of an algorithm; None for the first one of the learner.
        name: name of the learner; None for the first one that has the algorithm.

    Raises:
        TrainingError: there is no such learner or algorithm; the message names the nearest one.
    """
    if name is not None and name not in LEARNERS:
        raise TrainingError(f"there is no learner {name!r}; {nearest(name, LEARNERS)}")
    candidates = list(LEARNERS.values()) if name is None else [LEARNERS[name]]
    if algo is None:
        return candidates[0]
    for learner in candidates:
        if algo in learner.algorithms:
            return learner
    known = {each for learner in candidates for each in learner.algorithms}
    owner = "" if name is None else f" of {LEARNERS[name].title}"
    raise TrainingError(f"there is no algorithm {algo!r}{owner}; {nearest(algo, known)}")


def learner_of_file(path: str | Path) -> Learner | None:
    """Return the learner that writes policy files with the suffix of `path`, or None."""
    suffix = Path(path).suffix
    return next((each for each in LEARNERS.values() if each.suffix == suffix), None)


def format_owner(name: str) -> Learner:
    """Return the learner whose module reads the policy files of a learner: the first of its suffix.

    Args:
        name: name of a learner.
    """
    return next(each for each in LEARNERS.values() if each.suffix == LEARNERS[name].suffix)


def describe_algorithms() -> str:
    """Return one line of all algorithms by learner, for help texts."""
    return "; ".join(f"{', '.join(each.algorithms)} ({each.name})" for each in LEARNERS.values())


def extras() -> dict[str, str]:
    """Return the extras of all learner libraries, by the module that they install."""
    return {each.requires: each.extra for each in LEARNERS.values() if each.extra}
