"""The online loop: record, refit, train in the dream, measure, and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._files import atomic_file, local_path
from dreamgym.data import Dataset, PolicyLike, record, resume
from dreamgym.errors import OnlineError
from dreamgym.fitting import FitConfig
from dreamgym.models import ModelSpec, WorldModel
from dreamgym.online.config import Branches, ImproveConfig
from dreamgym.online.exploration import NoisyPolicy
from dreamgym.online.stages import (
    Parts,
    Report,
    acting,
    check_environment,
    checked_learner,
    first_policy,
    fit_world,
    forget_fit,
    save_killed,
    train_in_dreams,
)
from dreamgym.train import TrainedPolicy, load_policy
from dreamgym.train.planners import PlannedPolicy
from dreamgym.transfer import LatentAgent, evaluate
from dreamgym.transfer.real import EnvSource, env_maker, make_env
from dreamgym.world import World, load

Figures = dict[str, Any]
Progress = Callable[[Figures], None]
StageProgress = Callable[..., None]
"""Takes the number of a round, the name of its stage, what is done and what there is to do of it,
and perhaps figures, a mapping."""

SETTINGS, FIGURES = "settings.json", "figures.json"
DATA, WORLD, POLICY = "data.h5", "world", "policy"

# streams of random numbers of a round
_RECORD, _TRAIN, _EVALUATE = range(3)


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What the online loop has made.

    Attributes:
        folder: folder of all rounds.
        rounds: figures of each round, JSON-plain; see `improve`.
        best: number of the round, from 1, whose policy has the highest real return; the last round
            where nothing was measured.
        reached: whether its real return reached the target.
        planner: planner that acts in the worlds; None where policies were trained.
    """

    folder: Path
    rounds: list[Figures]
    best: int
    reached: bool
    planner: Any = None

    @property
    def real_steps(self) -> int:
        """Real steps that were recorded: those of the budget."""
        return int(self.rounds[-1]["real_steps"])

    @property
    def evaluation_steps(self) -> int:
        """Real steps that measuring took, beside the budget."""
        return int(self.rounds[-1]["evaluation_steps"])

    @property
    def policy_path(self) -> Path:
        """File of the best round's policy; with a planner, the world that it plans in."""
        found = self.rounds[self.best - 1]
        return self.folder / (found["policy"] or found["world"])

    def load_policy(self) -> TrainedPolicy | PlannedPolicy:
        """Read the best round's policy; with a planner, it plans in the best round's world."""
        if self.planner is not None:
            return PlannedPolicy(self.policy_path, self.planner)
        return load_policy(self.policy_path)

    def load_world(self) -> World:
        """Read the world that the best round's policy was trained in, or plans in."""
        return load(self.folder / self.rounds[self.best - 1]["world"])


def improve(  # noqa: PLR0913 - what to improve is four of them
    env: EnvSource,
    *,
    real_steps: int,
    out: str | Path,
    target: float | None = None,
    seed: int = 0,
    config: ImproveConfig | None = None,
    progress: Progress | None = None,
    stage_progress: StageProgress | None = None,
) -> Improvement:
    """Improve a policy in rounds: record, refit the world, train in its dreams, measure.

    Every round is a folder `round-001`, ... in `out` with its dataset, world, policy and figures.
    Each file appears when it is complete, so a loop that was stopped at any moment, also by
    SIGKILL, goes on from there when it is called again with the same arguments. (Of a recording
    that is killed, the open episode is lost; its steps are not counted.) A larger `real_steps`
    continues a loop that has ended.

    Real steps that are recorded count towards the budget, `real_steps`. Those that measuring a
    policy takes are counted beside it (`evaluation_steps`), and never used to fit a world. The
    best round is chosen by its real return, never by the return in a dream.

    The figures of a round are `round`, `steps` (recorded in it), `real_steps` (so far),
    `evaluation_steps` (so far), `episodes` and `recorded_return` (complete episodes of its data and
    their mean return, None without any), `updates`, `held_out_loss`, `horizon` and `dream_steps` of
    its fit and training, `dream_return` (at the end of the training), `real_return`,
    `real_interval` (95%) and `real_length` (of the policy that it trained, None where nothing was
    measured; the length counts steps of the dream), `seconds` by stage, and `data`, `world` and
    `policy`, paths relative to `out`. With a planner `policy` and `dream_return` are None, and
    `dream_steps` is 0; with `one_fit` the updates are those of all rounds so far.

    Args:
        env: an id, an `EnvSpec` or its JSON, or a function that makes a `gym.Env`.
        real_steps: real steps to record in all, the budget.
        out: folder of the rounds; it is made, or continued.
        target: mean real return over `config.evaluation_episodes` episodes at which the loop stops.
        seed: seed of everything random.
        config: settings.
        progress: called with the figures of each round when it ends.
        stage_progress: called during a round with its number, the stage ("record", "fit", "train"
            or "evaluate"), what is done and what there is to do of it, and perhaps figures.

    Returns:
        Figures, policies and worlds.

    Raises:
        OnlineError: `out` was made with other settings, a number is out of range, settings do not
            go together, or the family or the algorithm does not take the environment's spaces.
        TransferError: there is no such environment.
    """
    if real_steps < 1:
        raise OnlineError(f"real_steps is {real_steps}; expected at least 1")
    config = config or ImproveConfig()
    if target is not None and not config.evaluation_episodes:
        raise OnlineError("a target needs real episodes: give evaluation_episodes of at least 1")
    loop = _Loop(env, real_steps, local_path(out, OnlineError), config, seed)
    loop.stage_progress = stage_progress
    loop.check_settings()
    rounds: list[Figures] = []
    while True:
        figures = loop.round(rounds)
        rounds.append(figures)
        if progress is not None:
            progress(figures)
        best = _best(rounds)
        mean = rounds[best - 1]["real_return"]
        reached = target is not None and mean is not None and mean >= target
        if reached or figures["real_steps"] >= real_steps:
            return Improvement(
                folder=loop.out,
                rounds=rounds,
                best=best,
                reached=reached,
                planner=loop.config.planner,
            )


def _best(rounds: list[Figures]) -> int:
    """Return the number of the round with the highest real return, the later of equals."""
    returns = [-np.inf if each["real_return"] is None else each["real_return"] for each in rounds]
    return int(len(returns) - np.argmax(returns[::-1]))


class _Loop:
    """One loop: its environment, settings and folder."""

    def __init__(
        self, env: EnvSource, real_steps: int, out: Path, config: ImproveConfig, seed: int
    ) -> None:
        self.maker = env_maker(env)
        self.real_steps, self.out, self.config, self.seed = real_steps, out, config, seed
        self.suffix = None if config.planner is not None else checked_learner(config).suffix
        self.stage_progress: StageProgress | None = None

    def check_settings(self) -> None:
        """Write the settings to a new folder, or check that they are those of an existing one."""
        with make_env(self.maker) as env:
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            check_environment(self.config, env)
        settings = {"env": name, "seed": self.seed, "config": _plain(self.config)}
        path = self.out / SETTINGS
        if not path.exists():
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        every = ImproveConfig(fit=FitConfig(), branches=Branches())
        saved["config"] = _completed(saved["config"], _plain(every))
        differing = _differences(saved, settings)
        if differing:
            raise OnlineError(
                f"{self.out} was made with other settings: {'; '.join(differing)}; give those to "
                "continue it, or another folder"
            )

    def round(self, earlier: list[Figures]) -> Figures:
        """Return the figures of the next round, which is done as far as it has not been."""
        number = len(earlier) + 1
        folder = self.out / f"round-{number:03d}"
        path = folder / FIGURES
        if path.exists():
            found: Figures = json.loads(path.read_text(encoding="utf-8"))
            return found
        used = earlier[-1]["real_steps"] if earlier else 0
        steps = self.config.round_steps if earlier else self.config.first_steps
        steps = min(steps, self.real_steps - used)
        clock = _Clock()
        figures = {"round": number, "steps": steps, "real_steps": used + steps}
        figures |= self._record(folder / DATA, steps, earlier)
        clock.stop("record")
        world = self._fit(folder / WORLD, steps, earlier)
        figures |= _fit_figures(world)
        clock.stop("fit")
        policy: TrainedPolicy | PlannedPolicy
        if self.suffix is None:
            policy = PlannedPolicy(world, self.config.planner)
            figures |= {"dream_steps": 0, "dream_return": None}
        else:
            policy = self._train(folder / f"{POLICY}{self.suffix}", world, steps, earlier)
            figures["dream_steps"] = policy.card.steps
            figures["dream_return"] = policy.curve[-1][1] if policy.curve else None
            clock.stop("train")
        figures |= self._evaluate(policy, world, earlier)
        clock.stop("evaluate")
        figures["evaluation_steps"] += earlier[-1]["evaluation_steps"] if earlier else 0
        figures["seconds"] = clock.seconds
        figures |= {"data": f"{folder.name}/{DATA}", "world": f"{folder.name}/{WORLD}"}
        figures["policy"] = None if self.suffix is None else f"{folder.name}/{POLICY}{self.suffix}"
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if earlier:
            forget_fit(self.out / earlier[-1]["world"])
        return figures

    def _record(self, path: Path, steps: int, earlier: list[Figures]) -> Figures:
        """Record the steps of a round, as far as its dataset does not hold them."""
        seed = self._seed(len(earlier) + 1, _RECORD)
        with make_env(self.maker) as env:
            save_killed(path)
            again = path.exists()
            (resume if again else partial(record, seed=seed))(
                env,
                steps=steps,
                out=path,
                policy=self._recording_policy(env, earlier),
                max_episode_steps=self.config.max_episode_steps,
                progress=self._report("record", earlier),
            )
        with Dataset(path) as data:
            episodes = [data.episode(index) for index in range(data.num_episodes)]
        returns = [float(each.rewards.sum()) for each in episodes if each.complete]
        return {
            "episodes": len(returns),
            "recorded_return": float(np.mean(returns)) if returns else None,
        }

    def _recording_policy(self, env: Any, earlier: list[Figures]) -> PolicyLike:
        if not earlier:
            return first_policy(self.config, env)
        last = self._last_policy(earlier)
        own = acting(self.config, last, self.out / earlier[-1]["world"])
        return NoisyPolicy(own, env.action_space, self.config.noise)

    def _fit(self, path: Path, steps: int, earlier: list[Figures]) -> World:
        """Return the world of a round, fitted to the data of all rounds so far."""
        if path.exists():
            return load(path)
        last = self.out / earlier[-1]["world"] if earlier else None
        data = self._data(path.parent, steps, earlier)
        return fit_world(
            self.config,
            data,
            path,
            steps=steps,
            last=last,
            seed=self.seed,
            progress=self._report("fit", earlier),
        )

    def _train(self, path: Path, world: World, steps: int, earlier: list[Figures]) -> TrainedPolicy:
        """Return the policy of a round, trained in the dreams of its world."""
        if path.exists():
            return load_policy(path)
        used = (earlier[-1]["real_steps"] if earlier else 0) + steps
        return train_in_dreams(
            self.config,
            world,
            path,
            data=self._data(path.parent, steps, earlier),
            steps=steps,
            bonus=self.config.bonus * max(0.0, 1 - used / self.real_steps),
            initial=self._last_policy(earlier) if earlier else None,
            seed=self._seed(len(earlier) + 1, _TRAIN),
            progress=self._report("train", earlier),
        )

    def _data(self, folder: Path, steps: int, earlier: list[Figures]) -> Parts:
        """Return the datasets of all rounds so far with their steps."""
        before = [(self.out / each["data"], float(each["steps"])) for each in earlier]
        return [*before, (folder / DATA, float(steps))]

    def _evaluate(
        self, policy: TrainedPolicy | PlannedPolicy, world: World, earlier: list[Figures]
    ) -> Figures:
        """Return the real return of a policy."""
        if not self.config.evaluation_episodes:
            nothing = dict.fromkeys(("real_return", "real_interval", "real_length"))
            return {**nothing, "evaluation_steps": 0}
        measurable: PolicyLike = policy
        if isinstance(policy, TrainedPolicy) and policy.view == "latent":
            measurable = LatentAgent(policy, world, deterministic=True)
        limit = self.config.max_episode_steps
        measured = evaluate(
            measurable,
            lambda: world.adapted(make_env(self.maker)),
            episodes=self.config.evaluation_episodes,
            seed=self._seed(len(earlier) + 1, _EVALUATE),
            max_episode_steps=None if limit is None else world.frame_skip.count(limit),
            progress=self._report("evaluate", earlier),
        )
        return {
            "real_return": measured.mean,
            "real_interval": list(measured.interval),
            "real_length": float(measured.lengths.mean()),
            "evaluation_steps": measured.steps,
        }

    def _report(self, stage: str, earlier: list[Figures]) -> Report | None:
        """Return the progress callback of a stage."""
        report = self.stage_progress
        return None if report is None else partial(report, len(earlier) + 1, stage)

    def _last_policy(self, earlier: list[Figures]) -> TrainedPolicy | None:
        if self.suffix is None:
            return None
        return load_policy(self.out / earlier[-1]["policy"])

    def _seed(self, number: int, stream: int) -> int:
        """Return the seed of a stream of random numbers in a round, below 2**31."""
        words = np.random.SeedSequence(self.seed, spawn_key=(number, stream)).generate_state(1)
        return int(words[0] >> 1)


class _Clock:
    """Seconds of each stage of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Note the seconds since the last stage ended."""
        now = time.perf_counter()
        self.seconds[stage], self._started = round(now - self._started, 2), now


def _fit_figures(world: World) -> Figures:
    return {
        "updates": world.provenance["updates"],
        "held_out_loss": world.provenance["best_held_out_loss"],
        "horizon": world.horizon,
    }


def _plain(value: Any) -> Any:
    """Return a config as JSON-plain values, models by their spec."""
    if isinstance(value, WorldModel):
        return repr(ModelSpec.of(value))
    if is_dataclass(value):
        return {key: _plain(each) for key, each in vars(value).items()}
    return json.loads(json.dumps(value, default=repr))


def _completed(saved: Any, defaults: Any) -> Any:
    """Return saved settings with the defaults of settings that did not exist then."""
    if not (isinstance(saved, dict) and isinstance(defaults, dict)):
        return saved
    both = {key: _completed(saved[key], defaults[key]) for key in defaults if key in saved}
    return {**defaults, **saved, **both}


def _differences(saved: Any, given: Any, place: str = "") -> list[str]:
    """Describe where two JSON values differ."""
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = [*saved, *(key for key in given if key not in saved)]
        return [
            text
            for key in keys
            for text in _differences(
                saved.get(key), given.get(key), f"{place}.{key}" if place else key
            )
        ]
    return [] if saved == given else [f"{place} was {saved!r}, here {given!r}"]
