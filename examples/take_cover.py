"""VizDoom's Take Cover from 64x64 pixels, trained in the dream of an MDN-RNN (V-M-C).

The experiment of "World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122): an agent that has
never played Doom dodges its fireballs. It needs `pip install 'dreamgym[doom,sb3]'`.

    python examples/take_cover.py --out take-cover

1. Record 40,000 frames of random policies, fit a world, and train a policy in its dream.
2. Record 30,000 frames with that policy, which reaches situations that random policies do not
   survive to see, and fit the world further (Dyna). Do this twice.
3. Train one policy for each temperature in the dream of the last world, and measure each of them in
   100 real episodes. Measure the best one again in 100 other episodes.

A stage whose result is already in the folder is skipped, so a run that was stopped continues. Every
size is an option (`--last-updates 20000`); `--short` runs every stage in a minute, too short to
learn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import dreamgym
from dreamgym.data import resume
from dreamgym.models import MDNRNN, MDNRNNConfig
from dreamgym.models.nn.conv import Pixels
from dreamgym.train import TrainConfig, TrainedPolicy, load_policy
from dreamgym.transfer import LatentAgent

FRAME_SKIP = 4
TIC_LIMIT = 2100
STICKINESS = (0.0, 0.5, 0.8, 0.9)
"""Probabilities of repeating an action, for a quarter of the random steps each."""


class TakeCover(gym.Env):
    """Take Cover as 64x64 images, four tics a step; the return is the number of tics survived.

    After the last tic VizDoom has no frame and returns black. The last frame is returned again
    instead: a black frame would give the termination away, and no dream could imagine another.
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
        """Start an episode; the same seed gives the same game."""
        super().reset(seed=seed)
        observation, info = self._doom.reset(seed=seed, options=options)
        return self._resize(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action for four tics; the episode terminates when the agent dies."""
        observation, reward, terminated, truncated, info = self._doom.step(action)
        frame = self._last if terminated else self._resize(observation)
        return frame, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the game."""
        self._doom.close()

    def _resize(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        floats = self._pixels.to_float(torch.from_numpy(observation["screen"]))
        scaled = (floats * 255).round().to(torch.uint8)
        self._last = np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())
        return self._last


ENV_ID = "TakeCover64-v0"
gym.register(ENV_ID, f"{__name__}:TakeCover", max_episode_steps=TIC_LIMIT // FRAME_SKIP)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Size of every stage; whole numbers are options of the command line.

    Attributes:
        steps: frames recorded in all rounds together.
        random_steps: frames of these that random policies record in the first round.
        rounds: number of fits; before each but the first, the last policy records its share.
        updates: updates of a fit, except the last.
        vision_updates: updates of the VAE among these, in the first round.
        vision_again: the same in later rounds.
        last_updates: updates of the last fit.
        last_vision: updates of the VAE among these.
        batch_size: segments in a batch.
        segment_length: transitions in a segment.
        hidden: width of the LSTM.
        starts: size of the bank of start states.
        horizon: steps after which a dream is truncated.
        num_envs: dreams side by side.
        training_steps: dream steps of each policy's training.
        episodes: real episodes in which each policy is measured.
        temperatures: temperatures of the dreams in which the last policies are trained.
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

    def updates_of(self, round_number: int) -> tuple[int, int]:
        """Return the updates of a round's fit, and those of the VAE among them; rounds from 1."""
        if round_number == self.rounds:
            return self.last_updates, self.last_vision
        return self.updates, self.vision_updates if round_number == 1 else self.vision_again


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

OTHER_EPISODES = 5_000_000
"""Seed of the real episodes in which the chosen policy is measured again."""

SEED_STRIDE = 1000
"""Distance between the seeds of two rounds of recording."""

EXPLORING_TEMPERATURE = 1.15
"""Temperature of the dreams in which the policies that record are trained."""


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr; yields a function of (done, total, figures)."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)

        def report(done: int, total: int, *_: Any) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@dataclass(frozen=True)
class Experiment:
    """The stages; a stage whose result is already in the folder does nothing."""

    sizes: Sizes
    arguments: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Folder of all results."""
        return self.arguments.out

    def record(self, name: str, steps: int, policy: Any, seed: int) -> None:
        """Record frames of a policy to one file of the folder that is read as one dataset."""
        out, seed = self.folder / "data" / f"{name}.h5", seed + self.arguments.seed
        with progress_bar(f"record {name}") as bar:
            if out.exists():  # complete, or as far as a stopped run came
                resume(ENV_ID, steps=steps, out=out, policy=policy, progress=bar)
                return
            dreamgym.record(ENV_ID, steps=steps, out=out, policy=policy, seed=seed, progress=bar)

    def fit(self, round_number: int, previous: dreamgym.World | None) -> dreamgym.World:
        """Fit the VAE and then the LSTM to everything recorded so far.

        The VAE has half the width of the paper's, and its loss gives moving pixels a higher weight;
        the LSTM has linear heads. Weights continue from the previous world.
        """
        sizes, out = self.sizes, self.folder / f"world-{round_number}"
        if out.exists():
            return dreamgym.load(out)
        updates, vision = sizes.updates_of(round_number)
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
            model=model if previous is None else continue_from(previous, model),
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
        """Train PPO on the latent view (z, h) in the dream at a temperature."""
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


def continue_from(world: dreamgym.World, config: MDNRNNConfig) -> MDNRNN:
    """Return the weights of a world under another config of the same sizes."""
    model = MDNRNN(world.observation_space, world.action_space, config)
    model.load_state_dict(world.model.state_dict())
    return model


def main() -> None:
    """Run every stage, and show the results."""
    experiment, console = parse_arguments(), Console(highlight=False)
    sizes, folder = experiment.sizes, experiment.folder
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k, stickiness in enumerate(STICKINESS):
        share, name = sizes.random_steps // len(STICKINESS), f"sticky-{stickiness:g}"
        experiment.record(name, share, f"sticky:{stickiness:g}", k)
    worlds = [experiment.fit(1, None)]
    for number in range(1, sizes.rounds):
        name, world = f"ppo-round-{number}", worlds[-1]
        agent = LatentAgent(experiment.train(name, world, EXPLORING_TEMPERATURE), world, name=name)
        share = (sizes.steps - sizes.random_steps) // (sizes.rounds - 1)
        experiment.record(name, share, agent, SEED_STRIDE * number)
        worlds.append(experiment.fit(number + 1, world))
    result = {
        "env_id": ENV_ID,
        "sizes": asdict(sizes),
        "frames": worlds[-1].provenance["dataset_steps"],
        "fit_seconds": sum(world.provenance["seconds"] for world in worlds),
    }
    rows = {"random": dreamgym.evaluate("random", ENV_ID, episodes=sizes.episodes).as_dict()}
    for temperature in sizes.temperatures:
        name = f"temperature {temperature:g}"
        policy = experiment.train(f"ppo-{temperature:g}", worlds[-1], temperature)
        rows[name] = dreamgym.transfer_policy(
            policy, worlds[-1], episodes=sizes.episodes, baselines=False
        ).as_dict()
        console.print(f"{name}: {rows[name]['real_return_mean']:.0f} tics")
        write(folder, {**result, "policies": rows})
    # The best of several is partly luck, so it is measured again, in other episodes.
    chosen = max(sizes.temperatures, key=lambda t: rows[f"temperature {t:g}"]["real_return_mean"])
    policy = experiment.train(f"ppo-{chosen:g}", worlds[-1], chosen)
    measured = dreamgym.transfer_policy(
        policy, worlds[-1], episodes=sizes.episodes, seed=OTHER_EPISODES, baselines=False
    )
    rows[f"temperature {chosen:g}, chosen, in other episodes"] = measured.as_dict()
    write(folder, {**result, "policies": rows})
    console.print(make_table(rows, sizes.episodes))


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write the results so far."""
    (folder / "take-cover.json").write_text(json.dumps(result, indent=2))


def parse_arguments() -> Experiment:
    """Return the experiment that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("take-cover"), help="folder of the results"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the fits")
    parser.add_argument("--device", default="cpu", help="device of the fits")
    parser.add_argument("--short", action="store_true", help="run every stage, too short to learn")
    names = [field.name for field in fields(Sizes) if field.type == "int"]
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in options.items() if value is not None}
    return Experiment(replace(SHORT if arguments.short else Sizes(), **options), arguments)


def make_table(rows: dict[str, dict[str, Any]], episodes: int) -> Table:
    """Return the tics survived in the dream and in Doom, by policy."""
    table = Table(title=f"Take Cover: tics survived, mean of {episodes} episodes")
    for column in ("policy", "dream", "Doom", "95% interval"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in rows.items():
        prefix = "real_" if "real_return_mean" in row else ""
        low, high = row[f"{prefix}return_interval"]
        dream = row.get("dream_return_mean")
        table.add_row(
            name,
            f"{dream:.0f}" if dream is not None else "",
            f"{row[f'{prefix}return_mean']:.0f}",
            f"{low:.0f} to {high:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
