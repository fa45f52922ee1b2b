"""VizDoom's Take Cover from 64x64 pixels, trained in the dream of an MDN-RNN (V-M-C).

The oldest headline of world models: an agent that has never played Doom dodges fireballs in it.
It needs `pip install 'dreamgym[doom,sb3]'`. Whatever a run has made in its folder is used again by
the next, so that one that was stopped goes on:

    python examples/take_cover.py --out take-cover

records 40,000 frames of random policies, fits a world, and trains a policy in its dream; that one
records 30,000 more, of games that random policies do not live to see, and the world is fitted
further (Dyna); and so once again. Then one policy for each temperature is trained in the dream
only, and lives through 100 real episodes; the best is measured in 100 others. Every size is an
option (`--last-updates 20000`); `--short` walks the same way in a minute, too short to learn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import dreamgym
from dreamgym.cli.output import progress_bar
from dreamgym.data import resume
from dreamgym.models import MDNRNN, MDNRNNConfig
from dreamgym.models.nn.conv import Pixels
from dreamgym.train import TrainConfig, TrainedPolicy, load_policy
from dreamgym.transfer import LatentAgent

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
    """How much of everything; whole numbers are options of the command line.

    Attributes:
        steps: frames recorded in all rounds together.
        random_steps: of these, by random policies, before anything is known.
        rounds: fits; before each but the first, the last round's policy records its share.
        updates: of a fit; `last_updates` of the last.
        vision_updates: of these, for V alone, before M; `vision_again` in later rounds, and
            `last_vision` in the last.
        starts: real states that dreams begin from.
        horizon: steps of a dream.
        training_steps: of each policy, in the dream.
        episodes: real ones that each policy is measured in.
    """

    steps: int = 100_000
    random_steps: int = 40_000
    rounds: int = 3
    updates: int = 4500
    vision_updates: int = 2500
    vision_again: int = 1500
    last_updates: int = 11_000
    last_vision: int = 4000
    batch_size: int = 32
    segment_length: int = 64
    hidden: int = 256
    starts: int = 4096
    horizon: int = 200
    num_envs: int = 256
    training_steps: int = 1_200_000
    episodes: int = 100
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.15, 1.3)

    def updates_of(self, number: int) -> tuple[int, int]:
        """Of a round's fit, counted from 1, and of its V alone."""
        if number == self.rounds:
            return self.last_updates, self.last_vision
        return self.updates, self.vision_updates if number == 1 else self.vision_again


SHORT = Sizes(
    steps=1500,
    random_steps=1000,
    rounds=2,
    updates=20,
    vision_updates=10,
    vision_again=10,
    last_updates=20,
    last_vision=10,
    batch_size=4,
    segment_length=16,
    hidden=16,
    starts=16,
    num_envs=8,
    training_steps=1024,
    episodes=3,
    temperatures=(1.0,),
)
"""Enough to run every stage, far too little to learn: for the tests."""

OTHER_EPISODES = 5_000_000  # seeds of the real episodes in which the chosen policy is measured
SEEDS_APART = 1000  # between the rounds of recording
EXPLORING_TEMPERATURE = 1.15  # of the dreams in which the policies are trained that record


@dataclass(frozen=True)
class Walk:
    """The stages, each of which does nothing where its result lies in the folder already."""

    sizes: Sizes
    arguments: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.arguments.out

    def record(self, name: str, steps: int, policy: Any, seed: int) -> None:
        """Frames of a policy; a folder of files is read as one dataset."""
        out, seed = self.folder / "data" / f"{name}.h5", seed + self.arguments.seed
        with progress_bar(f"record {name}") as bar:
            if out.exists():  # all of it, or what there was when the run was stopped
                resume(ENV_ID, steps=steps, out=out, policy=policy, progress=bar)
                return
            dreamgym.record(ENV_ID, steps=steps, out=out, policy=policy, seed=seed, progress=bar)

    def fit(self, number: int, before: dreamgym.World | None) -> dreamgym.World:
        """V, then M, on all that was recorded so far, going on from the world before.

        Doom's VAE at half the width, its errors weighed by what moves; an LSTM with linear heads.
        """
        sizes, out = self.sizes, self.folder / f"world-{number}"
        if out.exists():
            return dreamgym.load(out)
        updates, vision = sizes.updates_of(number)
        model = MDNRNNConfig(
            hidden=sizes.hidden,
            trunk=0,
            head=0,
            latent=64,
            width=0.5,
            kl_scale=0.3,
            foreground=8.0,
            vision_frames=64,
            vision_updates=vision,
        )
        config = dreamgym.FitConfig(
            model=model if before is None else going_on(before, model),
            updates=updates,
            batch_size=sizes.batch_size,
            segment_length=sizes.segment_length,
            optimizer=dreamgym.OptimizerConfig(learning_rate=1e-3, gradient_clip=100.0),
            evaluate_every=min(500, updates),
            starts=sizes.starts,
            horizon=sizes.horizon,
            threads=self.arguments.threads,
            device=self.arguments.device,
        )
        seed, data = self.arguments.seed, dreamgym.Dataset(self.folder / "data", memory=2 << 30)
        with data, progress_bar(f"fit {out.stem}") as bar:
            return dreamgym.fit(data, out, family="mdn-rnn", seed=seed, config=config, progress=bar)

    def train(self, name: str, world: dreamgym.World, temperature: float) -> TrainedPolicy:
        """PPO on (z, h) in the dream at a temperature."""
        out = self.folder / f"{name}.zip"
        if out.exists():
            return load_policy(out, world=world)
        config = TrainConfig(
            num_envs=self.sizes.num_envs,
            gamma=0.99,
            learning_rate=3e-4,
            temperature=temperature,
            view="latent",
            learner={"ent_coef": 0.005},
        )
        seed, steps = self.arguments.seed, self.sizes.training_steps
        with progress_bar(f"train {name}") as bar:
            return dreamgym.train_policy(
                world, seed=seed, steps=steps, out=out, config=config, progress=bar
            )


def going_on(before: dreamgym.World, config: MDNRNNConfig) -> MDNRNN:
    """The weights of a world under another config of the same sizes."""
    model = MDNRNN(before.observation_space, before.action_space, config)
    model.load_state_dict(before.model.state_dict())
    return model


def main() -> None:
    """Walk the whole way and show what came of it."""
    walk, console = parse(), Console(highlight=False)
    sizes, folder = walk.sizes, walk.folder
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k, stickiness in enumerate(STICKINESS):
        share, name = sizes.random_steps // len(STICKINESS), f"sticky-{stickiness:g}"
        walk.record(name, share, f"sticky:{stickiness:g}", k)
    worlds = [walk.fit(1, None)]
    for number in range(1, sizes.rounds):
        name, world = f"ppo-round-{number}", worlds[-1]
        agent = LatentAgent(walk.train(name, world, EXPLORING_TEMPERATURE), world, name=name)
        share = (sizes.steps - sizes.random_steps) // (sizes.rounds - 1)
        walk.record(name, share, agent, SEEDS_APART * number)
        worlds.append(walk.fit(number + 1, world))
    result = {
        "env_id": ENV_ID,
        "sizes": asdict(sizes),
        "frames": worlds[-1].provenance["dataset_steps"],
        "fit_seconds": sum(world.provenance["seconds"] for world in worlds),
    }
    rows = {"random": dreamgym.evaluate("random", ENV_ID, episodes=sizes.episodes).as_dict()}
    for temperature in sizes.temperatures:
        name = f"temperature {temperature:g}"
        policy = walk.train(f"ppo-{temperature:g}", worlds[-1], temperature)
        rows[name] = dreamgym.transfer_policy(policy, worlds[-1], episodes=sizes.episodes).as_dict()
        console.print(f"{name}: {rows[name]['real_return_mean']:.0f} tics")
        write(folder, {**result, "policies": rows})
    # The best of several by chance has good luck in it: so it is measured again, in other episodes.
    chosen = max(sizes.temperatures, key=lambda t: rows[f"temperature {t:g}"]["real_return_mean"])
    policy = walk.train(f"ppo-{chosen:g}", worlds[-1], chosen)
    measured = dreamgym.transfer_policy(
        policy, worlds[-1], episodes=sizes.episodes, seed=OTHER_EPISODES
    )
    rows[f"temperature {chosen:g}, chosen, in other episodes"] = measured.as_dict()
    write(folder, {**result, "policies": rows})
    console.print(table(rows, sizes.episodes))


def write(folder: Path, result: dict[str, Any]) -> None:
    """What came of it, so far."""
    (folder / "take-cover.json").write_text(json.dumps(result, indent=2))


def parse() -> Walk:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("take-cover"))
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--threads", type=int, default=2, help="cores to fit with")
    parser.add_argument("--device", default="cpu", help="to fit on")
    parser.add_argument("--short", action="store_true", help="every stage, too short to learn")
    names = [field.name for field in fields(Sizes) if field.type == "int"]
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return Walk(replace(SHORT if arguments.short else Sizes(), **given), arguments)


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
