"""The online loop against model-free learning: real return for the real steps that it took.

For every task and seed: `dreamgym.improve` within a budget of real steps, which are all that it
takes: no round is measured on the way (`evaluation_episodes=0`), and its result is the last policy.
That is measured over 100 real episodes afterwards, and those of the other rounds over a few, for
the picture; nothing is chosen by what is found. Beside it a model-free algorithm of
Stable-Baselines3 on the whole budget, with settings of its own zoo for CartPole, Pendulum and
LunarLander, those for LunarLander on Acrobot too, and its defaults for InvertedPendulum. What is
made lies in `--work` and is used again, so that a run that was stopped goes on; `--picture` draws
real return against real steps. LunarLander needs `gymnasium[box2d]`, InvertedPendulum
`gymnasium[mujoco]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EventCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from support.pictures import Curve, draw_returns
from support.reporting import Row, at_least, below, parser, report

import dreamgym
from dreamgym import ImproveConfig
from dreamgym.models import MDNRNNConfig
from dreamgym.train import TrainConfig, load_policy

EPISODES = 100
POINTS = 10
"""Measurements of a model-free training, of `POINT_EPISODES` episodes each."""
POINT_EPISODES = 10


@dataclass(frozen=True, kw_only=True)
class ModelFree:
    """A model-free baseline: an algorithm and its settings."""

    algorithm: type[BaseAlgorithm]
    num_envs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment, its budget and bar, and how both sides learn.

    Attributes:
        bar: mean real return over 100 episodes to reach.
        bar_steps: real steps, in all, within which the bar has to be reached.
        real_steps: real steps that the loop takes, in all.
        config: settings of the loop.
        baseline: the model-free side.
    """

    bar: float
    bar_steps: int
    real_steps: int
    config: ImproveConfig
    baseline: ModelFree


# rl-baselines3-zoo, hyperparams/dqn.yml, LunarLander
DQN_SETTINGS = {
    "learning_rate": 6.3e-4,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 0,
    "gamma": 0.99,
    "target_update_interval": 250,
    "train_freq": 4,
    "gradient_steps": -1,
    "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1,
    "policy_kwargs": {"net_arch": [256, 256]},
}

TASKS = {
    "CartPole-v1": Task(
        bar=475.0,
        bar_steps=3_000,
        real_steps=3_000,
        config=ImproveConfig(
            first_steps=1_000,
            round_steps=1_000,
            noise=0.3,
            dream_steps=150_000,
            evaluation_episodes=0,
        ),
        # rl-baselines3-zoo, hyperparams/ppo.yml, with constant rates instead of linear ones
        baseline=ModelFree(
            algorithm=PPO,
            num_envs=8,
            settings={
                "n_steps": 32,
                "batch_size": 256,
                "n_epochs": 20,
                "gae_lambda": 0.8,
                "gamma": 0.98,
                "learning_rate": 1e-3,
                "clip_range": 0.2,
            },
        ),
    ),
    "Pendulum-v1": Task(
        bar=-200.0,
        bar_steps=8_000,
        real_steps=5_000,
        config=ImproveConfig(
            first_steps=2_000,
            round_steps=1_000,
            noise=0.3,
            dream_steps=300_000,
            evaluation_episodes=0,
            train=TrainConfig(gamma=0.95),
        ),
        # rl-baselines3-zoo, hyperparams/sac.yml
        baseline=ModelFree(algorithm=SAC, settings={"learning_rate": 1e-3}),
    ),
    "Acrobot-v1": Task(
        bar=-100.0,
        bar_steps=30_000,
        real_steps=16_000,
        config=ImproveConfig(
            first_steps=4_000,
            round_steps=4_000,
            noise=0.3,
            dream_steps=300_000,
            evaluation_episodes=0,
            train=TrainConfig(horizon=200),
        ),
        # the zoo's for LunarLander, one update a step; not tuned for Acrobot
        baseline=ModelFree(algorithm=DQN, settings=DQN_SETTINGS),
    ),
    "InvertedPendulum-v5": Task(
        bar=1000.0,
        bar_steps=20_000,
        real_steps=5_000,
        config=ImproveConfig(
            first_steps=1_000,
            round_steps=1_000,
            noise=0.3,
            dream_steps=300_000,
            evaluation_episodes=0,
        ),
        # Stable-Baselines3's own defaults
        baseline=ModelFree(algorithm=PPO),
    ),
    "LunarLander-v3": Task(
        bar=150.0,
        bar_steps=60_000,
        real_steps=60_000,
        config=ImproveConfig(
            first_steps=5_000,
            round_steps=5_000,
            first_policy="sticky:0.5",
            # Little noise: a world that has mostly seen disturbed episodes near the ground predicts
            # a crash at every contact, and its policies hover.
            noise=0.3,
            max_episode_steps=600,
            frame_skip=3,
            actions="repeated",
            dream_steps=200_000,
            evaluation_episodes=0,
            # Heads that are wide enough for a reward of 0.1 beside one of 100: hovering in dreams
            # paid, where it costs fuel.
            fit=dreamgym.default_config("mdn-rnn", updates=600, model=MDNRNNConfig(head=256)),
            train=TrainConfig(horizon=200, gamma=0.99, learner={"ent_coef": 0.01}),
        ),
        # rl-baselines3-zoo, hyperparams/dqn.yml
        baseline=ModelFree(algorithm=DQN, settings=DQN_SETTINGS),
    ),
}
"""The bars of each task, within its budget of real steps."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One task and seed, and the folder of its results."""

    env_id: str
    seed: int
    work: Path
    quick: bool

    @property
    def task(self) -> Task:
        """The task of this run."""
        return TASKS[self.env_id]

    @property
    def real_steps(self) -> int:
        """Real steps that the loop takes."""
        return 2 * self.task.config.first_steps if self.quick else self.task.real_steps

    @property
    def bar_steps(self) -> int:
        """Real steps within which the bar has to be reached; the model-free side takes them all."""
        return self.real_steps if self.quick else self.task.bar_steps

    def has(self, side: str) -> bool:
        """Return whether "improved" or "model_free" has been measured."""
        return (self.folder / f"{side}.json").exists()

    @property
    def folder(self) -> Path:
        """Folder of this run's results."""
        return self.work / f"{self.env_id}-{self.seed}"

    def improved(self) -> dict[str, Any]:
        """Return the figures of the loop and of its last policy."""
        path = self.folder / "improved.json"
        if not path.exists():
            config = self.task.config
            if self.quick:
                fit = config.fit or dreamgym.default_config(config.family)
                fit = replace(fit, updates=40)
                config = replace(config, fit=fit, dream_steps=4096)
            result = dreamgym.improve(
                self.env_id,
                real_steps=self.real_steps,
                out=self.folder / "loop",
                seed=self.seed,
                config=config,
                progress=self._say,
            )
            points = []
            for each in result.rounds[:-1]:
                measured = self._measure(result.folder, each, POINT_EPISODES)
                points.append((each["real_steps"], measured.mean))
            measured = self._measure(result.folder, result.rounds[-1], EPISODES)
            points.append((result.real_steps, measured.mean))
            figures = {"rounds": result.rounds, "points": points, **measured.as_dict()}
            path.write_text(json.dumps(figures, indent=1))
        return json.loads(path.read_text())

    def _measure(self, folder: Path, figures: Mapping[str, Any], episodes: int) -> Any:
        """Measure the policy of a round in the real environment, with the world's frame skip."""
        world = dreamgym.load(folder / figures["world"])
        policy = load_policy(folder / figures["policy"])
        env = lambda: world.adapted(gym.make(self.env_id))  # noqa: E731
        return dreamgym.evaluate(policy, env, episodes=episodes)

    def _say(self, figures: dict[str, Any]) -> None:
        shown = ("round", "real_steps", "recorded_return", "dream_return", "seconds")
        print(self.env_id, self.seed, {name: figures[name] for name in shown}, flush=True)

    def model_free(self) -> dict[str, Any]:
        """Return the figures of the model-free side."""
        path = self.folder / "model_free.json"
        if not path.exists():
            torch.set_num_threads(1)
            baseline = self.task.baseline
            env = make_vec_env(self.env_id, n_envs=baseline.num_envs, seed=self.seed)
            agent = baseline.algorithm(
                "MlpPolicy", env, seed=self.seed, device="cpu", **baseline.settings
            )
            measure = Measure(self.env_id)
            agent.learn(self.bar_steps, callback=EveryNTimesteps(self.bar_steps // POINTS, measure))
            measured = dreamgym.evaluate(agent.policy, self.env_id, episodes=EPISODES)
            figures = {**measured.as_dict(), "points": measure.points}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=1))
        return json.loads(path.read_text())


class Measure(EventCallback):
    """Measure a model-free agent in the real environment; these steps are beside its budget too."""

    def __init__(self, env_id: str) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self._env_id = env_id

    def _on_step(self) -> bool:
        measured = dreamgym.evaluate(
            self.model.policy, self._env_id, episodes=POINT_EPISODES, seed=50_000
        )
        self.points.append((self.num_timesteps, measured.mean))
        return True


def seeds_interval(returns: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of the mean over seeds, by Student's t: they are too few to resample.

    Args:
        returns: (seeds,) mean return of each.
    """
    error = stats.sem(returns)
    if not error > 0:
        return float(returns.mean()), float(returns.mean())
    low, high = stats.t.interval(0.95, len(returns) - 1, returns.mean(), error)
    return float(low), float(high)


def rows_of(
    env_id: str, runs: list[Run], done_only: bool
) -> tuple[list[Row], dict[str, list[Curve]]]:
    """Return the figures of all seeds of a task, and its curves."""
    began, bar = time.perf_counter(), TASKS[env_id].bar
    if done_only:
        runs = [run for run in runs if run.has("improved")]
    loops = [run.improved() for run in runs]
    baselines = {run: run.model_free() for run in runs if run.has("model_free") or not done_only}
    rows: list[Row] = []
    curves: dict[str, list[Curve]] = {"improve": [], "model-free": []}
    for run, loop in zip(runs, loops, strict=True):
        name, last = f"{env_id}, seed {run.seed}", loop["rounds"][-1]
        low, high = loop["return_interval"]
        for what, value, unit in (
            ("real return", loop["return_mean"], "return"),
            ("low end of its 95% interval", low, "return"),
            ("high end of its 95% interval", high, "return"),
            ("real steps in all", last["real_steps"] + last["evaluation_steps"], "steps"),
            ("seconds", sum(sum(each["seconds"].values()) for each in loop["rounds"]), "s"),
        ):
            rows.append(Row(name=f"{name}: {what}", value=value, unit=unit))
        steps, measured = zip(*loop["points"], strict=True)
        curves["improve"].append(Curve(steps=list(steps), returns=list(measured)))
    for run, free in baselines.items():
        name = f"{env_id}, seed {run.seed}: model-free on {run.bar_steps} real steps"
        rows.append(Row(name=name, value=free["return_mean"], unit="return"))
        steps, measured = zip(*free["points"], strict=True)
        curves["model-free"].append(Curve(steps=list(steps), returns=list(measured)))
    returns = np.array([loop["return_mean"] for loop in loops])
    low, high = seeds_interval(returns)
    budget = f"{env_id}, {len(runs)} seeds"
    most = max(run.real_steps for run in runs)
    rows += [
        below(f"{budget}: real steps in all", most, "steps", runs[0].bar_steps + 1),
        at_least(f"{budget}: mean real return", float(returns.mean()), "return", bar),
        Row(name=f"{budget}: low end of its 95% interval", value=low, unit="return"),
        Row(name=f"{budget}: high end of its 95% interval", value=high, unit="return"),
    ]
    if baselines:
        name = f"{env_id}, {len(baselines)} seeds: mean real return, model-free"
        mean = float(np.mean([free["return_mean"] for free in baselines.values()]))
        rows.append(Row(name=name, value=mean, unit="return"))
    print(f"{env_id}: {time.perf_counter() - began:.0f} s")
    return rows, curves


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parsed.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    parsed.add_argument(
        "--done-only", action="store_true", help="leave out what is not in --work yet"
    )
    parsed.add_argument("--picture", type=Path, metavar="FILE", help="draw real return as PNG")
    return parsed.parse_args()


def main() -> None:
    chosen = arguments()
    rows: list[Row] = []
    drawn: dict[str, dict[str, list[Curve]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for env_id in chosen.tasks[:1] if chosen.quick else chosen.tasks:
            seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
            runs = [Run(env_id=env_id, seed=seed, work=work, quick=chosen.quick) for seed in seeds]
            found, drawn[env_id] = rows_of(env_id, runs, chosen.done_only)
            rows += found
    if chosen.picture is not None:
        draw_returns(drawn, {env_id: TASKS[env_id].bar for env_id in drawn}, chosen.picture)
    report(rows, chosen)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
