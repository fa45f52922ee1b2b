"""Python blocks of the README and of docs/ run, commands in them exist, and links resolve."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

import dreamgym
from dreamgym.cli import app
from dreamgym.dream.options import DreamOptions
from dreamgym.fitting import FitConfig, OptimizerConfig
from dreamgym.train import LEARNERS, TrainConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
STAGES = ("record", "check", "fitting", "dreams", "train", "transfer")
PACKAGES = ("data", "models", "fitting", "metrics", "world", "dream", "train", "transfer")

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
REFERENCE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
README_LINES = 20


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Return (line, text) of the fenced blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match.group(1) == language:
            yield text.count("\n", 0, match.start(2)) + 1, match.group(2)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands() -> Iterator[Any]:
    """Return every command in the console blocks of the pages."""
    for page in PAGES:
        for line, text in blocks(page, "console"):
            joined = text.replace("\\\n", " ")
            for typed in re.findall(r"^\$ (.*)$", joined, re.MULTILINE):
                yield pytest.param(typed, id=f"{page_name(page)}:{line}:{typed}")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown makes them."""
    prose = FENCE.sub("", read(page))
    slugs = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in HEADING.findall(prose))
    return {re.sub(r"[\s-]+", "-", slug) for slug in slugs}


def table_names(page: str, heading: str) -> set[str]:
    """Return the names in the first column of the tables under a heading."""
    section = read(DOCS / page).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}


def names(config: type) -> set[str]:
    return {field.name for field in fields(config)}


@pytest.fixture
def tables_restored() -> Iterator[None]:
    """Undo what a page adds to the tables of families and metrics."""
    tables = [dreamgym.models.FAMILIES, dreamgym.metrics.METRICS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=page_name)
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
        parse_command(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program in ("pip", "git", "cd", "pytest")


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
    text = read(ROOT / "README.md")
    for verb in ("record", "check", "fit", "train", "transfer"):
        assert f"$ dreamgym {verb} " in text


def test_the_page_on_the_command_line_lists_every_verb() -> None:
    group: Any = typer.main.get_command(app)
    visible = {name for name, command in group.commands.items() if not command.hidden}
    text = read(DOCS / "cli.md").split("## Examples")[0]
    assert {*re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)} == visible


def test_the_page_on_dreams_lists_every_keyword_and_no_other() -> None:
    assert table_names("dreams.md", "Keywords") == {"world", *names(DreamOptions)}


def test_the_page_on_training_lists_every_setting_and_learner() -> None:
    assert table_names("train.md", "Settings") == names(TrainConfig)
    assert {*LEARNERS} <= table_names("train.md", "Learners")


def test_the_page_on_fitting_lists_every_setting() -> None:
    settings = names(FitConfig) | (names(OptimizerConfig) - {"name"})
    assert table_names("fitting.md", "Settings") == settings - {"overwrite", "tensorboard"}
