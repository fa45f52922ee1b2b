"""VizDoom's Take Cover from 64x64 pixels, trained in the dream of an MDN-RNN (V-M-C).

The oldest headline of world models: an agent that has never played Doom dodges fireballs in it.
It needs `pip install 'dreamgym[doom,sb3]'`. Whatever a run has made in its folder is used again by
the next, so that one that was stopped goes on:

    python examples/take_cover.py --out take-cover

records 100,000 frames, fits for an hour or so on two cores, trains one policy for each temperature
in the dream, and lets each survive 100 real episodes. Every size is an option (`--steps 10000`);
`--short` walks the same way in a minute, too short to learn.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dreamgym
from dreamgym.cli.showing import progress_bar
from dreamgym.models import MDNRNNConfig
from dreamgym.models.pixels import Pixels
from dreamgym.train import TrainConfig

FRAME_SKIP = 4
TIC_LIMIT = 2100
STICKINESS = (0.0, 0.5, 0.8, 0.9)
"""Probabilities of repeating an action, a quarter of the recording each: few agents stand still."""


class TakeCover(gym.Env):
    """Take Cover as 64x64 images, four tics a step; the return is the number of tics survived.

    After the last tic VizDoom has no frame left and gives black. The last one is shown again: a
    black frame would be a death that a dream could not take for anything else.
    """

    def __init__(self) -> None:
        import vizdoom.gymnasium_wrapper  # noqa: F401 - registers the ids

        self._doom = gym.make(
            "VizdoomTakeCover-v1",
            frame_skip=FRAME_SKIP,
            screen_resolution="RES_160X120",
            disable_env_checker=True,
        )
        screen: Any = self._doom.observation_space
        self._pixels = Pixels(screen["screen"], (64, 64))
        self._last = np.zeros((64, 64, 3), np.uint8)
        self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = self._doom.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the same seed gives the same game."""
        super().reset(seed=seed)
        observation, info = self._doom.reset(seed=seed, options=options)
        return self._small(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Four tics; terminated when the agent has died."""
        observation, reward, terminated, truncated, info = self._doom.step(action)
        seen = self._last if terminated else self._small(observation)
        return seen, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the game."""
        self._doom.close()

    def _small(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        floats = self._pixels.to_float(torch.from_numpy(observation["screen"]))
        scaled = (floats * 255).round().to(torch.uint8)
        self._last = np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())
        return self._last


ENV_ID = "TakeCover64-v0"
gym.register(ENV_ID, f"{__name__}:TakeCover", max_episode_steps=TIC_LIMIT // FRAME_SKIP)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; whole numbers are options of the command line."""

    steps: int = 100_000
    updates: int = 9000
    vision_updates: int = 4000
    batch_size: int = 32
    segment_length: int = 64
    vision_frames: int = 128
    hidden: int = 512
    num_envs: int = 256
    training_steps: int = 1_500_000
    episodes: int = 100
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.15, 1.3)


SHORT = Sizes(
    steps=1500,
    updates=20,
    vision_updates=10,
    batch_size=4,
    segment_length=16,
    hidden=16,
    num_envs=8,
    training_steps=1024,
    episodes=3,
    temperatures=(1.0,),
)
"""Enough to run every stage, far too little to learn: for the tests."""


def main() -> None:
    """Walk the whole way and show what came of it."""
    arguments = parse()
    sizes = sizes_of(arguments)
    folder, console = arguments.out, Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    record(folder / "data", sizes, arguments.seed)
    began = time.perf_counter()
    world = fit(folder / "data", folder / "take-cover", sizes, arguments)
    console.print(f"{world.name}: fitted, {time.perf_counter() - began:.0f} s in this run")
    random = dreamgym.evaluate("random", ENV_ID, episodes=sizes.episodes)
    rows = {"random": random.as_dict()}
    for temperature in sizes.temperatures:
        name = f"temperature {temperature:g}"
        rows[name] = train_and_measure(folder, world, temperature, sizes, arguments)
        console.print(f"{name}: {rows[name]['real_return_mean']:.0f} tics")
        (folder / "take-cover.json").write_text(
            json.dumps({"env_id": ENV_ID, "sizes": asdict(sizes), "policies": rows}, indent=2)
        )
    console.print(table(rows, sizes.episodes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("take-cover"))
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--threads", type=int, default=2, help="cores to fit with")
    parser.add_argument("--device", default="cpu", help="to fit on")
    parser.add_argument("--short", action="store_true", help="every stage, too short to learn")
    for field in fields(Sizes):
        if field.type == "int":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    return parser.parse_args()


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes, with those that the command line names."""
    names = {field.name for field in fields(Sizes)}
    given = {k: v for k, v in vars(arguments).items() if k in names and v is not None}
    return replace(SHORT if arguments.short else Sizes(), **given)


def record(folder: Path, sizes: Sizes, seed: int) -> None:
    """One file for each stickiness; a folder of files is read as one dataset."""
    folder.mkdir(exist_ok=True)
    for k, stickiness in enumerate(STICKINESS):
        out = folder / f"sticky-{stickiness:g}.h5"
        if out.exists():
            continue
        with progress_bar(f"record {out.stem}") as bar:
            dreamgym.record(
                ENV_ID,
                steps=sizes.steps // len(STICKINESS),
                out=out,
                policy=f"sticky:{stickiness:g}",
                seed=seed + k,
                progress=bar,
            )


def fit(data: Path, out: Path, sizes: Sizes, arguments: argparse.Namespace) -> dreamgym.World:
    """Fit V, then M: Doom's sizes, at half the width, and errors weighed by what moves."""
    if out.exists():
        return dreamgym.load(out)
    model = MDNRNNConfig(
        hidden=sizes.hidden,
        trunk=0,
        head=0,
        latent=32,
        width=0.5,
        kl_scale=0.3,
        foreground=8.0,
        vision_frames=sizes.vision_frames,
        vision_updates=sizes.vision_updates,
    )
    config = dreamgym.FitConfig(
        model=model,
        updates=sizes.updates,
        batch_size=sizes.batch_size,
        segment_length=sizes.segment_length,
        optimizer=dreamgym.OptimizerConfig(learning_rate=1e-3, gradient_clip=100.0),
        evaluate_every=min(500, sizes.updates),
        horizon=TIC_LIMIT // FRAME_SKIP,
        threads=arguments.threads,
        device=arguments.device,
    )
    with progress_bar("fit") as bar:
        return dreamgym.fit(
            data, out, family="mdn-rnn", seed=arguments.seed, config=config, progress=bar
        )


def train_and_measure(
    folder: Path,
    world: dreamgym.World,
    temperature: float,
    sizes: Sizes,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """PPO on (z, h) in the dream at a temperature, and what it survives in Doom."""
    config = TrainConfig(
        num_envs=sizes.num_envs,
        gamma=0.99,
        learning_rate=3e-4,
        temperature=temperature,
        view="latent",
        learner={"ent_coef": 0.005},
    )
    with progress_bar(f"train at temperature {temperature:g}") as bar:
        policy = dreamgym.train_policy(
            world, seed=arguments.seed, steps=sizes.training_steps, config=config, progress=bar
        )
    policy.save(folder / f"ppo-{temperature:g}.zip")
    return dreamgym.transfer_policy(policy, world, episodes=sizes.episodes).as_dict()


def table(rows: dict[str, dict[str, Any]], episodes: int) -> Table:
    """Survival in the dream and in Doom, by temperature."""
    shown = Table(title=f"Take Cover: tics survived, mean of {episodes} episodes")
    for column in ("policy", "dream", "Doom", "95% interval"):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in rows.items():
        prefix = "real_" if "real_return_mean" in row else ""
        low, high = row[f"{prefix}return_interval"]
        dream = row.get("dream_return_mean")
        shown.add_row(
            name,
            f"{dream:.0f}" if dream is not None else "",
            f"{row[f'{prefix}return_mean']:.0f}",
            f"{low:.0f} to {high:.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
