"""Policies that are named on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dreamgym._files import local_path, sha256
from dreamgym._settings import closest
from dreamgym.errors import PolicyFileError
from dreamgym.train.registry import LEARNERS, learner_of_file

if TYPE_CHECKING:
    from dreamgym.data.policies import FunctionPolicy

PLANNED = "plan:"
"""What the names of planners begin with."""

POLICY_HELP = (
    "random; sticky:P, which repeats its previous action with probability P and explores further "
    "where independent actions cancel out (sticky:0.8 suits Pendulum and LunarLander); held:N, "
    "random actions that are held for N steps each; plan:NAME, which plans in the world of --world "
    "without training (plan:icem, plan:cem, plan:categorical-cem, ...); a policy file "
    f"({', '.join(dict.fromkeys(learner.suffix for learner in LEARNERS.values()))}); a folder of "
    "dreamgym export; or MODULE:FUNCTION, a function from an observation to an action."
)


def policy_named(text: str) -> str | Path | ImportedPolicy:
    """Return what a policy's name on the command line means.

    Returns:
        The name of a random policy, the path of a policy file, or an imported function.

    Raises:
        BadParameter: there is no such function.
    """
    from dreamgym.data.policies import POLICY_NAMES

    if text.partition(":")[0] in POLICY_NAMES or text.startswith(PLANNED):
        return text
    path = local_path(text, PolicyFileError)
    if learner_of_file(text) is not None or path.is_file():
        return path
    if ":" in text:
        policy = ImportedPolicy(name=f"callable:{text}")
        policy.load()  # report a wrong name before the work
        return policy
    return text


def planned_policy(text: str, world: Any) -> Any:
    """Return the policy that `plan:NAME` names, in a world.

    Raises:
        TrainingError: there is no such planner.
        BadParameter: no world is given, or the planner cannot search its action space.
    """
    from dreamgym.train.planners import PlannedPolicy

    if world is None:
        raise typer.BadParameter(f"{text} plans in a world: name it with --world")
    try:
        return PlannedPolicy(world, text.removeprefix(PLANNED))
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(f"{text}: {error}") from None


def exported_policy(text: str) -> Any:
    """Return the policy of a folder of `dreamgym export`; None if the name is of something else.

    Raises:
        PolicyFileError: the folder cannot be used.
    """
    from dreamgym.transfer import ExportedPolicy

    path = local_path(text, PolicyFileError)
    return ExportedPolicy(path) if path.is_dir() else None


def evaluated_policy(text: str, world: Any, maker: Callable[[], Any], algo: str | None) -> Any:
    """Return the policy that `evaluate` names, which acts on real observations.

    Args:
        text: the name.
        world: the loaded world of --world, or None.
        maker: makes the real environment.
        algo: algorithm of a policy file that dreamgym did not write.

    Raises:
        PolicyFileError: the policy file cannot be used.
        BadParameter: there is no such function, or a policy of the latent view has no world.
    """
    exported = exported_policy(text)
    if exported is not None:
        return exported
    if text.startswith(PLANNED):
        return planned_policy(text, world)
    named = policy_named(text)
    if not isinstance(named, Path):
        return named
    from dreamgym.train import load_policy
    from dreamgym.transfer import LatentAgent

    env = None if algo is None else maker()
    policy = load_policy(named, world=world, algo=algo, env=env)
    if env is not None:
        env.close()
    if policy.view != "latent":
        return policy
    if world is None:
        raise typer.BadParameter(
            f"{text} sees the latent view of a world: name that world with --world"
        )
    return LatentAgent(policy, world, deterministic=True)


def recording_policy(
    text: str, env_id: str, *, algo: str | None, world: str | None, sample: bool
) -> Any:
    """Return the policy that `record --policy` names.

    Args:
        text: the name.
        env_id: id of the environment that is recorded.
        algo: algorithm of a policy file that dreamgym did not write.
        world: world to plan in, or that a policy of the latent view was trained in.
        sample: whether a policy file's actions are sampled.

    Raises:
        PolicyFileError: the policy file cannot be used.
        WorldError: there is no such world.
        BadParameter: there is no such function, or a policy of the latent view has no world.
    """
    exported = exported_policy(text)
    if exported is not None:
        return exported
    if text.startswith(PLANNED):
        return planned_policy(text, world)
    named = policy_named(text)
    if not isinstance(named, Path):
        return named
    from dreamgym.data import PredictPolicy
    from dreamgym.data.recording import make_env
    from dreamgym.train import load_policy
    from dreamgym.transfer import LatentAgent
    from dreamgym.world import load

    loaded = None if world is None else load(world)
    if algo is None:
        policy = load_policy(named, world=loaded)
    else:
        env = make_env(env_id)
        policy = load_policy(named, world=loaded, algo=algo, env=env)
        env.close()
    how = "sampled" if sample else "deterministic"
    # the checksum makes another file of the same name another policy
    name = f"{policy.card.learner}:{named.name}@{sha256(named)[:12]} {how}"
    if policy.view != "latent":
        return PredictPolicy(policy, name=name, deterministic=not sample)
    if loaded is None:
        raise typer.BadParameter(
            f"--policy {text} sees the {policy.view} view of a world: name that world with --world"
        )
    return LatentAgent(policy, loaded, name=name, deterministic=not sample)


@dataclass
class ImportedPolicy:
    """A function MODULE:FUNCTION as a policy, imported again in each process that records.

    Attributes:
        name: `callable:MODULE:FUNCTION`.
    """

    name: str
    _policy: FunctionPolicy | None = field(default=None, repr=False)

    def load(self) -> Callable[[Any], Any]:
        """Import the function; the working folder is on the path.

        Raises:
            BadParameter: there is no such function.
        """
        from dreamgym.data.policies import POLICY_NAMES

        _, module, function = self.name.split(":", 2)
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            found = importlib.import_module(module)
            for part in function.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            near = closest(module, POLICY_NAMES) if function[:1].isdigit() else None
            hint = f"did you mean {near}:{function}? Otherwise " if near else ""
            raise typer.BadParameter(
                f"--policy {module}:{function}: {error}; {hint}give a function of an observation "
                "that can be imported from here, as MODULE:FUNCTION"
            ) from None
        if not callable(found):
            raise typer.BadParameter(f"--policy {module}:{function} is not a function")
        return found

    def reset(self, rows: Any, seeds: Any) -> None:
        """See `Policy.reset`; a function has nothing to reset."""

    def act(self, observations: Any, rows: Any) -> list[Any]:
        """See `Policy.act`."""
        from dreamgym.data.policies import FunctionPolicy

        if self._policy is None:
            self._policy = FunctionPolicy(self.load())
        return self._policy.act(observations, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_policy": None}
