"""Python blocks of the README and of docs/ run, commands in them exist, and links resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dreamgym.cli import app
from dreamgym.dream.options import DreamOptions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")
README_LINES = 20


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Return (line, text) of the fenced blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match.group(1) == language:
            yield text.count("\n", 0, match.start(2)) + 1, match.group(2)


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> Iterator[Any]:
    """Return every command in the console blocks of the pages."""
    for page in PAGES:
        for line, text in blocks(page, "console"):
            joined = text.replace("\\\n", " ")
            for typed in re.findall(r"^\$ (.*)$", joined, re.MULTILINE):
                yield pytest.param(typed, id=f"{page_name(page)}:{line}:{typed}")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        # Empty lines in front, so that a traceback shows the line of the page.
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("typed", list(commands()))
def test_commands_exist(typed: str) -> None:
    program, *arguments = shlex.split(typed, comments=True)
    if program == "torchrun":
        program, arguments = "dreamgym", arguments[arguments.index("dreamgym.cli") + 1 :]
    if program == "dreamgym":
        parses(arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    else:
        assert program in ("pip", "git", "cd")


def parses(arguments: list[str]) -> None:
    """Parse a command line of dreamgym without running it."""
    group: Any = typer.main.get_command(app)
    verb, *rest = arguments
    if verb.startswith("-"):
        assert any(verb in option.opts for option in group.params) or verb == "--help"
        return
    command = group.commands[verb]
    command.make_context(verb, [argument for argument in rest if argument != "--help"] or ["x"])


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), (
                f"{page_name(page)} links to {target}, which does not exist"
            )


def test_the_readme_shows_all_stages_in_twenty_lines() -> None:
    _, text = next(blocks(ROOT / "README.md", "python"))
    assert len([line for line in text.splitlines() if line]) <= README_LINES
    for name in ("dreamgym.record", "dreamgym.fit", "gym.make_vec", "dreamgym.evaluate"):
        assert name in text


def test_the_page_on_dreams_lists_exactly_the_options() -> None:
    text = (ROOT / "docs" / "dreams.md").read_text(encoding="utf-8")
    table = text.split("## Keywords")[1].split("## What")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert listed == {"world", *(field.name for field in fields(DreamOptions))}


def test_the_readme_shows_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in ("record", "check", "fit", "train", "transfer"):
        assert f"$ dreamgym {verb} " in text
