"""The worlds that ship: policies trained (or planning) in them alone, in the real environment.

For every world and seed of its recipe: a new policy, with the settings of the recipe, and its mean
return over 100 real episodes beside the bar of the task and the figure on the card. What is made
lies in `--work` and is used again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import ModuleType

import gymnasium as gym
from support.makers import load_makers
from support.reporting import Row, at_least, parser, report

import dreamgym

QUICK = {"steps": 4096, "episodes": 5}


def rows_of(name: str, work: Path, makers: ModuleType, quick: bool) -> list[Row]:
    """Return the figures of a world."""
    made = makers.maker(name, work=work / name)
    # random actions stand beside; cloning needs the data, which is not needed otherwise
    made.recipe["evaluate"] = made.recipe.get("evaluate", {}) | {"cloning": False}
    if quick:
        kind = "plan" if "plan" in made.recipe else "train"
        made.recipe[kind]["seeds"] = made.recipe[kind]["seeds"][:1]
        made.recipe["evaluate"]["episodes"] = QUICK["episodes"]
        made.recipe.get("train", {})["steps"] = QUICK["steps"]
    returns, bar = made.returns(), made.recipe.get("bar")
    rows: list[Row] = []
    unit = "% of goals" if "measure" in returns else "return"
    for each in returns["policies"]:
        what = f"{name}, {each['name']}: {returns.get('measure', 'real return')}"
        low, high = each["interval"]
        judged = bar is not None and not quick
        rows += [
            at_least(what, each["real"], unit, bar)
            if judged
            else Row(name=what, value=each["real"], unit=unit),
            Row(name=f"{what}, low end of its 95% interval", value=low, unit=unit),
            Row(name=f"{what}, high end of its 95% interval", value=high, unit=unit),
        ]
    (random,) = [each for each in returns["baselines"] if each["name"] == "random"]
    rows.append(Row(name=f"{name}: random", value=random["real"], unit=unit))
    if not quick:
        (record,) = [each for each in dreamgym.worlds() if each.name == name]
        rows.append(Row(name=f"{name}: mean on the card", value=record.real_return, unit=unit))
        rows.append(Row(name=f"{name}: mean here", value=returns["mean"], unit=unit))
    return rows


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    names = [each.name for each in dreamgym.worlds()]
    parsed.add_argument("--worlds", nargs="+", default=names, choices=names)
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    return parsed.parse_args()


def main() -> None:
    makers = load_makers()
    chosen = arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.worlds[:1] if chosen.quick else chosen.worlds:
            rows += rows_of(name, chosen.work or Path(temporary), makers, chosen.quick)
    report(rows, chosen)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
