"""The online loops whose last worlds ship: the return of each round, and of the last policy.

Runs the loop of a recipe of `datasets/` that is a single loop (CarRacing, Take Cover and swing-up),
as `datasets/make.py` does, and then measures the policy of its last round in 100 other real
episodes, beside random actions. What is made lies in `--work` and is used again, so that a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.makers import load_makers
from support.reporting import Row, parser, report

import dreamgym
from dreamgym.train import load_policy

EPISODES, SEED = 100, 10_000
"""Real episodes of the last policy, and the seed of the first: no round was measured in these."""


DATASETS = load_makers().datasets


def loops() -> dict[str, dict[str, Any]]:
    """Return the recipes that are one online loop, by name."""
    found = {}
    for name, recipe in DATASETS.recipes().items():
        if [part["make"] for part in recipe["parts"]] == ["improve"]:
            found[name] = recipe
    return found


def rows_of(name: str, work: Path, quick: bool) -> list[Row]:
    """Return the figures of a loop."""
    recipe = loops()[name]
    part = {key: value for key, value in recipe["parts"][0].items() if key != "make"}
    config = DATASETS.improve_config(part.pop("config", {}))
    if quick:
        part["real_steps"] = 500
        config = replace(
            config,
            first_steps=250,
            round_steps=250,
            dream_steps=1024,
            evaluation_episodes=1,
            fit=dreamgym.default_config(config.family, updates=4, batch_size=4, starts=16),
            train=replace(config.train, num_envs=8),
        )
    result = dreamgym.improve(
        recipe["env_id"],
        out=work / name,
        config=config,
        progress=lambda each: print(name, each["round"], each["real_return"], flush=True),
        **part,
    )
    rows = [
        Row(
            name=f"{name}: round {each['round']}, at {each['real_steps']} real steps",
            value=each["real_return"],
            unit="return",
        )
        for each in result.rounds
    ]
    last = result.rounds[-1]
    world = dreamgym.load(work / name / last["world"])
    found = dreamgym.transfer_policy(
        load_policy(work / name / last["policy"], world=world),
        world,
        episodes=2 if quick else EPISODES,
        seed=SEED,
        max_episode_steps=config.max_episode_steps,
    )
    random = found.baselines["random"]
    for what, value in (
        ("last policy", found.real.mean),
        ("last policy, low end of its 95% interval", found.real.interval[0]),
        ("last policy, high end of its 95% interval", found.real.interval[1]),
        ("last policy, in the dream", found.dream.mean),
        ("random", random.mean),
    ):
        rows.append(Row(name=f"{name}: {what}", value=value, unit="return"))
    seconds = sum(sum(each["seconds"].values()) for each in result.rounds)
    return [*rows, Row(name=f"{name}: seconds of its rounds", value=seconds, unit="s")]


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--datasets", nargs="+", default=sorted(loops()), choices=sorted(loops()))
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    return parsed.parse_args()


def main() -> None:
    chosen = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        names = chosen.datasets[:1] if chosen.quick else chosen.datasets
        report([row for name in names for row in rows_of(name, work, chosen.quick)], chosen)


if __name__ == "__main__":
    main()
