"""Stage 4, train: two learners learn in the same dreams; the real environment is not used.

    python examples/stages/train.py

Stable-Baselines3's PPO, and a PPO in one file that keeps everything on the device. Both policies
are saved. `train.png` shows their returns in the dream. These say that something was learnt; what
it is worth, only the real environment tells, in the next stage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dreamgym
from dreamgym.train import TrainConfig

LEARNERS = {"sb3": "policy-sb3.zip", "ppo": "policy-ppo.safetensors"}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    steps = 1024 if options.quick else 300_000
    config = TrainConfig(num_envs=32, n_steps=16) if options.quick else TrainConfig()

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for learner, file in LEARNERS.items():
        policy = dreamgym.train_policy(
            options.out / "world",
            algo="PPO",
            learner=learner,
            seed=0,
            steps=steps,
            config=config,
            out=options.out / file,
        )
        axes.plot(*zip(*policy.curve, strict=True), label=learner)
        print(f"{options.out / file}: dream return {policy.curve[-1][1]:.0f}")
        for alarm in policy.card.alarms:
            print(f"alarm: {alarm}")
    axes.set(xlabel="dream steps", ylabel="return in the dream")
    axes.legend()
    figure.savefig(options.out / "train.png")
    print(f"{options.out / 'train.png'}; next: transfer.py")


if __name__ == "__main__":
    main()
