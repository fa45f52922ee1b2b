"""Stage 5, transfer: what the policies are worth in the real environment.

    python examples/stages/transfer.py

Each policy runs in the real CartPole and in the dream, over as many steps, beside random actions
and a policy that imitates the data. `transfer.png` shows mean returns with 95% intervals. The gap
is the dream return minus the real one; an honest dream has a small one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dreamgym


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)

    shown = {}
    for file in ("policy-sb3.zip", "policy-ppo.safetensors"):
        result = dreamgym.transfer_policy(
            options.out / file,
            options.out / "world",
            episodes=3 if options.quick else 100,
            data=options.out / "cartpole.h5" if not shown else None,  # clone it once
            baselines=not shown,
        )
        shown |= {f"{file}, real": result.real, f"{file}, dream": result.dream, **result.baselines}
        low, high = result.gap_interval
        print(f"{file}: gap {result.gap:.1f}, 95% interval {low:.1f} to {high:.1f}")

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for row, (name, episodes) in enumerate(shown.items()):
        low, high = episodes.interval
        axes.errorbar(
            episodes.mean, row, xerr=[[episodes.mean - low], [high - episodes.mean]], fmt="o"
        )
        print(f"{name}: {episodes.mean:.1f}, 95% interval {low:.1f} to {high:.1f}")
    axes.set_yticks(range(len(shown)), list(shown))
    axes.set(xlabel="return")
    axes.invert_yaxis()
    figure.savefig(options.out / "transfer.png")
    print(f"{options.out / 'transfer.png'}; next: report.py")


if __name__ == "__main__":
    main()
