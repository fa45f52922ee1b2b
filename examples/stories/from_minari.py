"""From a Minari dataset to a policy: somebody else's data is read as it is.

    python examples/stories/from_minari.py

First a dataset is made with Minari itself, as others publish them; a downloaded one is used in the
same way (`minari download ...`, then the folder's path). dreamgym detects the format, checks it,
fits a world and trains a policy. `from_minari.png` shows the policy's real return beside that of
the data's own policy, which acts at random.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

import dreamgym
from dreamgym.train import TrainConfig

TASK = "CartPole-v1"


def make_dataset(folder: Path, episodes: int) -> Path:
    """Write random episodes with Minari into `folder`, and return the dataset's folder."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder.resolve())
    import minari
    from minari.data_collector import EpisodeBuffer

    shutil.rmtree(folder / "cartpole", ignore_errors=True)
    env = gym.make(TASK)
    env.action_space.seed(0)
    buffers = []
    for number in range(episodes):
        observation, _ = env.reset(seed=number)
        buffer = EpisodeBuffer(id=number, seed=number, observations=[observation], actions=[])
        while not (buffer.terminations and (buffer.terminations[-1] or buffer.truncations[-1])):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            buffer.observations.append(observation)
            buffer.actions.append(action)
            buffer.rewards.append(reward)
            buffer.terminations.append(terminated)
            buffer.truncations.append(truncated)
        buffers.append(buffer)
    minari.create_dataset_from_buffers(
        "cartpole/random-v0",
        buffers,
        env=env,
        eval_env=TASK,
        algorithm_name="random",
        description="CartPole under random actions",
        author="you",
        author_email="you@example.org",
        code_permalink="https://example.org/code",
    )
    env.close()
    return folder / "cartpole" / "random-v0"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick

    data = make_dataset(options.out / "minari", episodes=25 if quick else 450)
    print(dreamgym.check(data))
    config = dreamgym.FitConfig(updates=30 if quick else 2000, overwrite=True)
    world = dreamgym.fit(
        data, options.out / "minari-world", family="mdn-rnn", seed=0, config=config
    )
    policy = dreamgym.train_policy(
        world,
        seed=0,
        steps=1024 if quick else 300_000,
        config=TrainConfig(num_envs=32, n_steps=16) if quick else TrainConfig(),
    )
    result = dreamgym.evaluate(policy, TASK, episodes=3 if quick else 100)
    low, high = result.interval
    print(f"real return {result.mean:.0f}, 95% interval {low:.0f} to {high:.0f}")

    with dreamgym.data.open_dataset(data) as dataset:
        lengths = np.array(dataset.lengths)  # every step of CartPole has the reward 1
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist([lengths, result.returns], bins=30, density=True, label=["data", "policy"])
    axes.set(xlabel="real return", ylabel="density")
    axes.legend()
    figure.savefig(options.out / "from_minari.png")
    print(options.out / "from_minari.png")


if __name__ == "__main__":
    main()
