"""The worlds that ship with dreamgym: folders under `pretrained/`, found without loading them."""

from __future__ import annotations

from pathlib import Path

NAMESPACE = "dreamgym"
WORLD_FILE = "world.json"


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
