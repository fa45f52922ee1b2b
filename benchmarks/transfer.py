"""Real returns of policies that were trained in dreams only, over seeds, from the verbs themselves.

For every seed: record, fit, train and transfer, each by the command line as a user types it; and
for comparison PPO on as many real steps. The last policy is measured over 100 real episodes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from support.reporting import Row, at_least, parser, report

import dreamgym

QUICK = ["--updates", "50"], ["--steps", "4096"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment, its data, its bar and its baseline's settings."""

    env_id: str
    steps: int
    policy: str
    bar: float
    baseline: dict


TASKS = [
    Task(
        env_id="CartPole-v1",
        steps=10_000,
        policy="random",
        bar=490.0,
        baseline={"n_steps": 50, "batch_size": 50, "learning_rate": 3e-4},
    ),
    Task(
        env_id="Pendulum-v1",
        steps=20_000,
        policy="sticky:0.8",
        bar=-180.0,
        baseline={"n_steps": 125, "batch_size": 125, "learning_rate": 1e-3, "gamma": 0.95},
    ),
]


def verb(*words: object) -> None:
    """Run one verb of the command line."""
    command = [sys.executable, "-m", "dreamgym.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def transferred(task: Task, seed: int, folder: Path, quick: bool) -> dict:
    """The figures of `dreamgym transfer` at the end of the whole way."""
    data, world, policy = folder / "data.h5", folder / "world", folder / "policy.zip"
    fit_size, train_size = QUICK if quick else ([], [])
    recorded = ("--steps", task.steps, "--policy", task.policy)
    verb("record", task.env_id, *recorded, "--seed", seed, "--out", data)
    verb("fit", data, "--family", "mdn-rnn", "--seed", seed, "--out", world, *fit_size)
    verb("train", world, "--algo", "PPO", "--seed", seed, "--out", policy, *train_size)
    verb("transfer", policy, "--world", world, "--episodes", 100, "--json", folder / "result.json")
    return json.loads((folder / "result.json").read_text())


def model_free(task: Task, seed: int) -> float:
    """Mean real return of PPO trained on as many real steps as the dataset has."""
    env = make_vec_env(task.env_id, n_envs=8, seed=seed)
    agent = PPO("MlpPolicy", env, seed=seed, device="cpu", **task.baseline).learn(task.steps)
    return dreamgym.evaluate(agent, task.env_id, episodes=100).mean


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--tasks", nargs="+", default=[task.env_id for task in TASKS])
    chosen = arguments.parse_args()
    rows = []
    for task in TASKS:
        if task.env_id not in chosen.tasks:
            continue
        for seed in range(1 if chosen.quick else 3):
            with tempfile.TemporaryDirectory() as folder:
                result = transferred(task, seed, Path(folder), chosen.quick)
            name = f"{task.env_id}, seed {seed}"
            low, high = result["real_return_interval"]
            mean, dreamt = result["real_return_mean"], result["dream_return_mean"]
            rows += [
                at_least(f"{name}: real return", mean, "return", task.bar),
                Row(name=f"{name}: low end of its 95% interval", value=low, unit="return"),
                Row(name=f"{name}: high end of its 95% interval", value=high, unit="return"),
                Row(name=f"{name}: dream return of the same policy", value=dreamt, unit="return"),
            ]
            if not chosen.quick:
                free = model_free(task, seed)
                rows.append(Row(name=f"{name}: PPO on real steps", value=free, unit="return"))
    report(rows, chosen)


if __name__ == "__main__":
    main()
