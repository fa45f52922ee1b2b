"""The worlds that ship with dreamgym: folders under `pretrained/`, found without loading them."""

from __future__ import annotations

from pathlib import Path

NAMESPACE = "dreamgym"


WORLD_FILE = "world.json"


def folder() -> Path:
    """Where shipped worlds lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


def names() -> list[str]:
    """Names of the shipped worlds, sorted; each is also the id `dreamgym/<name>`."""
    return sorted(entry.parent.name for entry in folder().glob(f"*/{WORLD_FILE}"))


def path(name: str) -> Path:
    """The folder of a shipped world, by its name or its id."""
    return folder() / name.removeprefix(f"{NAMESPACE}:").removeprefix(f"{NAMESPACE}/")
