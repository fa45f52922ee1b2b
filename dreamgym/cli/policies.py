"""Policies that are named on the command line of `dreamgym record`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dreamgym._files import sha256

if TYPE_CHECKING:
    from dreamgym.train import TrainedPolicy


def named_policy(text: str, env_id: str, algo: str | None, sample: bool) -> Any:
    """What `--policy` names: a word of `dreamgym.record`, a zip file, or a function.

    Args:
        text: as given.
        env_id: of the environment that is recorded.
        algo: the algorithm of a zip that has no card.
        sample: sample the actions of a zip's policy.

    Raises:
        PolicyFileError: the zip holds no policy that can be read.
        BadParameter: there is no such function, or the policy sees a latent state.
    """
    if text.split(":")[0] in ("random", "sticky", "sticky-random", "held"):
        return text
    if text.endswith(".zip"):
        policy = FilePolicy(path=text, env_id=env_id, algo=algo, sample=sample)
        policy.load()  # what is wrong with it is said before anything is recorded
        return policy
    if ":" in text:
        function = FunctionPolicy(name=f"callable:{text}")
        function.load()
        return function
    return text


@dataclass
class FunctionPolicy:
    """A function `module:name`, found anew in each process that records.

    Attributes:
        name: `callable:module:name`.
    """

    name: str
    _function: Callable[[Any], Any] | None = field(default=None, repr=False)

    def load(self) -> Callable[[Any], Any]:
        """The function itself; modules are looked for in the working folder too."""
        _, module, function = self.name.split(":", 2)
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            found = importlib.import_module(module)
            for part in function.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise typer.BadParameter(
                f"--policy {module}:{function}: {error}; give a function of an observation that "
                "can be imported from here, as MODULE:FUNCTION"
            ) from None
        if not callable(found):
            raise typer.BadParameter(f"--policy {module}:{function} is no function")
        return found

    def begin(self, seed: int) -> None:
        """Nothing: what the function draws is its own affair."""
        if self._function is None:
            self._function = self.load()

    def act(self, observation: Any) -> Any:
        """What the function says."""
        return (self._function or self.load())(observation)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_function": None}


@dataclass
class FilePolicy:
    """A policy out of a zip of Stable-Baselines3, read without executing what is in it.

    One that acts with a frame skip is asked once for the steps that its action is for.

    Attributes:
        path: of the zip.
        env_id: of the environment, for a zip without a card.
        algo: likewise.
        sample: sample actions, seeded by the episode; else take the most likely one.
    """

    path: str
    env_id: str
    algo: str | None
    sample: bool
    _policy: TrainedPolicy | None = field(default=None, repr=False)
    _draws: int = field(default=0, repr=False)
    _actions: list[Any] = field(default_factory=list, repr=False)
    _space: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """File and checksum: another file of the same name is another policy."""
        how = "sampled" if self.sample else "deterministic"
        return f"sb3:{Path(self.path).name}@{sha256(Path(self.path))[:12]} {how}"

    def load(self) -> TrainedPolicy:
        """The policy itself, which must see observations."""
        from dreamgym.data.recording import make_env
        from dreamgym.train import load_policy

        env = make_env(self.env_id)
        policy = load_policy(self.path, algo=self.algo, env=None if self.algo is None else env)
        self._space = env.action_space
        env.close()
        if policy.view != "observation":
            raise typer.BadParameter(
                f"--policy {self.path} sees the {policy.view} view of a world; only a policy that "
                "sees observations can record in the real environment"
            )
        return policy

    def begin(self, seed: int) -> None:
        """Seed what is sampled."""
        self._draws, self._actions = seed, []
        if self._policy is None:
            self._policy = self.load()

    def act(self, observation: Any) -> Any:
        """The policy's next action; torch's global generator is left as it was."""
        if not self._actions:
            policy = self._policy = self._policy or self.load()
            self._actions = policy.frame_skip.split(self._chosen(policy, observation), self._space)
        return self._actions.pop(0)

    def _chosen(self, policy: TrainedPolicy, observation: Any) -> Any:
        import torch

        if not self.sample:
            return policy.predict(observation, deterministic=True)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._draws)  # torch.manual_seed: CUDA's too
            self._draws += 1
            return policy.predict(observation, deterministic=False)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_policy": None, "_actions": []}
