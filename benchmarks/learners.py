"""Learner libraries in the dream: speed beside the bare dream, and real returns on Pendulum.

Every learner of the table that is installed trains by PPO in the Pendulum world that ships:

- briefly, with equal settings, at 256 and at 4,096 copies; its steps a CPU second are divided by
  those of the dream alone, stepped with fixed actions in the same run;
- to the end with its own defaults, once a seed; the policy is measured in 100 real episodes.

Every algorithm trains with its defaults in the worlds of vectors that ship (part `defaults`); PPO's
trainings in Pendulum's are those above (part `returns`). LunarLander and InvertedPendulum need
`box2d` and `mujoco`.

PPO of every learner also trains in a world whose values are known (part `truncation`): the value of
an observation at which every episode is truncated is 10 where the truncation is bootstrapped from
it, below 7 from the next episode's first one, and about 3 where it is taken for an end.

`ppo` also trains in Pendulum's world with single settings changed (part `settings`).

dreamgym's own PPO is compared with Stable-Baselines3's at 4,096 copies and with equal settings
(`PAIRED`): steps a CPU second in brief trainings, in turns, and real returns of whole ones.

What is measured lies in `--work` and is used again, so that a run that was stopped goes on, and the
same command writes all rows; it needs every library in one environment, with gymnasium 1.2.

`--docs` writes the tables of docs/train.md from the rows of all results instead of measuring.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import gymnasium as gym
import numpy as np
import torch
from support.reporting import Row, at_least, parser, report

import dreamgym
from dreamgym.dream import DreamVectorEnv
from dreamgym.train import LEARNERS, TrainConfig, TrainedPolicy, train_policy
from dreamgym.transfer.intervals import mean_interval
from tests.train.counting import GAMMA, RIGHT, counting_world

WORLD, TASK = "Pendulum-MDNRNN-v0", "Pendulum-v1"
COUNTS = (256, 4096)
EPISODES = 100
N_STEPS = 32
UPDATES = {256: 4, 4096: 1}
"""Updates that are timed, after a first one."""

PAIRED = TrainConfig(
    num_envs=4096,
    n_steps=16,
    batch_size=1024,
    n_epochs=5,
    gamma=0.99,
    gae_lambda=0.95,
    learning_rate=1e-3,
    net_arch=(64, 64),
)
"""Settings of the comparison with SB3's PPO: the defaults of both, but for the copies, and for the
steps of a rollout, which are fewer so that there are as many updates."""
PAIRED_STEPS = 1_000_000
TURNS, TURN_STEPS = 9, 4 * 65_536
"""Brief trainings of each, in turns, and their steps: the speed of a core varies by the minute."""

SETTINGS = {
    "reward_scale=1": TrainConfig(reward_scale=1.0),
    "4096 copies and rollouts of 64 steps": TrainConfig(num_envs=4096, n_steps=64),
}
"""Settings that matter in dreams, each changed alone."""

SOLVED = {
    "CartPole-v1": 490.0,
    "Pendulum-v1": -200.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "LunarLander-v3": 200.0,
    "InvertedPendulum-v5": 1000.0,
}
"""Mean real return from which on a shipped task is solved."""

DISTRIBUTIONS = {
    "stable_baselines3": "stable-baselines3",
    "rsl_rl": "rsl-rl-lib",
    "skrl": "skrl",
    "torchrl": "torchrl",
    "tianshou": "tianshou",
    "sbx": "sbx-rl",
    "ray": "ray",
}
"""Distribution that has a learner's module."""

DOCS = Path(__file__).resolve().parents[1] / "docs" / "train.md"
RESULTS = Path(__file__).resolve().parent / "results"

NEEDS = {
    "sb3": ("NumPy, SameStep", "no", "its own, one value pass a step by our callback"),
    "ppo": ("tensors, SameStep", "yes", "its own, exact"),
    "rsl_rl": ("tensors, SameStep", "yes", "`TruncationBootstrap` with its critic"),
    "skrl": ("tensors, SameStep", "yes", "`TruncationBootstrap` with its critic"),
    "torchrl": ("tensors, Disabled", "yes", "its own, exact"),
    "tianshou": ("NumPy, Disabled", "no", "its own, exact"),
    "sbx": ("NumPy, SameStep", "no", "its own, one value pass a step by our callback"),
    "rllib": ("NumPy, NextStep", "no", "its own, exact"),
}
"""What each adapter makes: arrays and autoreset mode, whether tensors stay on the device, and what
bootstraps a truncated dream."""


def installed() -> list[str]:
    """Return the names of the learners whose library is installed."""
    return [name for name, each in LEARNERS.items() if importlib.util.find_spec(each.requires)]


def title(name: str, versions: dict[str, str]) -> str:
    """Return a learner's title with the version of its library."""
    module = LEARNERS[name].requires
    if module == "torch":
        return f"`{name}` ({LEARNERS[name].title})"
    return f"`{name}` ({LEARNERS[name].title} {versions[DISTRIBUTIONS[module]]})"


def bare_speed(count: int) -> float:
    """Return the dream's own steps a CPU second, on tensors."""
    env = DreamVectorEnv(WORLD, count, device="cpu", output="torch", autoreset_mode="SameStep")
    env.reset(seed=0)
    action = torch.zeros(env.action_space.shape)
    for _ in range(5):
        env.step(action)
    start, steps = time.process_time(), 0
    while time.process_time() < start + 1.0:
        env.step(action)
        steps += count
    return steps / (time.process_time() - start)


def timed_training(
    name: str, config: TrainConfig, steps: int, seed: int = 0
) -> tuple[TrainedPolicy, float]:
    """Return a policy, and the steps a CPU second from the end of the first update on."""
    moments: list[tuple[float, int]] = []

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        moments.append((time.process_time(), done))

    policy = train_policy(
        WORLD, learner=name, algo="PPO", seed=seed, steps=steps, config=config, progress=progress
    )
    (start, before), (end, after) = moments[0], moments[-1]
    return policy, (after - before) / (end - start)


def training_speed(name: str, count: int) -> float:
    """Return dream steps a CPU second of a brief training."""
    rows = count * N_STEPS
    config = TrainConfig(num_envs=count, n_steps=N_STEPS, batch_size=rows // 8, n_epochs=5)
    return timed_training(name, config, (UPDATES[count] + 1) * rows)[1]


def kept(work: Path, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return figures that lie in a folder, or measure them and keep them there."""
    path = work / f"{name}.json"
    if not path.exists():
        figures = measure()
        print(name, figures, file=sys.stderr, flush=True)
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures))
    return json.loads(path.read_text())


def beside_sb3(seeds: int, work: Path) -> list[Row]:
    """Compare PPO on tensors with SB3's: equal settings, speed and real return."""
    speeds: dict[str, list[float]] = {"ppo": [], "sb3": []}
    returns: dict[str, list[float]] = {"ppo": [], "sb3": []}
    for turn in range(TURNS):
        for name, each in speeds.items():

            def measure(name: str = name) -> dict[str, float]:
                return {"speed": timed_training(name, PAIRED, TURN_STEPS)[1]}

            each.append(kept(work, f"paired-speed-{name}-{turn}", measure)["speed"])
    for seed in range(seeds):
        for name, each in returns.items():

            def measure(name: str = name, seed: int = seed) -> dict[str, float]:
                policy = timed_training(name, PAIRED, PAIRED_STEPS, seed)[0]
                return {"return": dreamgym.evaluate(policy, TASK, episodes=EPISODES).mean}

            each.append(kept(work, f"paired-{name}-{seed}", measure)["return"])
    where = (
        f"at {PAIRED.num_envs} copies, rollouts of {PAIRED.n_steps} steps, minibatches of "
        f"{PAIRED.batch_size}"
    )
    ratio = median(ours / theirs for ours, theirs in zip(*speeds.values(), strict=True))
    rows = [at_least(f"ppo {where}: speed, times SB3's PPO", ratio, "ratio", 2.0)]
    for name, each in returns.items():
        rows.append(
            Row(name=f"{name} {where}: steps a CPU second", value=median(speeds[name]), unit="1/s")
        )
        rows += [
            Row(name=f"{name} {where}: real return, seed {seed}", value=value, unit="return")
            for seed, value in enumerate(each)
        ]
    return rows


def speeds(names: list[str], counts: tuple[int, ...], work: Path) -> list[Row]:
    """Return the speeds of training, and what share of the bare dream's they are."""
    rows: list[Row] = []
    for count in counts:
        for name in names:

            def measure(name: str = name, count: int = count) -> dict[str, float]:
                return {"speed": training_speed(name, count), "bare": bare_speed(count)}

            found = kept(work, f"speed-{name}-{count}", measure)
            speed, share = found["speed"], found["speed"] / found["bare"]
            label = f"{name}: steps at {count} copies, share of the bare dream"
            rows += [
                Row(name=f"{name}: steps a CPU second at {count} copies", value=speed, unit="1/s"),
                Row(name=label, value=share, unit="ratio"),
            ]
    return rows


def truncation(names: list[str], work: Path) -> list[Row]:
    """Return the value that PPO of each library finds at a truncation, see the counting world."""
    rows = []
    for name in names:
        found = kept(work, f"truncation-{name}", lambda name=name: {"value": counted_value(name)})
        label = f"{name}: value at a truncation"
        distance = abs(found["value"] - RIGHT)
        bar = f"{RIGHT:g} +- 0.8"
        rows.append(
            Row(name=label, value=found["value"], unit="value", bar=bar, holds=distance < 0.8)
        )
    return rows


def counted_value(name: str) -> float:
    """Train in the counting world; return the value of the observation at its truncation."""
    policy = train_policy(
        counting_world(gym.spaces.Box(-2.0, 2.0, (1,), np.float32)),
        learner=name,
        algo="PPO",
        steps=30 * 512,
        config=TrainConfig(
            num_envs=32,
            n_steps=16,
            batch_size=128,
            gamma=GAMMA,
            learning_rate=3e-3,
            net_arch=(32,),
            reward_scale=1.0,
        ),
    )
    last = torch.ones(1, 1)
    with torch.no_grad():
        if LEARNERS[name].suffix == ".zip":
            from dreamgym.train.sb3 import values

            return float(values(policy, last))
        return float(policy.network.value(last))


def real_returns(names: list[str], seeds: int, work: Path) -> list[Row]:
    """Train PPO of each library with its defaults, and measure it in the real environment."""
    rows: list[Row] = []
    for name in names:
        values = [
            default_training((TASK, name, "PPO"), seed, work)["return"] for seed in range(seeds)
        ]
        low, high = mean_interval(np.asarray(values))
        figures = {f"real return, seed {seed}": value for seed, value in enumerate(values)}
        figures[f"real return, mean of {seeds} seeds"] = float(np.mean(values))
        figures |= {"low end of its 95% interval": low, "high end of its 95% interval": high}
        rows += [
            Row(name=f"{name}: {label}", value=value, unit="return")
            for label, value in figures.items()
        ]
    return rows


def settings(seeds: int, work: Path) -> list[Row]:
    """Train `ppo` with single settings changed, and measure it in the real environment."""
    rows: list[Row] = []
    for number, (name, config) in enumerate(SETTINGS.items()):
        for seed in range(seeds):

            def measure(config: TrainConfig = config, seed: int = seed) -> dict[str, float]:
                policy = train_policy(WORLD, learner="ppo", algo="PPO", seed=seed, config=config)
                return {"return": dreamgym.evaluate(policy, TASK, episodes=EPISODES).mean}

            found = kept(work, f"setting-{number}-{seed}", measure)
            label = f"ppo with {name}: real return, seed {seed}"
            rows.append(Row(name=label, value=found["return"], unit="return"))
    return rows


def default_cases(names: list[str]) -> list[tuple[str, str, str]]:
    """Return (task, learner, algorithm) of the trainings that `real_returns` leaves out."""
    cases = []
    for task in SOLVED:
        space = gym.make(task).action_space
        for name in names:
            library = LEARNERS[name].library()
            cases += [
                (task, name, algo)
                for algo in LEARNERS[name].algorithms
                if not library.unsupported(algo, space) and (task, algo) != (TASK, "PPO")
            ]
    return cases


def default_training(case: tuple[str, str, str], seed: int, work: Path) -> dict[str, float]:
    """Train with the defaults and measure; the figures are kept in `work`."""
    task, name, algo = case

    def measure() -> dict[str, float]:
        world = dreamgym.load(f"{task.rsplit('-', 1)[0]}-MDNRNN-v0")
        start = time.process_time()
        policy = train_policy(world, learner=name, algo=algo, seed=seed)
        seconds = time.process_time() - start
        env = lambda: world.adapted(gym.make(task))  # noqa: E731 - with the world's frame skip
        result = dreamgym.evaluate(policy, env, episodes=EPISODES)
        return {"return": result.mean, "steps": policy.card.steps, "seconds": seconds}

    return kept(work, f"{'-'.join(case)}-{seed}", measure)


def defaults(names: list[str], seeds: int, work: Path, *, done_only: bool) -> list[Row]:
    """Train with the defaults of every algorithm, and measure in the real environment."""
    rows = []
    for case in default_cases(names):
        task, name, algo = case
        label = f"{task}, defaults of {algo} ({name})"
        wanted = [
            seed
            for seed in range(seeds)
            if not done_only or (work / f"{'-'.join(case)}-{seed}.json").exists()
        ]
        if not wanted:
            continue
        found = [default_training(case, seed, work) for seed in wanted]
        rows += [
            at_least(f"{label}: real return, seed {seed}", each["return"], "return", SOLVED[task])
            for seed, each in zip(wanted, found, strict=True)
        ]
        steps, seconds = found[0]["steps"], median(each["seconds"] for each in found)
        rows.append(Row(name=f"{label}: dream steps", value=steps, unit="steps"))
        rows.append(Row(name=f"{label}: CPU seconds", value=seconds, unit="s"))
    return rows


def by_seed(values: dict[str, float], label: str) -> str:
    """Return the real returns of all seeds, from 0 on; "" where there are none."""
    prefix = f"{label}: real return, seed "
    return ", ".join(f"{value:.0f}" for name, value in values.items() if name.startswith(prefix))


def defaults_table(rows: list[dict]) -> str:
    """Return the table of all algorithms' defaults."""
    values = {row["name"]: row["value"] for row in rows}
    head = ["algorithm", "learner", *SOLVED, "dream steps", "CPU seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, each in LEARNERS.items():
        for algo in each.algorithms:
            labels = {task: f"{task}, defaults of {algo} ({name})" for task in SOLVED}
            cells = [by_seed(values, label) for label in labels.values()]
            if algo == "PPO":
                cells[[*SOLVED].index(TASK)] = by_seed(values, name)
            if not any(cells):
                continue
            costs = [
                [values[key] for label in labels.values() if (key := f"{label}: {what}") in values]
                for what in ("dream steps", "CPU seconds")
            ]
            spans = [span(each) for each in costs]
            lines.append(f"| {' | '.join([algo, f'`{name}`', *cells, *spans])} |")
    return "\n".join(lines)


def span(values: list[float]) -> str:
    """Return the least and the largest of some numbers."""
    low, high = (f"{each(values):,.0f}" for each in (min, max))
    return low if low == high else f"{low} to {high}"


def table(rows: list[dict], versions: dict[str, str]) -> str:
    """Return the table of learner libraries."""
    values = {row["name"]: row["value"] for row in rows}
    lines = [
        "| learner | dream | tensors stay on the device | truncation: V found | share of the bare "
        "dream's speed at 256 / 4,096 | real Pendulum return |",
        "|---|---|---|---|---|---|",
    ]
    for name, (arrays, stays, how) in NEEDS.items():
        result = by_seed(values, name)
        if not result:
            continue
        value = values.get(f"{name}: value at a truncation")
        needs = arrays, stays, how if value is None else f"{how}: {value:.1f}"
        shares = " / ".join(
            f"{values[f'{name}: steps at {count} copies, share of the bare dream']:.2f}"
            for count in COUNTS
        )
        lines.append(f"| {' | '.join([title(name, versions), *needs, shares, result])} |")
    return "\n".join(lines)


def by_figure(rows: list[dict]) -> dict[str, list[dict]]:
    """Return the rows of each figure, which are one, or one for each seed."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["name"].partition(", seed ")[0], []).append(row)
    return found


def write_docs() -> None:
    """Replace the tables of docs/train.md by those of all results.

    The newest rows count. The seeds of a run belong together: none of an older result stays beside
    newer ones, which may have other settings.
    """
    files = RESULTS.glob("*/learners*.json")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    results.sort(key=lambda result: result["date"])
    newest: dict[str, list[dict]] = {}
    for result in results:
        newest |= by_figure(result["rows"])
    rows = [row for each in newest.values() for row in each]
    versions = {name: each for result in results for name, each in result["versions"].items()}
    tables = {"learners": table(rows, versions), "defaults": defaults_table(rows)}
    text = DOCS.read_text(encoding="utf-8")
    for name, made in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        text = f"{text.split(begin)[0]}{begin}\n\n{made}\n\n{end}{text.split(end)[1]}"
    DOCS.write_text(text, encoding="utf-8")


def main(arguments: argparse.Namespace) -> None:
    if arguments.docs:
        write_docs()
        return
    torch.set_num_threads(1)
    names = [name for name in arguments.learners if "PPO" in LEARNERS[name].algorithms]
    if arguments.quick:
        with tempfile.TemporaryDirectory() as temporary:
            rows = speeds(names, COUNTS[:1], Path(temporary))
        report(rows, arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if "sb3" in arguments.parts:
            rows += beside_sb3(arguments.seeds, work)
        if "truncation" in arguments.parts:
            rows += truncation(names, work)
        if "speeds" in arguments.parts:
            rows += speeds(names, COUNTS, work)
        if "returns" in arguments.parts:
            rows += real_returns(names, arguments.seeds, work)
        if "defaults" in arguments.parts:
            rows += defaults(
                arguments.learners, arguments.seeds, work, done_only=arguments.done_only
            )
        if "settings" in arguments.parts:
            rows += settings(arguments.seeds, work)
    report(rows, arguments)


if __name__ == "__main__":
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=installed())
    parts = ("speeds", "returns", "sb3", "truncation", "defaults", "settings")
    options.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--work", type=Path, help="folder in which figures are kept")
    options.add_argument(
        "--done-only", action="store_true", help="leave out defaults that are not in --work yet"
    )
    options.add_argument("--docs", action="store_true", help="write the tables of docs/train.md")
    main(options.parse_args())
