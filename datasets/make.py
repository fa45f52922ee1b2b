"""Make a dataset from its recipe: `python datasets/make.py cartpole-random`.

A recipe is a folder with a `recipe.json`: environment, policy, steps, seed, and the checksum of the
dataset that the shipped worlds were fitted to.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import dreamgym
from dreamgym.cli.output import progress_bar

HERE = Path(__file__).resolve().parent


def recipes() -> dict[str, dict]:
    """Return every recipe by name."""
    return {path.parent.name: json.loads(path.read_text()) for path in HERE.glob("*/recipe.json")}


def make(name: str, out: Path) -> bool:
    """Record the dataset; return whether it has the checksum of the recipe."""
    recipe = recipes()[name]
    with progress_bar(f"record {name}") as bar:
        dreamgym.record(
            recipe["env_id"],
            steps=recipe["steps"],
            policy=recipe["policy"],
            seed=recipe["seed"],
            out=out,
            progress=bar,
        )
    with dreamgym.Dataset(out) as dataset:
        return dataset.checksum == recipe["checksum"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(recipes()))
    parser.add_argument("--out", type=Path, help="default: NAME.h5 in its folder")
    arguments = parser.parse_args()
    out = arguments.out or HERE / arguments.name / f"{arguments.name}.h5"
    same = make(arguments.name, out)
    if not same:
        print(
            f"{out}: made, but its checksum is not that of the recipe, probably because of other "
            "versions of Gymnasium or NumPy. Worlds fitted to it will be as good, but not equal.",
            file=sys.stderr,
        )
    print(out)


if __name__ == "__main__":
    main()
