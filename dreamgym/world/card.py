"""The card of a world: a README.md that says what it is, how it was made and how good it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

CARD_FILE = "README.md"

TEXT = """# {name}

A world model of `{env_id}`, made by dreamgym: family `{family}`, horizon {horizon} steps{skip}.
{termination}

```python
import gymnasium as gym

envs = gym.make_vec("dreamgym:dreamgym/World-v0", world="{name}", num_envs=256)
```

{report}## Quality on held-out episodes

{quality}

Open-loop errors are root mean square errors in units of the observations' spread, by the number of
steps ahead: `rmse` of one sampled dream, `rmse of mean` of the mean of several dreams, and
`repeat last` of repeating the last observation. Rewards are in the environment's units.

## Provenance

{provenance}
"""


def write_card(folder: Path, name: str, description: dict[str, Any]) -> None:
    """Write the card of a world into its folder.

    Args:
        folder: folder of the world.
        name: name of the world.
        description: content of world.json.
    """
    provenance = {k: v for k, v in description["provenance"].items() if k != "history"}
    text = TEXT.format(
        name=name,
        env_id=(description["env_spec"] or {}).get("id", "an unnamed environment"),
        family=description["family"],
        horizon=description["horizon"],
        termination=_termination(description.get("termination", "sample")),
        skip=_frame_skip(description.get("frame_skip")),
        report=_report(description["quality"].get("report")),
        quality=_table({k: v for k, v in description["quality"].items() if k != "report"}),
        provenance=_table(provenance),
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _report(report: dict[str, Any] | None) -> str:
    """Return the section of a report (`dreamgym.trust.Report.summary`); empty without one."""
    if report is None:
        return ""
    lines = [
        "## Report",
        "",
        f"**{report['verdict'].capitalize()}**, measured on {report['data']}.",
    ]
    lines += ["", *(f"- {finding}" for finding in report["findings"]), ""]
    ranking = report["ranking"]
    if ranking is not None:
        if ranking.get("spearman") is not None:
            low, high = ranking["spearman_interval"] or (None, None)
            lines.append(
                f"Dream and real return of {ranking['count']} policies: Spearman "
                f"{ranking['spearman']:.2f} (95%: {_cell(low)} to {_cell(high)}), regret@1 "
                f"{ranking['regret']:.4g}."
            )
        lines += ["", "| policy | dream return | real return |", "|---|---|---|"]
        lines += [
            f"| {name} | {dream:.1f} | {real:.1f} |" for name, dream, real in ranking["policies"]
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def _termination(termination: str | float) -> str:
    if termination == "sample":
        return "Terminations are sampled."
    return f"A dream ends where the probability of termination is at least {termination}."


def _frame_skip(frame_skip: dict[str, Any] | None) -> str:
    if frame_skip is None:
        return ""
    actions = "a block of actions" if frame_skip["actions"] == "blocks" else "one action, repeated"
    return f", each of {frame_skip['steps']} steps of the environment ({actions})"


def _table(values: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flatten(values)]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every figure, named by its groups and its own key."""
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}, ")
        else:
            yield name, value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
