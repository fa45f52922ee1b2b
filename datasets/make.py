"""Make a dataset from its recipe: `python datasets/make.py cartpole-random`.

A recipe is a folder with a `recipe.json`: the environment, the policy, the steps and the seed, and
the checksum that the dataset had when the worlds that ship were fitted to it.
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
    """Every recipe by its name."""
    return {path.parent.name: json.loads(path.read_text()) for path in HERE.glob("*/recipe.json")}


def make(name: str, out: Path) -> bool:
    """Record the dataset; say whether it is, bit for bit, the one that was used."""
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
    parser.add_argument("--out", type=Path, help="by default NAME.h5 in its folder")
    arguments = parser.parse_args()
    out = arguments.out or HERE / arguments.name / f"{arguments.name}.h5"
    same = make(arguments.name, out)
    if not same:
        print(
            f"{out}: made, but not bit for bit what the recipe's checksum says: other versions of "
            "Gymnasium or NumPy, most likely. Worlds fitted to it will be as good, not the same.",
            file=sys.stderr,
        )
    print(out)


if __name__ == "__main__":
    main()
