"""Whether each family learns pixels: reconstructions, dreams 15 steps ahead, and the true state.

Pendulum as 64x64 images (`pixel_pendulum.py`), mixed data. On held-out episodes: the error of
decoded dreams against repeating the last frame, and a linear probe, fitted on features of training
episodes, that reads the true state (cosine, sine, speed) off features of real frames and off
features dreamt 15 steps ahead. A JEPA has no decoder: it is probed only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from support.mixed_data import Disturbed, swing
from support.pictures import draw_frames
from support.pixel_pendulum import ENV_ID
from support.reporting import Row, at_least, below, parser, report
from torch import Tensor

import dreamgym
from dreamgym.data import Dataset
from dreamgym.models import Decodes, JEPAConfig, MDNRNNConfig, RSSMConfig, filter_states, imagine
from dreamgym.models.base import as_segment
from dreamgym.models.jepa import JEPAObjective
from dreamgym.models.observations import get_part

AHEAD = 15
BURN_IN = 5
WINDOWS = 512
SHOWN = (0, 1, 3, 5, 8, 11, 15)
FITS: Mapping[str, Mapping[str, Any]] = {
    "mdn-rnn": {
        # A thin rod before one grey: unless what moves weighs more, V learns the mean frame first
        # and long. Many small batches leave that sooner than few large ones.
        "model": MDNRNNConfig(
            hidden=128,
            latent=16,
            kl_scale=0.1,
            foreground=8.0,
            vision_frames=64,
            vision_updates=1500,
        ),
        "updates": 4000,
        "batch_size": 32,
        "learning_rate": 2e-3,
    },
    "rssm": {"model": RSSMConfig(), "updates": 1000, "batch_size": 8, "learning_rate": 1e-3},
    "jepa": {
        "model": JEPAConfig(objective=JEPAObjective(sigreg=0.05, rollout=3)),
        "updates": 1500,
        "batch_size": 32,
        "segment_length": 4,
        "learning_rate": 1e-3,
    },
}
QUICK = {"updates": 4, "evaluate_every": 4, "batch_size": 4}


class Windows(NamedTuple):
    """Held-out or training windows, as a model sees them, and their true states.

    Attributes:
        features: (N, BURN_IN + AHEAD, F) after each real observation from the last of the burn-in.
        dreamt: (N, AHEAD, F) features of dreams from there on, under the true actions.
        state: (N, 1 + AHEAD, 3) true states.
        frames: (N, 1 + AHEAD, H, W, C) true frames.
        decoded: (N, 1 + AHEAD, H, W, C) reconstruction and dream; None without a decoder.
    """

    features: Tensor
    dreamt: Tensor
    state: Tensor
    frames: Tensor
    decoded: Tensor | None


def record(out: Path, steps: int, seed: int) -> None:
    """Mixed data with images and true states."""

    def swing_by_state(env: gym.Env[Any, Any], seen: dict[str, NDArray[Any]]) -> Any:
        return swing(env, seen["state"])

    with gym.make(ENV_ID) as env:
        policy = Disturbed(swing_by_state, env)
        dreamgym.record(env, steps=steps, out=out, policy=policy, seed=seed)


@torch.no_grad()
def look(model: Any, data: Path, episodes: NDArray[np.integer], seed: int) -> Windows:
    """Filter windows of episodes, and dream on from their burn-in under the true actions."""
    rng = np.random.default_rng([seed, len(episodes)])
    with Dataset(data) as both:
        batch = both.segments(episodes, BURN_IN + AHEAD).draw(WINDOWS, rng)
    whole = as_segment(batch, torch.device("cpu"))
    full = whole.mask.all(1)  # Pendulum's episodes never end by themselves
    images, states = whole.observation["image"][full], whole.observation["state"][full]
    segment = whole._replace(observation=images, action=whole.action[full])
    shape = (len(images), BURN_IN + AHEAD + 1, model.noise_dim)
    noise = torch.from_numpy(rng.random(shape, dtype=np.float32))
    filtered = filter_states(model, segment, noise)
    now = {key: leaf[:, BURN_IN] for key, leaf in filtered.items()}
    dreams, _ = imagine(model, now, segment.action[:, BURN_IN:], noise[:, BURN_IN + 1 :])
    decoded = None
    if isinstance(model, Decodes):
        later = [{key: leaf[:, t] for key, leaf in dreams.items()} for t in range(AHEAD)]
        decoded = torch.stack(
            [get_part(model.decode(state), "image") for state in [now, *later]], 1
        )
    return Windows(
        features=_features(model, filtered)[:, BURN_IN:],
        dreamt=_features(model, dreams),
        state=states[:, BURN_IN:],
        frames=images[:, BURN_IN:],
        decoded=decoded,
    )


def _features(model: Any, states: dict[str, Tensor]) -> Tensor:
    length = next(iter(states.values())).shape[1]
    return torch.stack(
        [model.features({k: leaf[:, t] for k, leaf in states.items()}) for t in range(length)], 1
    )


class LinearProbe:
    """Ridge regression from features to true states.

    Args:
        features: (N, F).
        states: (N, S).
    """

    def __init__(self, features: Tensor, states: Tensor) -> None:
        x = self._with_one(features)
        penalty = 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        self.weights = torch.linalg.solve(x.T @ x + penalty, x.T @ states.double())

    def __call__(self, features: Tensor) -> Tensor:
        """States (N, S) that are read off features (N, F)."""
        return self._with_one(features) @ self.weights

    @staticmethod
    def _with_one(features: Tensor) -> Tensor:
        flat = features.double()
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)


def r_squared(target: Tensor, given: Tensor) -> Tensor:
    """Share of each column's variance that is explained, (S,)."""
    target = target.double()
    left = (target - given).square().mean(0)
    return 1.0 - left / target.var(0, correction=0)


def rmse(target: Tensor, given: Tensor) -> float:
    """Root mean square difference."""
    return float((target.double() - given.double()).square().mean().sqrt())


def rows_of(name: str, family: str, train: Windows, test: Windows) -> list[Row]:
    """The figures of one model."""
    probe = LinearProbe(train.features.flatten(0, 1), train.state.flatten(0, 1))
    spread = train.state.flatten(0, 1).std(0)
    found = r_squared(test.state.flatten(0, 1), probe(test.features.flatten(0, 1)))
    least, held = f"{name}: R2 of the true state, probed", float(found.min())
    rows = [
        at_least(least, held, "R2", 0.9)
        if family == "jepa"
        else Row(name=least, value=held, unit="R2")
    ]
    target = test.state[:, AHEAD] / spread
    dreamt = rmse(target, probe(test.dreamt[:, -1]) / spread)
    # The last state itself, not merely what the probe reads off it: the harder one to beat.
    last = rmse(target, test.state[:, 0] / spread)
    rows.append(
        below(f"{name}: state {AHEAD} ahead, against repeat-last", dreamt / last, "ratio", 1)
    )
    if test.decoded is not None:
        ahead = rmse(test.frames[:, AHEAD], test.decoded[:, AHEAD])
        last = rmse(test.frames[:, AHEAD], test.frames[:, 0])
        now = rmse(test.frames[:, 0], test.decoded[:, 0])
        rows += [
            below(f"{name}: pixels {AHEAD} ahead, against repeat-last", ahead / last, "ratio", 1),
            below(f"{name}: reconstruction, against repeat-last", now / last, "ratio", 1),
        ]
    return rows


def main() -> None:
    chosen = arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for seed in chosen.seeds[:1] if chosen.quick else chosen.seeds:
            folder = work / f"{ENV_ID}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            data = folder / "data.h5"
            if not data.exists():
                record(data, 1000 if chosen.quick else 20_000, seed)
            frames = {}
            for family in chosen.families:
                world = fitted(family, data, folder / family, seed, chosen.quick)
                settings = world.provenance["fit"]
                with Dataset(data) as both:
                    training, held_out = both.split(settings["held_out"], settings["seed"])
                train, test = (look(world.model, data, e, seed) for e in (training, held_out))
                rows += rows_of(f"{family}, seed {seed}", family, train, test)
                if test.decoded is not None:
                    frames.setdefault("truth", test.frames[0].numpy())
                    frames[family] = test.decoded[0].numpy()
            if chosen.picture is not None and frames and seed == chosen.seeds[0]:
                draw_frames(frames, SHOWN, chosen.picture)
    report(rows, chosen)


def fitted(family: str, data: Path, out: Path, seed: int, quick: bool) -> dreamgym.World:
    """The world, fitted to the images alone; from the folder if it is there."""
    if out.exists():
        return dreamgym.load(out)
    settings = {**FITS[family], **(QUICK if quick else {})}
    config = dreamgym.default_config(family, **settings)
    with Dataset(data, keys=["image"]) as images:
        return dreamgym.fit(images, out, family=family, seed=seed, config=config)


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--families", nargs="+", default=list(FITS), choices=FITS)
    parsed.add_argument("--seeds", nargs="+", type=int, default=[0])
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    parsed.add_argument("--picture", type=Path, metavar="FILE", help="draw dreams as PNG")
    return parsed.parse_args()


if __name__ == "__main__":
    main()
