"""All stages on CartPole: record, check, fit, dream, train, transfer.

An agent that never touches the real CartPole while it learns balances the real CartPole. Run it
with `make demo`; it leaves a dataset, a world, a policy, a table and a picture in `demo/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import dreamgym
from dreamgym.data import Dataset, with_frame_skip
from dreamgym.world import Replay, replay

ENV_ID = "CartPole-v1"
REAL, DREAMT = "#1b1b1b", "#3366aa"
MAX_SHOWN_STEPS = 60
LABELS = ("cart position (m)", "cart velocity (m/s)", "pole angle (rad)", "pole velocity (rad/s)")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Size of every stage.

    Attributes:
        steps: real steps to record.
        updates: updates of the fit.
        num_envs: dreams side by side.
        training_steps: dream steps of the training; None for the algorithm's default.
        episodes: real episodes in which each policy is evaluated.
    """

    steps: int = 10_000
    updates: int = 2000
    num_envs: int = 256
    training_steps: int | None = None
    episodes: int = 100


SHORT = Sizes(steps=1000, updates=50, num_envs=16, training_steps=2048, episodes=5)
"""Enough to run every stage, far too little to learn: for the tests."""


class Stopwatch:
    """Seconds of each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """Assign the time since the last lap to a stage."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._start, 1)
        self._start = now


@contextmanager
def progress_bar(name: str, console: Console) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields a function of (done, total), which ignores further figures."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)

        def report(done: int, total: int, *_: Any) -> None:
            progress.update(task, completed=done, total=total)

        yield report


def longest_held_out(
    world: dreamgym.World, data: str | Path, limit: int = MAX_SHOWN_STEPS
) -> Replay:
    """Replay in dreams the longest episode that a world was not fitted to.

    Args:
        world: a world that was fitted to `data`; its provenance tells which episodes were held out.
        data: path of the dataset.
        limit: length above which longer episodes are not preferred, to keep the picture readable.

    Raises:
        ValueError: the world was fitted to another dataset.
    """
    settings = world.provenance["fit"]
    with Dataset(data) as opened:
        dataset = with_frame_skip(opened, world.frame_skip)
        if dataset.checksum != world.provenance["dataset_checksum"]:
            raise ValueError(
                f"{data} is not the dataset that {world.name!r} was fitted to, so its held-out "
                "episodes are unknown; pass that dataset"
            )
        _, held_out = dataset.split(settings["held_out"], settings["seed"])
        lengths = np.minimum(np.asarray(dataset.lengths)[held_out], limit)
        return replay(world, dataset.episode(int(held_out[int(lengths.argmax())])))


def draw_replay(axes: Sequence[Any], shown: Replay, labels: Sequence[str]) -> None:
    """Draw a replay, one axes object for each number of the observation.

    Args:
        axes: n matplotlib axes.
        shown: real (T + 1, n) and dreamt (samples, T + 1, n) observations.
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
    world: dreamgym.World, data: str | Path, curve: Sequence[tuple[int, float]], path: Path
) -> None:
    """Write the picture: real and dreamt trajectories above, the learning curve below.

    Args:
        world: a world that was fitted to `data`.
        data: path of the dataset.
        curve: (dream steps, mean dream return) pairs.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, len(LABELS), height_ratios=(1, 1.15))
    top = [figure.add_subplot(grid[0, index]) for index in range(len(LABELS))]
    draw_replay(top, longest_held_out(world, data), LABELS)
    top[0].legend(fontsize=7)
    below = figure.add_subplot(grid[1, :])
    steps, returns = np.asarray(curve, dtype=float).reshape(-1, 2).T
    below.plot(steps, returns, color=DREAMT)
    below.set_xlabel("training steps in the dream")
    below.set_ylabel(f"mean dream return\n(truncated at {world.horizon} steps)")
    below.set_title(
        f"Top: a held-out {world.env_id} episode, and dreams of the same actions. "
        "Bottom: learning in the dream.",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run every stage, and show the results."""
    arguments = parse_arguments()
    sizes = SHORT if arguments.short else Sizes()
    folder, console, watch = arguments.out, Console(highlight=False), Stopwatch()
    data, world_folder = clear(folder), folder / "worlds" / "cartpole"

    with progress_bar("record", console) as bar:
        dreamgym.record(ENV_ID, steps=sizes.steps, out=data, seed=arguments.seed, progress=bar)
    card = dreamgym.check(data)
    if not card.ok:
        raise SystemExit(f"{data}: {'; '.join(card.problems)}")
    console.print(f"{data}: checked, no problems")
    watch.lap("record and check")

    config = dreamgym.FitConfig(updates=sizes.updates, evaluate_every=min(250, sizes.updates))
    with progress_bar("fit", console) as bar:
        world = dreamgym.fit(
            data, world_folder, family="mdn-rnn", seed=arguments.seed, config=config, progress=bar
        )
    watch.lap("fit the world")

    # The world is an environment: any code for vector environments can continue from here.
    dreams = gym.make_vec("dreamgym/World-v0", world=str(world_folder), num_envs=sizes.num_envs)
    console.print(f"{world_folder}: {dreams.num_envs} dreams of {ENV_ID}")
    dreams.close()

    with progress_bar("train in the dream", console) as bar:
        policy = dreamgym.train_policy(
            world_folder,
            algo="PPO",
            seed=arguments.seed,
            steps=sizes.training_steps,
            out=folder / "cartpole-ppo.zip",
            progress=bar,
        )
    watch.lap("train in the dream")
    with console.status("train PPO on the same number of real steps"):
        baseline = train_on_real_steps(sizes.steps, arguments.seed)
    watch.lap("train on real steps")

    with console.status(f"{sizes.episodes} real episodes of each policy"):
        results = evaluate_all(baseline, policy, world, sizes, watch.seconds)
    watch.lap("evaluate")
    picture = folder / "demo.png"
    draw_demo(world, data, policy.curve, picture)
    watch.lap("draw")
    console.print(make_table(results, sizes.episodes))
    figures = {"env_id": ENV_ID, "policies": results, "seconds": watch.seconds}
    (folder / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    total = sum(watch.seconds.values())
    console.print(f"{total:.0f} s in all. Picture: {picture}  Figures: {folder}/demo.json")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--short", action="store_true", help="run every stage, too short to learn")
    return parser.parse_args()


def clear(folder: Path) -> Path:
    """Make the folder, remove what an earlier demo left in it, and return the dataset's path."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "cartpole.h5"
    for path in (data, folder / "cartpole-ppo.zip", folder / "demo.png", folder / "demo.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "worlds" / "cartpole", ignore_errors=True)
    return data


def train_on_real_steps(steps: int, seed: int) -> PPO:
    """Train the model-free baseline: PPO on as many real steps as the dataset has."""
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    agent = PPO("MlpPolicy", env, n_steps=50, batch_size=50, seed=seed, device="cpu")
    return agent.learn(steps)


def evaluate_all(
    baseline: PPO, policy: Any, world: dreamgym.World, sizes: Sizes, seconds: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the real returns of the three policies, with the steps and seconds that each took."""
    stages = ("record and check", "fit the world", "train in the dream")
    random = dreamgym.evaluate("random", ENV_ID, episodes=sizes.episodes)
    on_real_steps = dreamgym.evaluate(baseline, ENV_ID, episodes=sizes.episodes)
    transfer = dreamgym.transfer_policy(policy, world, episodes=sizes.episodes)
    return {
        "random": {**random.as_dict(), "real_steps": 0, "seconds": 0.0},
        "PPO on real steps": {
            **on_real_steps.as_dict(),
            "real_steps": baseline.num_timesteps,
            "seconds": seconds["train on real steps"],
        },
        "PPO in the dream": {
            **transfer.real.as_dict(),
            "dream_return_mean": transfer.dream.mean,
            "real_steps": sizes.steps,
            "seconds": round(sum(seconds[stage] for stage in stages), 1),
        },
    }


def make_table(results: dict[str, dict[str, Any]], episodes: int) -> Table:
    """Return the policies side by side."""
    table = Table(title=f"{ENV_ID}: mean real return over {episodes} episodes")
    table.add_column("policy", no_wrap=True)
    for column in ("real return", "95% interval", "real steps", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        low, high = result["return_interval"]
        table.add_row(
            name,
            f"{result['return_mean']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{result['real_steps']:,}",
            f"{result['seconds']:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
