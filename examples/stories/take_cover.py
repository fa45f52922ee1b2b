"""Survive VizDoom's Take Cover without playing it while learning, from pixels.

    python examples/stories/take_cover.py

The experiment of "World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122): fireballs fly, and an
agent that has learned in dreams only moves left and right between them. It needs
`pip install 'dreamgym[doom,sb3]'`, and an hour or two on one core.

`improve` records sticky random actions, fits a world, trains a policy in its dreams, lets that
policy record, which reaches situations that random actions do not survive to see, and so on. In the
last world one policy is trained at each of several temperatures and measured in the real game,
which lasts at most 2,100 tics, four in a step. `take_cover.png` shows the tics survived, and frames
of a dream. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
from matplotlib.figure import Figure

import dreamgym
from dreamgym.models import MDNRNNConfig
from dreamgym.online import ImproveConfig
from dreamgym.train import TrainConfig, load_policy
from dreamgym.transfer import Transfer

TASK = "dreamgym/TakeCover-v0"
TEMPERATURES, OWN = (0.5, 1.0, 1.15, 1.3), 1.15
"""Temperatures of the last policies, and that of the rounds."""
MODEL = MDNRNNConfig(
    hidden=256,
    trunk=0,
    head=0,
    latent=64,
    kl_scale=0.3,
    foreground=8.0,  # fireballs are few pixels
    vision_frames=64,
    vision_updates=2500,
)
FIT = dreamgym.default_config(
    "mdn-rnn",
    model=MODEL,
    updates=4500,
    batch_size=32,
    segment_length=64,
    learning_rate=1e-3,
    gradient_clip=100.0,
    clip_by="norm",
    evaluate_every=500,
    starts=4096,
    horizon=200,
)
TRAIN = TrainConfig(
    view="latent", num_envs=256, learning_rate=3e-4, gamma=0.99, learner={"ent_coef": 0.005}
)


def improve(out: Path, *, quick: bool) -> dreamgym.World:
    """Record, fit and train in rounds; return the world of the last one."""
    config = ImproveConfig(
        first_steps=500 if quick else 60_000,
        round_steps=500 if quick else 80_000,
        noise=0.1,
        dream_steps=1024 if quick else 1_500_000,
        evaluation_episodes=1 if quick else 20,
        fit=FIT,
        train=replace(TRAIN, temperature=OWN),
    )
    if quick:
        model = replace(MODEL, hidden=16, width=0.25, vision_updates=3)
        fit = replace(FIT, model=model, updates=6, batch_size=4, segment_length=16, starts=16)
        config = replace(config, fit=fit, train=replace(config.train, num_envs=8))
    result = dreamgym.improve(
        TASK,
        real_steps=1000 if quick else 300_000,
        out=out,
        config=config,
        progress=lambda each: print(f"round {each['round']}: {each['real_return']:.0f} tics"),
    )
    return dreamgym.load(out / result.rounds[-1]["world"])


def measure(
    world: dreamgym.World, path: Path, temperature: float, *, seed: int = 0, quick: bool
) -> Transfer:
    """Train a policy in dreams of a temperature, unless it is there, and measure it."""
    if not path.exists():
        dreamgym.train_policy(
            world,
            seed=seed,
            steps=1024 if quick else 1_500_000,
            out=path,
            resume=True,
            config=replace(TRAIN, temperature=temperature, num_envs=8 if quick else 256),
        )
    policy = load_policy(path, world=world)
    episodes = 2 if quick else 100
    return dreamgym.transfer_policy(policy, world, episodes=episodes, baselines=False)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    quick = options.quick

    world = improve(options.out / "rounds", quick=quick)
    results = {"random": dreamgym.evaluate("random", TASK, episodes=2 if quick else 100)}
    for temperature in TEMPERATURES[: 1 if quick else None]:
        path = options.out / f"policy-{temperature:g}.zip"
        results[f"temperature {temperature:g}"] = measure(
            world, path, temperature, quick=quick
        ).real

    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1))
    axes = top.subplots()
    for row, (name, result) in enumerate(results.items()):
        low, high = result.interval
        print(f"{name}: {result.mean:.0f} tics, 95% interval {low:.0f} to {high:.0f}")
        axes.errorbar(row, result.mean, yerr=[[result.mean - low], [high - result.mean]], fmt="o")
    axes.set_xticks(range(len(results)), list(results))
    axes.set(ylabel="tics survived", ylim=(0, 2100))
    envs = gym.make_vec("dreamgym/World-v0", world=world, view="observation", num_envs=1)
    frames, _ = envs.reset(seed=0)
    for axes in bottom.subplots(1, 8):
        axes.imshow(frames[0])
        axes.axis("off")
        for _ in range(3):
            frames, *_ = envs.step(envs.action_space.sample())
    bottom.suptitle("a dream, every third frame")
    figure.savefig(options.out / "take_cover.png")
    print(options.out / "take_cover.png")


if __name__ == "__main__":
    main()
