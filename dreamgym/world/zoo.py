"""The worlds that ship with dreamgym: folders under `pretrained/`, found without loading them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAMESPACE = "dreamgym"
WORLD_FILE = "world.json"


@dataclass(frozen=True, kw_only=True)
class ShippedWorld:
    """What a world that ships is, and what policies that were trained in it reach.

    Attributes:
        name: name; `dreamgym/<name>` is its id.
        env_id: the real environment.
        family: family of the world model.
        observations: observations in few words.
        real_steps: real steps that it was fitted to.
        bytes: size of its weights and start states.
        horizon: recommended steps of a dream.
        how: how policies were made in it, in words.
        measure: what was measured: "real return", or "goals reached (%)", which then stands in
            place of every return below.
        episodes: real episodes of each policy.
        returns: mean real return of each policy, one for each seed; empty where none was measured.
        real_return: mean over all policies; None where none was measured.
        real_interval: 95% bootstrap interval of it, over all episodes.
        random_return: mean real return of random actions in the same episodes.
        bar: real return that each policy should reach; None for no bar.
        verdict: verdict of its report; None without one.
        gap: mean absolute difference of dream and real return over the policies of the report's
            ranking but the best, as a share of the range from random to best; None without one.
    """

    name: str
    env_id: str
    family: str
    observations: str
    real_steps: int
    bytes: int
    horizon: int
    how: str | None = None
    measure: str = "real return"
    episodes: int | None = None
    returns: tuple[float, ...] = ()
    real_return: float | None = None
    real_interval: tuple[float, float] | None = None
    random_return: float | None = None
    bar: float | None = None
    verdict: str | None = None
    gap: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-plain values."""
        return asdict(self)


def folder() -> Path:
    """Return the folder of shipped worlds: in an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "pretrained"
    return installed if installed.is_dir() else package.parent / "pretrained"


def names() -> list[str]:
    """Return the sorted names of shipped worlds; each is also the id `dreamgym/<name>`."""
    return sorted(entry.parent.name for entry in folder().glob(f"*/{WORLD_FILE}"))


def path(name: str) -> Path:
    """Return the folder of a shipped world, given its name or its id."""
    return folder() / name.removeprefix(f"{NAMESPACE}:").removeprefix(f"{NAMESPACE}/")


def worlds() -> list[ShippedWorld]:
    """Return the worlds that ship with dreamgym, by name; no weights are loaded."""
    return [_record(name) for name in names()]


def _record(name: str) -> ShippedWorld:
    from dreamgym.data.images import describe_observations  # not for `import dreamgym`
    from dreamgym.data.spaces import space_from_json

    description = json.loads((path(name) / WORLD_FILE).read_text(encoding="utf-8"))
    quality = description["quality"]
    report, transfer = quality.get("report") or {}, quality.get("transfer") or {}
    random = [row for row in transfer.get("baselines", []) if row["name"] == "random"]
    return ShippedWorld(
        name=name,
        env_id=description["env_spec"]["id"],
        family=description["family"],
        observations=describe_observations(space_from_json(description["observation_space"])),
        real_steps=description["provenance"]["dataset_steps"],
        bytes=sum(each["bytes"] for each in description["files"].values()),
        horizon=description["horizon"],
        how=transfer.get("how"),
        measure=transfer.get("measure", "real return"),
        episodes=transfer.get("episodes"),
        returns=tuple(row["real"] for row in transfer.get("policies", [])),
        real_return=transfer.get("mean"),
        real_interval=tuple(transfer["interval"]) if transfer else None,
        random_return=random[0]["real"] if random else None,
        bar=transfer.get("bar"),
        verdict=report.get("verdict"),
        gap=(report.get("ranking") or {}).get("gap_mean"),
    )
