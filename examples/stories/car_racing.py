"""Learn to drive CarRacing from pixels, in dreams only.

    python examples/stories/car_racing.py

"World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122) trained its driver in the real game,
because its model of the game had no reward. Here the reward is learned too, and the driver learns
in dreams only. It needs `pip install 'dreamgym[box2d,sb3]'`, and two hours on one core.

`improve` records sticky random actions, fits a world, trains a driver in its dreams, lets that
driver record, and so on. The last driver is measured on 100 tracks that nobody has seen.
`car_racing.png` shows the returns of the rounds, and frames of a dream under random actions. A run
that was stopped resumes when it is started again.
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

TASK = "dreamgym/CarRacing-v0"
MODEL = MDNRNNConfig(
    hidden=256,
    trunk=256,
    head=128,
    latent=32,
    kl_scale=0.3,
    foreground=2.0,
    vision_frames=64,
    vision_updates=2000,
)
FIT = dreamgym.default_config(
    "mdn-rnn",
    model=MODEL,
    updates=5000,
    batch_size=32,
    segment_length=50,
    learning_rate=1e-3,
    gradient_clip=100.0,
    clip_by="norm",
    evaluate_every=500,
    starts=2048,
    horizon=100,
)
TRAIN = TrainConfig(view="latent", num_envs=256, learning_rate=3e-4, gamma=0.98)
LOOP = ImproveConfig(
    first_steps=15_000,
    round_steps=15_000,
    noise=0.2,
    dream_steps=1_500_000,
    evaluation_episodes=10,
    fit=FIT,
    train=TRAIN,
)
REAL_STEPS = 105_000
"""Real actions of the loop, of four frames each."""


def quick_loop() -> ImproveConfig:
    """Return settings with which nothing is learned, in seconds."""
    model = replace(MODEL, hidden=16, width=0.25, vision_updates=3)
    fit = replace(FIT, model=model, updates=6, batch_size=4, segment_length=16, starts=16)
    return replace(
        LOOP,
        first_steps=300,
        round_steps=300,
        dream_steps=1024,
        evaluation_episodes=1,
        fit=fit,
        train=replace(TRAIN, num_envs=8),
    )


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("out/car-racing"), help="folder of results"
    )
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    loop = quick_loop() if options.quick else LOOP

    result = dreamgym.improve(
        TASK,
        real_steps=600 if options.quick else REAL_STEPS,
        out=options.out / "rounds",
        config=loop,
        progress=lambda each: print(f"round {each['round']}: {each['real_return']:.0f}"),
    )
    last = result.rounds[-1]
    world = dreamgym.load(options.out / "rounds" / last["world"])
    driver = load_policy(options.out / "rounds" / last["policy"], world=world)
    episodes = 1 if options.quick else 100
    found = dreamgym.transfer_policy(driver, world, episodes=episodes, baselines=False).real
    low, high = found.interval
    print(f"{found.mean:.0f} on {episodes} tracks, 95% interval {low:.0f} to {high:.0f}")

    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1))
    axes = top.subplots()
    rounds = [each["real_return"] for each in result.rounds]
    axes.plot([each["real_steps"] for each in result.rounds], rounds, "o-", label="rounds")
    axes.axhline(found.mean, linestyle="--", color="0.5", label="last driver")
    axes.set(xlabel="real actions", ylabel="real return")
    axes.legend(frameon=False)
    envs = gym.make_vec("dreamgym/World-v0", world=world, view="observation", num_envs=1)
    frames, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    for axes in bottom.subplots(1, 8):
        axes.imshow(frames[0])
        axes.axis("off")
        for _ in range(3):
            frames, *_ = envs.step(envs.action_space.sample())
    bottom.suptitle("a dream, every third frame")
    figure.savefig(options.out / "car_racing.png")
    print(options.out / "car_racing.png")


if __name__ == "__main__":
    main()
