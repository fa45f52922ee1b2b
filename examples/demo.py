"""The whole way on CartPole: record, check, fit, dream, train, transfer.

An agent that never touches the real CartPole while it learns balances the real CartPole. Run it
with `make demo`; it leaves a dataset, a world, a policy, a table and a picture in `demo/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import dreamgym
from dreamgym.cli.output import progress_bar
from dreamgym.data import Dataset, with_frame_skip
from dreamgym.world import Replay, replay

ENV_ID = "CartPole-v1"
REAL, DREAMT = "#1b1b1b", "#3366aa"
SHOWN_STEPS = 60
LABELS = ("cart position (m)", "cart velocity (m/s)", "pole angle (rad)", "pole velocity (rad/s)")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    steps: int = 10_000
    updates: int = 2000
    num_envs: int = 256
    training_steps: int | None = None
    episodes: int = 100


SHORT = Sizes(steps=1000, updates=50, num_envs=16, training_steps=2048, episodes=5)
"""Enough to run every stage, far too little to learn: for the tests."""


class Stopwatch:
    """Seconds that each named stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._began, 1)
        self._began = now


def longest_held_out(world: dreamgym.World, data: str | Path, limit: int = SHOWN_STEPS) -> Replay:
    """The longest episode that a world was not fitted on, replayed in dreams.

    Args:
        world: fitted on `data`; its provenance says which episodes were held out.
        data: the dataset's path.
        limit: longer episodes than this are not preferred, so that the picture can be read.
    """
    settings = world.provenance["fit"]
    with Dataset(data) as opened:
        dataset = with_frame_skip(opened, world.frame_skip)
        if dataset.checksum != world.provenance["dataset_checksum"]:
            raise ValueError(
                f"{data} is not the dataset that {world.name!r} was fitted to: which of its "
                "episodes were held out is not known; give that dataset"
            )
        _, held_out = dataset.split(settings["held_out"], settings["seed"])
        lengths = np.minimum(np.asarray(dataset.lengths)[held_out], limit)
        return replay(world, dataset.episode(int(held_out[int(lengths.argmax())])))


def draw_overlay(axes: Sequence[Any], shown: Replay, labels: Sequence[str]) -> None:
    """Draw a replay, one axes for each number of the observation.

    Args:
        axes: matplotlib axes, one for each of the n numbers.
        shown: real (T + 1, n) and dreamt (samples, T + 1, n).
        labels: n names with units.
    """
    steps = np.arange(len(shown.real))
    for index, (ax, label) in enumerate(zip(axes, labels, strict=True)):
        dreams = shown.dreamt[..., index]
        for low, high in ((2.5, 97.5), (25, 75)):
            band = np.percentile(dreams, (low, high), axis=0)
            ax.fill_between(steps, *band, color=DREAMT, alpha=0.2, linewidth=0)
        ax.plot(steps, np.median(dreams, 0), color=DREAMT, label="dreamt (median, 50%, 95%)")
        ax.plot(steps, shown.real[:, index], color=REAL, linestyle="--", label="real")
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("step", fontsize=8)


def draw_demo(
    world: dreamgym.World,
    data: str | Path,
    curve: Sequence[tuple[int, float]],
    path: Path,
    *,
    labels: Sequence[str],
) -> None:
    """Write the picture of a whole story: trajectories over each other, and the learning curve.

    Args:
        world: fitted on `data`.
        data: the dataset's path.
        curve: (dream steps, mean dream return) pairs.
        path: the PNG to write.
        labels: a name with its unit for each number of the observation.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, len(labels), height_ratios=(1, 1.15))
    top = [figure.add_subplot(grid[0, index]) for index in range(len(labels))]
    draw_overlay(top, longest_held_out(world, data), labels)
    top[0].legend(fontsize=7)
    below = figure.add_subplot(grid[1, :])
    steps, returns = np.asarray(curve, dtype=float).reshape(-1, 2).T
    below.plot(steps, returns, color=DREAMT)
    below.set_xlabel("training steps in the dream")
    below.set_ylabel(f"mean return of dreams\n(cut off at {world.horizon} steps)")
    below.set_title(
        f"A real {world.env_id} episode that the world never saw, and dreams of the same actions "
        "(above); learning in the dream (below)",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    """Walk the whole way and show what came of it."""
    arguments = parse()
    sizes = SHORT if arguments.short else Sizes()
    folder, console, watch = arguments.out, Console(highlight=False), Stopwatch()
    data, home = clear(folder), folder / "worlds" / "cartpole"

    with progress_bar("record") as bar:
        dreamgym.record(ENV_ID, steps=sizes.steps, out=data, seed=arguments.seed, progress=bar)
    card = dreamgym.check(data)
    if not card.ok:
        raise SystemExit(f"{data}: {'; '.join(card.problems)}")
    console.print(f"{data}: checked, nothing wrong with it")
    watch.lap("record and check")

    config = dreamgym.FitConfig(updates=sizes.updates, evaluate_every=min(250, sizes.updates))
    with progress_bar("fit") as bar:
        world = dreamgym.fit(
            data, home, family="mdn-rnn", seed=arguments.seed, config=config, progress=bar
        )
    watch.lap("fit the world")

    # The world is an environment: any vector-environment code can take it from here.
    dreams = gym.make_vec("dreamgym/World-v0", world=str(home), num_envs=sizes.num_envs)
    console.print(f"{home}: {dreams.num_envs} dreams of {ENV_ID}")
    dreams.close()

    with progress_bar("train in the dream") as bar:
        dreamt = dreamgym.train_policy(
            home,
            algo="PPO",
            seed=arguments.seed,
            steps=sizes.training_steps,
            out=folder / "cartpole-ppo.zip",
            progress=bar,
        )
    watch.lap("train in the dream")
    with console.status("train PPO on the same number of real steps"):
        model_free = train_on_real_steps(sizes.steps, arguments.seed)
    watch.lap("train on real steps")

    with console.status(f"{sizes.episodes} real episodes of each policy"):
        results = evaluate_all(model_free, dreamt, world, sizes, watch.seconds)
    watch.lap("evaluate")
    picture = folder / "demo.png"
    draw_demo(world, data, dreamt.curve, picture, labels=LABELS)
    watch.lap("draw")
    console.print(table(results, sizes.episodes))
    figures = {"env_id": ENV_ID, "policies": results, "seconds": watch.seconds}
    (folder / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    total = sum(watch.seconds.values())
    console.print(f"{total:.0f} s in all. The picture: {picture}  The figures: {folder}/demo.json")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for what it makes")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--short", action="store_true", help="every stage, too short to learn")
    return parser.parse_args()


def clear(folder: Path) -> Path:
    """Make the folder, take away what an earlier demo left in it, and give the dataset's path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "cartpole.h5"
    for made in (data, folder / "cartpole-ppo.zip", folder / "demo.png", folder / "demo.json"):
        made.unlink(missing_ok=True)
    shutil.rmtree(folder / "worlds" / "cartpole", ignore_errors=True)
    return data


def train_on_real_steps(steps: int, seed: int) -> PPO:
    """The model-free baseline: PPO, with the budget of real steps that the dataset cost."""
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    agent = PPO("MlpPolicy", env, n_steps=50, batch_size=50, seed=seed, device="cpu")
    return agent.learn(steps)


def evaluate_all(
    model_free: PPO, dreamt: Any, world: dreamgym.World, sizes: Sizes, seconds: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Real returns of the three policies, with what each cost."""
    learning = sum(seconds[k] for k in ("record and check", "fit the world", "train in the dream"))
    random = dreamgym.evaluate("random", ENV_ID, episodes=sizes.episodes)
    on_real_steps = dreamgym.evaluate(model_free, ENV_ID, episodes=sizes.episodes)
    transfer = dreamgym.transfer_policy(dreamt, world, episodes=sizes.episodes)
    return {
        "random": {**random.as_dict(), "real_steps": 0, "seconds": 0.0},
        "PPO on real steps": {
            **on_real_steps.as_dict(),
            "real_steps": model_free.num_timesteps,
            "seconds": seconds["train on real steps"],
        },
        "PPO in the dream": {
            **transfer.real.as_dict(),
            "dream_return_mean": transfer.dream.mean,
            "real_steps": sizes.steps,
            "seconds": round(learning, 1),
        },
    }


def table(results: dict[str, dict[str, Any]], episodes: int) -> Table:
    """The policies side by side."""
    shown = Table(title=f"{ENV_ID}: mean real return over {episodes} episodes")
    shown.add_column("policy", no_wrap=True)
    for column in ("real return", "95% interval", "real steps", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        low, high = result["return_interval"]
        shown.add_row(
            name,
            f"{result['return_mean']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{result['real_steps']:,}",
            f"{result['seconds']:.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
