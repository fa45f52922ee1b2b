"""The card of a world: a README.md that says what it is, whence it came and how good it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

CARD_FILE = "README.md"


TEXT = """# {name}

A world model of `{env_id}`, made by dreamgym: family `{family}`, horizon {horizon} steps{skip}.
{ends}

```python
import gymnasium as gym

envs = gym.make_vec("dreamgym:dreamgym/World-v0", world="{name}", num_envs=256)
```

## Quality, on held-out episodes

{quality}

Errors of open loops are root mean squares in units of the observations' spread, so many steps
ahead: `rmse` of one sampled dream, `rmse of mean` of the mean of several, `repeat last` of
repeating the last observation. Rewards are in the environment's units.

## Provenance

{provenance}
"""


def write_card(folder: Path, name: str, description: dict[str, Any]) -> None:
    """Write the card of a world into its folder.

    Args:
        folder: of the world.
        name: what it is called.
        description: as in world.json.
    """
    provenance = {k: v for k, v in description["provenance"].items() if k != "history"}
    text = TEXT.format(
        name=name,
        env_id=(description["env_spec"] or {}).get("id", "an unnamed environment"),
        family=description["family"],
        horizon=description["horizon"],
        ends=_ends(description.get("termination", "sample")),
        skip=_skip(description.get("frame_skip")),
        quality=_table(description["quality"]),
        provenance=_table(provenance),
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _ends(termination: str | float) -> str:
    if termination == "sample":
        return "Its terminations are sampled."
    return f"Its dreams end where the probability of termination is at least {termination}."


def _skip(frame_skip: dict[str, Any] | None) -> str:
    if frame_skip is None:
        return ""
    kept = "all kept in a block" if frame_skip["actions"] == "blocks" else "one repeated"
    return f", each of {frame_skip['steps']} steps of the environment (actions: {kept})"


def _table(values: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(values)]
    return "\n".join(["| what | value |", "|---|---|", *rows])


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure with the names of the groups that it stands in."""
    for key, value in values.items():
        name = f"{before}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}, ")
        else:
            yield name, value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
