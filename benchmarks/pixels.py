"""Which family for which game: worlds of pixels on the same data, and policies trained only there.

Breakout, Asterix and Freeway of MinAtar as 16x16 images and Pong as 32x32 (`support/games.py`). For
every game and seed:

- the data: a quarter of the real steps are random play, the others are what a model-free PPO saw
  while it learnt from scratch;
- `model-free`: PPO of Stable-Baselines3 with a small CNN that learns from as many real steps as the
  data has in all, measured with its most likely actions and with sampled ones: the better counts;
- every family on the same data, in about the same time: errors and the F1 of rewards against the
  horizon in held-out episodes, action sensitivity, the time of a dream's step, and the real return
  of PPO that was trained in dreams alone, beside its dream return, random actions, and the data's
  policy cloned from the same latents. Dreams in training have at most 50 steps.

The share of random play and these 50 steps were chosen on Breakout, seed 0, by real returns of
policies from RSSMs; no other choice is made by a real return.

What is made lies in `--work` and is used again, so that a run that was stopped goes on (settings
that have changed since need another folder), and pieces can be made apart: `--tasks`, `--families`,
`--seeds`, `--parts`. Rows are of what is there, and `--parts rows` makes nothing.
It needs `pip install 'dreamgym[sb3,games]'`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from support import games
from support.pictures import draw_frames
from support.reporting import Row, at_least, parser, report
from torch import Tensor, nn

import dreamgym
from dreamgym.data import Dataset, DatasetMetadata, DatasetWriter, Recorder
from dreamgym.dream import DreamVectorEnv
from dreamgym.metrics import open_loop_errors, reward_events
from dreamgym.metrics.open_loop import dream_windows
from dreamgym.metrics.windows import BURN_IN, draw_windows
from dreamgym.models import DeltaIRISConfig, DIAMONDConfig, RSSMConfig, STORMConfig
from dreamgym.models.diamond import DiffusionConfig
from dreamgym.models.observations import WHOLE, get_part
from dreamgym.models.rssm import RSSMObjective
from dreamgym.models.storm import STORMObjective
from dreamgym.train import TrainConfig, load_policy

HORIZONS = range(1, 16)
SHOWN_HORIZONS = (1, 5, 10, 15)
SHOWN_FRAMES = (0, 1, 2, 3, 5, 8, 11, 15)
RANDOM_SHARE = 0.25
"""Share of the data that is random play."""
ROWS = 64
"""Dreams side by side, in training and where a step is timed."""
WANTED = 2
"""The bar: families whose policies do better in a game than model-free learning."""
PARTS = ("data", "model-free", "fit", "measure", "policy")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One game.

    Attributes:
        env_id: its environment.
        random: the random policy of a part of the data.
        real_steps: real steps of the data in all, and of model-free learning.
        episodes: real episodes in which policies are measured.
    """

    env_id: str
    random: str
    real_steps: int
    episodes: int = 100

    @property
    def package(self) -> str:
        """Package that has the game."""
        return "ale_py" if "Pong" in self.env_id else "minatar"

    @property
    def side(self) -> int:
        """Side of the images."""
        return games.PONG_SIDE if "Pong" in self.env_id else games.CELL_SIDE


TASKS = {
    "breakout": Task(env_id="PixelBreakout-v0", random="sticky:0.5", real_steps=40_960),
    "asterix": Task(env_id="PixelAsterix-v0", random="sticky:0.5", real_steps=40_960),
    # A chicken that changes its mind at every step never reaches the other side.
    "freeway": Task(env_id="PixelFreeway-v0", random="held:20", real_steps=40_960),
    "pong": Task(env_id="PixelPong-v0", random="sticky:0.8", real_steps=40_960, episodes=20),
}

MODEL_FREE: Mapping[str, Any] = {
    "n_steps": 64,
    "batch_size": 128,
    "n_epochs": 10,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "ent_coef": 0.01,
}
MODEL_FREE_ENVS = 8

DREAM_TRAINING = TrainConfig(
    num_envs=ROWS,
    n_steps=64,
    batch_size=512,
    n_epochs=4,
    gamma=0.99,
    learning_rate=5e-4,
    net_arch=(128, 128),
    horizon=50,  # longer dreams lose small things, such as a ball, and policies exploit that
    learner={"ent_coef": 0.01},
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a family is fitted to images of one size, and how long its dreams are trained in.

    Attributes:
        model: the family's config.
        settings: fields of `FitConfig` and `OptimizerConfig`.
        dream_steps: steps of PPO.
    """

    model: Any
    settings: Mapping[str, Any]
    dream_steps: int


def _rssm(side: int, depth: int) -> RSSMConfig:
    objective = RSSMObjective(image_size=side, image=10.0)
    return RSSMConfig(deter=256, hidden=256, units=256, image_depth=depth, objective=objective)


def _storm(side: int) -> STORMConfig:
    return STORMConfig(objective=STORMObjective(image_size=side, image=10.0))


def _diamond(side: int, channels: tuple[int, ...], denoising_steps: int) -> DIAMONDConfig:
    return DIAMONDConfig(
        image_size=side,
        channels=channels,
        condition=64,
        reward_channels=(8, 8, 8, 8)[: len(channels) + 1],
        reward_condition=32,
        hidden=64,
        targets=4,
        diffusion=DiffusionConfig(denoising_steps=denoising_steps),
    )


def _delta_iris(side: int, tokeniser_updates: int) -> DeltaIRISConfig:
    return DeltaIRISConfig(image_size=side, tokeniser_updates=tokeniser_updates)


FITS: Mapping[int, Mapping[str, Fit]] = {
    16: {
        "rssm": Fit(
            model=_rssm(16, 16), settings={"updates": 2500, "batch_size": 32}, dream_steps=2_500_000
        ),
        "storm": Fit(
            model=_storm(16), settings={"updates": 7000, "batch_size": 32}, dream_steps=2_500_000
        ),
        "delta-iris": Fit(
            model=_delta_iris(16, 1500),
            settings={"updates": 6000, "batch_size": 16},
            dream_steps=500_000,
        ),
        "diamond": Fit(
            model=_diamond(16, (16, 16), 3),
            settings={"updates": 4000, "batch_size": 16},
            dream_steps=350_000,
        ),
    },
    32: {
        "rssm": Fit(
            model=_rssm(32, 8), settings={"updates": 2200, "batch_size": 32}, dream_steps=2_500_000
        ),
        "storm": Fit(
            model=_storm(32), settings={"updates": 2500, "batch_size": 32}, dream_steps=2_500_000
        ),
        "delta-iris": Fit(
            model=_delta_iris(32, 500),
            settings={"updates": 2000, "batch_size": 16},
            dream_steps=250_000,
        ),
        # One step of denoising: the others would leave time for a third of the dreams.
        "diamond": Fit(
            model=_diamond(32, (16, 16, 16), 1),
            settings={"updates": 1600, "batch_size": 16},
            dream_steps=300_000,
        ),
    },
}
"""By the side of the images and by family: about ten minutes of a core for each fit, twelve at 32
pixels, and about ten for each training. Beside other work, updates at 16 pixels took 0.24, 0.09,
0.10 and 0.15 s of processor time in this order, and steps of 64 dreams 4.5, 6.6, 61 and 102 ms; at
32 pixels 0.33, 0.29, 0.65 and (with `targets=2`) 0.34 s, and 3.6, 4.2, 145 and 116 ms."""
FAMILIES = tuple(FITS[16])

QUICK_STEPS = 2048
QUICK_FIT = {"updates": 4, "evaluate_every": 4, "batch_size": 4}
QUICK_TRAINING = replace(DREAM_TRAINING, num_envs=8, n_steps=8, batch_size=64, n_epochs=1)


class SmallCNN(BaseFeaturesExtractor):
    """Convolutions over small images, down to 4 by 4, and one layer of 128.

    Args:
        space: images with the channels first.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, 128)
        channels, side = space.shape[0], space.shape[-1]
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
        depth = 16
        while side > 4:
            layers += [nn.Conv2d(depth, 32, 3, stride=2, padding=1), nn.ReLU()]
            depth, side = 32, (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(depth * side**2, 128), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 128) of images (B, C, H, W) in [0, 1]."""
        return self.layers(images)


@dataclass(frozen=True, kw_only=True)
class Game:
    """One game and seed: what all families share."""

    name: str
    seed: int
    work: Path
    quick: bool

    @property
    def task(self) -> Task:
        """The task of this game."""
        return TASKS[self.name]

    @property
    def folder(self) -> Path:
        """Folder of everything of this game and seed."""
        return self.work / f"{self.name}-{self.seed}"

    @property
    def real_steps(self) -> int:
        """Real steps of the data in all."""
        return QUICK_STEPS if self.quick else self.task.real_steps

    @property
    def episodes(self) -> int:
        """Real episodes in which policies are measured."""
        return 2 if self.quick else self.task.episodes

    def data(self) -> Path:
        """Return the folder of the data's two parts, recorded unless they are there."""
        folder = self.folder / "data"
        random_steps = round(RANDOM_SHARE * self.real_steps)
        shards = folder / "1-random.h5", folder / "2-learning.h5"
        for path in shards:
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
            if path == shards[0]:
                dreamgym.record(
                    self.task.env_id,
                    steps=random_steps,
                    out=path,
                    policy=self.task.random,
                    seed=self.seed,
                )
            else:
                self._learn(self.real_steps - random_steps, path)
        return folder

    def _learn(self, steps: int, out: Path | None = None) -> PPO:
        """Train model-free PPO for real steps, and record them if `out` is given."""
        make: Callable[[int], gym.Env] = lambda row: gym.make(self.task.env_id)  # noqa: E731
        count = 2 if self.quick else MODEL_FREE_ENVS
        settings = {**MODEL_FREE, "batch_size": min(MODEL_FREE["batch_size"], 64 * count)}
        writer = None
        if out is not None:
            with gym.make(self.task.env_id) as env:
                policy = f"PPO while it learns, seed {self.seed}"
                metadata = DatasetMetadata.of_env(env, policy=policy, seed=self.seed)
            opened = writer = DatasetWriter(out, metadata, commit_every=20)
            make = lambda row: Recorder(  # noqa: E731
                gym.make(self.task.env_id), opened, env_index=row
            )
        env = DummyVecEnv([lambda row=row: make(row) for row in range(count)])
        agent = PPO(
            "CnnPolicy",
            env,
            seed=self.seed,
            device="cpu",
            policy_kwargs={"features_extractor_class": SmallCNN, "net_arch": []},
            **settings,
        )
        agent.learn(steps)
        env.close()
        if writer is not None:
            writer.close()
        return agent

    def model_free(self) -> dict[str, Any]:
        """Return the real returns of PPO that learnt from as many real steps as the data has."""
        path = self.folder / "model-free.json"
        if not path.exists():
            began = time.process_time()
            agent = self._learn(self.real_steps)
            seconds = time.process_time() - began
            # Without its spaces: the library has moved the channels of the images to the front.
            policy = SimpleNamespace(predict=agent.predict)
            found = {
                name: dreamgym.evaluate(
                    policy,
                    self.task.env_id,
                    episodes=self.episodes,
                    deterministic=name == "most likely",
                ).as_dict()
                for name in ("most likely", "sampled")
            }
            keep(path, {**found, "seconds": seconds})
        return json.loads(path.read_text())


@dataclass(frozen=True, kw_only=True)
class Run:
    """One family on one game's data, and the folder of its results."""

    game: Game
    family: str

    @property
    def name(self) -> str:
        """Name in the rows."""
        return f"{self.game.name}, {self.family}, seed {self.game.seed}"

    @property
    def folder(self) -> Path:
        """Folder of this run's results."""
        return self.game.folder / self.family

    @property
    def fit(self) -> Fit:
        """Settings of this run."""
        return FITS[self.game.task.side][self.family]

    @cached_property
    def world(self) -> dreamgym.World:
        """The world, fitted unless it is there."""
        out = self.folder / "world"
        if out.exists():
            return dreamgym.load(out)
        settings = {**self.fit.settings, **(QUICK_FIT if self.game.quick else {})}
        model = self.fit.model
        if self.game.quick and hasattr(model, "tokeniser_updates"):
            model = replace(model, tokeniser_updates=2)
        config = dreamgym.default_config(self.family, model=model, **settings)
        return dreamgym.fit(
            self.game.data(), out, family=self.family, seed=self.game.seed, config=config
        )

    def measured(self) -> dict[str, Any]:
        """Return errors and events against the horizon, the sensitivity, and a step's time."""
        path = self.folder / "measured.json"
        if not path.exists():
            world, columns = self.world, {}
            with Dataset(self.game.data()) as data:
                held_out = self.held_out(data)
                errors = open_loop_errors(world.model, data, held_out, horizons=HORIZONS)
                events = reward_events(world.model, data, held_out, horizons=HORIZONS)
            for name, leaves in (("errors", errors), ("events", events)):
                columns[name] = {key: leaf.tolist() for key, leaf in leaves._asdict().items()}
            columns["events"]["f1"] = [None if np.isnan(f1) else float(f1) for f1 in events.f1]
            keep(
                path,
                {
                    **columns,
                    "action_sensitivity": world.quality.get("action_sensitivity"),
                    "step_ms": 1e3 * step_seconds(world, self.game.quick),
                    "fit_seconds": world.provenance["seconds"],
                    "horizon": world.horizon,
                },
            )
        return json.loads(path.read_text())

    def held_out(self, data: Dataset) -> NDArray[np.integer]:
        """Return the episodes that were held out of the fit."""
        fitted = self.world.provenance["fit"]
        return data.split(fitted["held_out"], fitted["seed"])[1]

    def transferred(self) -> dict[str, Any]:
        """Return the real return of PPO that was trained in the world's dreams, and beside it."""
        result, path = self.folder / "transfer.json", self.folder / "policy.zip"
        if not result.exists():
            quick, began = self.game.quick, time.process_time()
            dreamgym.train_policy(
                self.world,
                algo="PPO",
                learner="sb3",
                seed=self.game.seed,
                steps=QUICK_STEPS if quick else self.fit.dream_steps,
                out=path,
                config=QUICK_TRAINING if quick else DREAM_TRAINING,
                resume=True,
            )
            seconds = time.process_time() - began
            moved = dreamgym.transfer_policy(
                load_policy(path, world=self.world),
                self.world,
                episodes=self.game.episodes,
                max_episode_steps=20 if quick else None,
                data=self.game.data(),
            )
            keep(result, {**moved.as_dict(), "seconds": seconds})
        return json.loads(result.read_text())

    def frames(self) -> dict[str, NDArray[np.uint8]]:
        """Return frames (16, H, W, 3) of a held-out window, and a dream of it."""
        model, ahead = self.world.model, HORIZONS[-1]
        with Dataset(self.game.data()) as data:
            # The same windows for every family: they are drawn before any noise.
            rng = np.random.default_rng(self.game.seed)
            windows = draw_windows(model, data, self.held_out(data), (256, ahead), rng)
        rewards = (windows.segment.reward[:, BURN_IN:] != 0).sum(1)
        eventful = torch.where(windows.mask.all(1), rewards, -1)
        windows = windows.take(eventful.argmax().reshape(1))
        real = get_part(windows.segment.observation, WHOLE)[0, BURN_IN:].numpy()
        states = [state for _, _, state, _ in dream_windows(model, windows, 1, rng)]
        decoded: Any = model
        dreamt = [decoded.decode(state)[0].numpy() for state in (windows.start(), *states)]
        return {"real": real, self.family: np.stack(dreamt)}


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".tmp")
    whole.write_text(json.dumps(figures, indent=1))
    whole.replace(path)


def step_seconds(world: dreamgym.World, quick: bool) -> float:
    """Return the process time of a dream's step with `ROWS` rows: the median of several turns."""
    env = DreamVectorEnv(
        world, ROWS, device="cpu", output="torch", autoreset_mode="SameStep", view="latent"
    )
    env.reset(seed=0)
    action = torch.zeros(ROWS, dtype=torch.int64)
    taken = []
    for _ in range(3 if quick else 9):
        began, steps = time.process_time(), 0
        while time.process_time() < began + (0.02 if quick else 0.5):
            env.step(action)
            steps += 1
        taken.append((time.process_time() - began) / steps)
    env.close()
    return median(taken[1:])


def make(run: Run, parts: list[str]) -> None:
    """Make the parts of one run that are not there yet."""
    steps = {"fit": lambda: run.world, "measure": run.measured, "policy": run.transferred}
    for part, step in steps.items():
        if part in parts:
            began = time.perf_counter()
            step()
            print(f"{run.name}: {part} {time.perf_counter() - began:.0f} s", flush=True)


def rows_of(run: Run) -> list[Row]:
    """Return the figures of one run, as far as they are there."""
    rows = []
    if (run.folder / "measured.json").exists():
        found = run.measured()
        errors, events = found["errors"], found["events"]
        f1 = dict(zip(events["horizons"], events["f1"], strict=True))
        for k in SHOWN_HORIZONS:
            if k in errors["horizons"]:
                at = errors["horizons"].index(k)
                ratio = errors["mean"][at] / errors["repeat_last"][at]
                rows += [
                    Row(name=f"{run.name}: error at {k}", value=errors["mean"][at], unit="spreads"),
                    Row(name=f"{run.name}: error at {k} / repeat-last", value=ratio, unit="ratio"),
                ]
            if f1.get(k) is not None:
                rows.append(Row(name=f"{run.name}: F1 of rewards at {k}", value=f1[k], unit="F1"))
        for what, key, unit in (
            ("action sensitivity", "action_sensitivity", "ratio"),
            (f"step of {ROWS} dreams", "step_ms", "ms"),
            ("fit", "fit_seconds", "s"),
        ):
            if found[key] is not None:
                rows.append(Row(name=f"{run.name}: {what}", value=found[key], unit=unit))
    if (run.folder / "transfer.json").exists():
        moved = run.transferred()
        low, high = moved["real_return_interval"]
        cloned = moved["baselines"].get("behaviour cloning")
        for what, value in (
            ("real return", moved["real_return_mean"]),
            ("low end of its 95% interval", low),
            ("high end of its 95% interval", high),
            ("dream return of the same policy", moved["dream_return_mean"]),
            ("random", moved["baselines"]["random"]["return_mean"]),
            ("cloning", None if cloned is None else cloned["return_mean"]),
        ):
            if value is not None:
                rows.append(Row(name=f"{run.name}: {what}", value=value, unit="return"))
        rows.append(
            Row(name=f"{run.name}: training of the policy", value=moved["seconds"], unit="s")
        )
    return rows


def rows_of_task(runs: list[Run]) -> list[Row]:
    """Return the figures of a game over all seeds that are there, with the bar."""
    rows: list[Row] = []
    free: dict[int, float] = {}
    for game in {run.game.seed: run.game for run in runs}.values():
        if (game.folder / "model-free.json").exists():
            found = game.model_free()
            ways = {way: found[way]["return_mean"] for way in ("most likely", "sampled")}
            free[game.seed] = max(ways.values())
            name = f"{game.name}, model-free on {game.real_steps} real steps, seed {game.seed}"
            rows += [
                Row(name=f"{name}: {way}", value=value, unit="return")
                for way, value in ways.items()
            ]
    better, seeds = 0, 0
    for family in dict.fromkeys(run.family for run in runs):
        mine = [run for run in runs if run.family == family and run.game.seed in free]
        returns = {
            run.game.seed: run.transferred()["real_return_mean"]
            for run in mine
            if (run.folder / "transfer.json").exists()
        }
        if not returns:
            continue
        gains = [value - free[seed] for seed, value in returns.items()]
        seeds = max(seeds, len(gains))
        better += mean(gains) > 0
        name = f"{runs[0].game.name}, {family}, {len(gains)} seeds"
        rows += [
            Row(
                name=f"{name}: mean real return", value=np.mean([*returns.values()]), unit="return"
            ),
            Row(name=f"{name}: mean gain on model-free", value=np.mean(gains), unit="return"),
            Row(name=f"{name}: smallest gain of a seed", value=min(gains), unit="return"),
        ]
    if seeds:
        name = f"{runs[0].game.name}, {seeds} seeds: families better than model-free"
        judged = at_least(name, better, "families", WANTED)
        rows.append(replace(judged, bar="", holds=None) if runs[0].game.quick else judged)
    return rows


def table_of(runs: list[Run]) -> list[str]:
    """Return the lines of a game's table for the docs: means over the seeds that are there."""
    lines = []
    for family in dict.fromkeys(run.family for run in runs):
        done = [
            run
            for run in runs
            if run.family == family
            and all((run.folder / f"{name}.json").exists() for name in ("measured", "transfer"))
        ]
        if not done:
            continue
        measured, moved = [run.measured() for run in done], [run.transferred() for run in done]
        at = [{k: row for row, k in enumerate(found["errors"]["horizons"])} for found in measured]
        ratios, f1 = [], []
        for k in SHOWN_HORIZONS:
            both = zip(measured, at, strict=True)
            pairs = [(found, where[k]) for found, where in both if k in where]
            each = [f["errors"]["mean"][i] / f["errors"]["repeat_last"][i] for f, i in pairs]
            ratios.append(f"{mean(each):.2f}" if each else "-")
            known = [f["events"]["f1"][i] for f, i in pairs if f["events"]["f1"][i] is not None]
            f1.append(f"{mean(known):.2f}" if known else "-")
        cells = [
            runs[0].game.name,
            f"`{family}`",
            ", ".join(ratios),
            ", ".join(f1),
            f"{mean(found['action_sensitivity'] for found in measured):.2f}",
            f"{mean(found['step_ms'] for found in measured):.1f}",
            f"{mean(found['real_return_mean'] for found in moved):.2f}",
            ", ".join(f"{found['real_return_mean']:.2f}" for found in moved),
            f"{mean(found['dream_return_mean'] for found in moved):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


TABLE = [
    f"| game | family | error at {SHOWN_HORIZONS}, against repeat-last | F1 of rewards there "
    f"| action sensitivity | ms a step of {ROWS} | real return | of each seed | in the dream |",
    "|---|---|---|---|---|---|---|---|---|",
]


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parsed.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parsed.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parsed.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=[*PARTS, "rows"], help="default: all"
    )
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    parsed.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw frames as FILE-<task>.png"
    )
    parsed.add_argument("--table", action="store_true", help="print a table for the docs, too")
    return parsed.parse_args()


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(1)
    rows: list[Row] = []
    lines = list(TABLE)
    for name in [name for name in chosen.tasks if find_spec(TASKS[name].package) is None]:
        print(f"{name}: left out; pip install 'dreamgym[games]'")
        chosen.tasks.remove(name)
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for name in chosen.tasks[:1] if chosen.quick else chosen.tasks:
            runs: list[Run] = []
            for seed in chosen.seeds[:1] if chosen.quick else chosen.seeds:
                game = Game(name=name, seed=seed, work=work, quick=chosen.quick)
                if "data" in chosen.parts:
                    game.data()
                if "model-free" in chosen.parts:
                    game.model_free()
                families = chosen.families[:1] if chosen.quick else chosen.families
                own = [Run(game=game, family=family) for family in families]
                for run in own:
                    make(run, chosen.parts)
                    rows += rows_of(run)
                runs += own
            rows += rows_of_task(runs)
            lines += table_of(runs)
            if chosen.picture is not None:
                draw(runs, chosen.picture.with_stem(f"{chosen.picture.stem}-{name}"))
    if chosen.table:
        print("\n".join(lines))
    report(rows, chosen)


def draw(runs: list[Run], path: Path) -> None:
    """Draw real frames and dreams of the first seed, for the families whose world is there."""
    shown: dict[str, NDArray[np.uint8]] = {}
    for run in runs:
        if run.game.seed == runs[0].game.seed and (run.folder / "world").exists():
            shown |= run.frames()
    if shown:
        draw_frames(shown, SHOWN_FRAMES, path)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
