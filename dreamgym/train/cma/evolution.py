"""Evolution of a controller by CMA-ES: a generation is one batched dream."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cma
import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError
from dreamgym.models.reduction import float64_on_host
from dreamgym.train.cma.controller import Controller
from dreamgym.train.cma.policy_file import Evolved, load
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.scales import measure_scales
from dreamgym.train.training import TrainingRun

ALGORITHM = "CMA-ES"

_EPISODES = 100_000  # of a training: 100 generations of 64 x 16, or 200 of 64 x 8
_ON_OBSERVATIONS: dict[str, Any] = {"rollouts": 8, "sigma0": 1.0, "hidden": (8,)}
_CHECK_EVERY = 16  # steps between checks whether all episodes have ended, a host sync
_UNUSED = (
    "num_envs",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "learning_rate",
    "reward_scale",
)


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """Settings of CMA-ES, the `learner` mapping of `TrainConfig`.

    The defaults are V-M-C's, for the features of a latent view. For observations they are 8
    rollouts, a sigma0 of 1 and one hidden layer of 8: a linear controller cannot both swing a
    pendulum up and hold it there.

    Attributes:
        popsize: controllers of a generation.
        rollouts: episodes of each controller, over which its return is averaged.
        sigma0: standard deviation of the first generation around zero.
        hidden: widths of hidden layers; none for a linear controller.
        resume: file of a policy that CMA-ES trained with the same settings; training goes on from
            its last generation, up to `steps` in all.
    """

    popsize: int = 64
    rollouts: int = 16
    sigma0: float = 0.1
    hidden: tuple[int, ...] = ()
    resume: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.popsize < 2:
            raise TrainingError(f"popsize is {self.popsize}; expected at least 2")
        if self.rollouts < 1 or any(width < 1 for width in self.hidden):
            raise TrainingError("rollouts and widths in hidden are whole numbers of at least 1")
        if not self.sigma0 > 0:
            raise TrainingError(f"sigma0 is {self.sigma0}; expected a number above 0")

    @classmethod
    def of(cls, run: TrainingRun) -> EvolutionConfig:
        """Return the settings of a training.

        Raises:
            TrainingError: a setting does not exist or does not apply.
        """
        config = run.config
        given: Mapping[str, Any] = config.learner
        names = [each.name for each in fields(cls)]
        for name in given:
            if name not in names:
                raise TrainingError(f"{ALGORITHM} has no {name!r}; it has {', '.join(names)}")
        unused = [name for name in _UNUSED if getattr(config, name) is not None]
        if unused:
            raise TrainingError(
                f"{unused[0]} does not apply to {ALGORITHM}, which has no gradients; its settings "
                f"are {', '.join(names)} in learner"
            )
        return cls(**{**(_ON_OBSERVATIONS if run.view == "observation" else {}), **given})


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`; a controller acts in every space that a dream has."""
    return None


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    EvolutionConfig.of(run)


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    config = EvolutionConfig.of(run)
    # A resumed evolution asks for the same candidates again, so its seed is that of the first run.
    seed = run.seed if run.earlier is None else run.earlier.seed
    rows = config.popsize * config.rollouts
    options = {"output": "torch", "autoreset_mode": "SameStep"}
    dream = DreamVectorEnv(run.world, rows, **options, **run.dream_options)
    scales = measure_scales(run.world, seed=seed, gamma=1.0, options=run.dream_options)
    network: dict[str, Any] = {"hidden": list(config.hidden)}
    network |= {"mean": scales.mean, "std": scales.std}
    controller = Controller(dream.single_action_space, scales.mean, scales.std, config.hidden)
    controller.to(dream.device)
    evolution = Evolution(controller.size, config, seed)
    curve: list[list[float]] = []
    if run.initial is not None:
        _tell_history(evolution, config, run.initial, seed, network)
    elif config.resume is not None:
        policy = load(Path(config.resume), algo=None, env=None)
        _tell_history(evolution, config, policy, seed, network)
        curve = [list(point) for point in policy.card.curve]
    done = int(curve[-1][0]) if curve else 0
    steps = run.steps_left(_EPISODES * dream.horizon)
    settings = {"popsize": config.popsize, "rollouts": config.rollouts, "sigma0": config.sigma0}

    def policy_so_far() -> TrainedPolicy:
        card = run.card(dream, settings=settings, steps=done, policy=network, curve=list(curve))
        controller.weights.copy_(torch.as_tensor(evolution.mean))
        evolved = Evolved(fitness=np.array(evolution.fitness).reshape(-1, config.popsize))
        return TrainedPolicy(network=deepcopy(controller).cpu(), card=card, algorithm=evolved)

    finished = True
    try:
        while done < steps:
            fitness, taken = generation(dream, controller, evolution, config, seed)
            evolution.tell(fitness)
            done += taken
            curve.append([float(done), float(fitness.mean())])
            run.report(done, steps, {"dream return": curve[-1][1]}, policy_so_far)
    except KeyboardInterrupt:
        finished = False
    finally:
        dream.close()
    return policy_so_far(), finished


class Evolution:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) that maximises, with its history.

    The history is all that a later process needs: it asks for the same candidates again and tells
    their fitness, without a dream.

    Args:
        size: number of parameters.
        config: settings.
        seed: seed of a private generator.

    Attributes:
        fitness: fitness (popsize,) of each generation so far.
    """

    def __init__(self, size: int, config: EvolutionConfig, seed: int) -> None:
        generator = np.random.default_rng([seed, 2])
        options = {
            "popsize": config.popsize,
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": np.nan,  # the global generator is left alone
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy(np.zeros(size), config.sigma0, options)
        self._asked: list[NDArray[np.float64]] = []
        self.fitness: list[NDArray[np.float64]] = []

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the distribution, which is less noisy than the best candidate."""
        mean: NDArray[np.float64] = np.array(self._strategy.mean)
        return mean

    def ask(self) -> NDArray[np.float64]:
        """Return the candidates (popsize, P) of the next generation."""
        if not self._asked:  # after an interruption the same ones are asked for again
            self._asked = self._strategy.ask()
        return np.stack(self._asked)

    def tell(self, fitness: NDArray[np.float64]) -> None:
        """Move to the next generation; the fitness (popsize,) is maximised."""
        asked = list(self.ask())
        self._strategy.tell(asked, [-float(value) for value in fitness])
        self.fitness.append(np.asarray(fitness, np.float64))
        self._asked = []


@torch.no_grad()
def generation(
    dream: DreamVectorEnv,
    controller: Controller,
    evolution: Evolution,
    config: EvolutionConfig,
    seed: int,
) -> tuple[NDArray[np.float64], int]:
    """Dream with every candidate of a generation, each in several rollouts.

    Rollout k of every candidate has the same start and the same noise (common random numbers), so
    that candidates differ by what they do alone.

    Args:
        dream: `popsize` times `rollouts` rows.
        controller: the network.
        evolution: what asks for candidates.
        config: settings.
        seed: seed of the training.

    Returns:
        The mean return (popsize,) of each candidate, and the steps of the dream.
    """
    shape = (config.popsize, config.rollouts)
    weights = torch.as_tensor(evolution.ask(), dtype=torch.float32, device=dream.device)
    number = np.random.SeedSequence([seed, len(evolution.fitness)]).generate_state(1)[0]
    dream.reset(seed=int(number))
    index = torch.arange(config.rollouts, device=dream.device).repeat(config.popsize)
    observation: Tensor = dream.set_state(dream.get_state().rows(index))
    total = torch.zeros(dream.num_envs, device=dream.device)
    running = torch.ones(dream.num_envs, dtype=torch.bool, device=dream.device)
    for step in range(dream.horizon):
        actions = controller.act(weights, observation.unflatten(0, shape)).flatten(0, 1)
        observation, reward, terminated, truncated, _ = dream.step(actions)
        total += reward * running
        running &= ~(terminated | truncated)
        if step % _CHECK_EVERY == 0 and not running.any():
            break
    fitness = float64_on_host(total.view(shape).mean(1)).numpy()
    return np.nan_to_num(fitness, nan=-1e30, neginf=-1e30), (step + 1) * dream.num_envs


def _tell_history(
    evolution: Evolution,
    config: EvolutionConfig,
    policy: TrainedPolicy,
    seed: int,
    network: dict[str, Any],
) -> None:
    """Tell an evolution the history of a policy.

    Raises:
        TrainingError: it was made with other settings.
    """
    card = policy.card
    same = {
        "seed": (card.seed, seed),
        "network": (card.policy, network),
        **{
            name: (card.hyperparameters.get(name), getattr(config, name))
            for name in ("popsize", "rollouts", "sigma0")
        },
    }
    for name, (theirs, ours) in same.items():
        if theirs != ours:
            raise TrainingError(
                f"the policy to resume was trained with another {name}; training goes on with the "
                "world, the seed and the settings that it began with"
            )
    for fitness in policy.algorithm.fitness:
        evolution.tell(fitness)
