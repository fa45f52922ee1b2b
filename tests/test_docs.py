"""The README, CONTRIBUTING and docs/: code runs, commands parse, links and references resolve."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
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
from tests.hub_server import TOKEN, local_hub

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
STAGES = ("record", "check", "fitting", "dreams", "train", "transfer", "report")
PACKAGES = (
    "data",
    "models",
    "fitting",
    "metrics",
    "world",
    "dream",
    "train",
    "transfer",
    "trust",
    "online",
    "play",
)

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
REFERENCE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
RESULTS = ROOT / "benchmarks" / "results"
README_LINES = 20
QUICK_PAGES = ("check", "cli", "concepts", "dreams", "hub", "install", "new-family", "play")
QUICK_PAGES += ("record", "results")
"""Pages of docs/ whose Python blocks take a few seconds at most."""
NEEDS = {"hub": "huggingface_hub", "jax": "jax", "offline": "d3rlpy", "ray": "ray"}
"""Libraries that the Python blocks of a page need."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the fenced blocks of a page."""
    text = read(page)
    for match in FENCE.finditer(text):
        if match.group(1) == language:
            yield text.count("\n", 0, match.start(2)) + 1, match.group(2)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands() -> Iterator[Any]:
    """Yield every line that a console block of a page tells the reader to type."""
    for page in PAGES:
        for line, text in blocks(page, "console"):
            joined = text.replace("\\\n", " ")
            for several in re.findall(r"^\$ (.*)$", joined, re.MULTILINE):
                for typed in several.split(" && "):
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


def pages_with_code() -> Iterator[Any]:
    """Yield the pages that have Python blocks; those that take long are marked slow."""
    for page in PAGES:
        if any(blocks(page, "python")):
            quick = page.parent == DOCS and page.stem in QUICK_PAGES
            yield pytest.param(page, id=page_name(page), marks=[] if quick else pytest.mark.slow)


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("page", list(pages_with_code()))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.parent == DOCS and page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
    monkeypatch.chdir(tmp_path)
    hub = page == DOCS / "hub.md"
    with local_hub(tmp_path / "cache", monkeypatch, token=TOKEN) if hub else nullcontext():
        run_blocks(page)


def run_blocks(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        # A traceback then points to the page's own line.
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


def parse_command(arguments: list[str]) -> None:
    """Parse a command line of dreamgym as the program would, and run nothing."""
    group: Any = typer.main.get_command(app)
    verb, *rest = arguments
    if verb.startswith("-"):
        assert any(verb in option.opts for option in group.params) or verb == "--help"
        return
    command = group.commands[verb]
    needed = ["x"] if any(each.required for each in command.params) else []
    command.make_context(verb, [argument for argument in rest if argument != "--help"] or needed)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page: Path) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", read(page))):
        if "://" in target:
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), f"{target} of {page_name(page)} does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{target}#{anchor} of {page_name(page)}"


@pytest.mark.parametrize("page", SITE, ids=page_name)
def test_pages_of_the_site_link_only_within_it(page: Path) -> None:
    for target, _ in LINK.findall(FENCE.sub("", read(page))):
        if target and "://" not in target:
            assert (page.parent / target).resolve().is_relative_to(DOCS), target


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = read(ROOT / "mkdocs.yml").split("\nnav:\n")[1]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in SITE)


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=page_name)
def test_references_name_something_that_exists(page: Path) -> None:
    for path in REFERENCE.findall(read(page)):
        package, _, name = path.rpartition(".")
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if "dreamgym[" in str(error):
                continue  # an extra that is not installed
            raise
        assert hasattr(module, name), path


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_function_and_class_that_a_package_exports(package: str) -> None:
    module = importlib.import_module(f"dreamgym.{package}")
    described = {
        path.rpartition(".")[2]
        for path in REFERENCE.findall(read(DOCS / "reference" / f"{package}.md"))
    }
    exported = {
        name
        for name in module.__all__
        if callable(value := getattr(module, name))
        and not (isinstance(value, type) and issubclass(value, BaseException))
        and str(getattr(value, "__module__", "")).startswith("dreamgym.")
    }
    assert exported <= described


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_of_a_stage_has_code_and_a_command(stage: str) -> None:
    page = DOCS / f"{stage}.md"
    assert any(blocks(page, "python"))
    assert any("$ dreamgym " in text for _, text in blocks(page, "console"))


def test_the_readme_shows_all_stages_in_twenty_lines() -> None:
    _, text = next(blocks(ROOT / "README.md", "python"))
    assert len([line for line in text.splitlines() if line]) <= README_LINES
    for name in ("dreamgym.record", "dreamgym.fit", "gym.make_vec", "dreamgym.evaluate"):
        assert name in text


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


def measured(file: str, *, joined: bool = False) -> dict[str, float]:
    """Return value by name of the newest JSON of a benchmark, or the newest rows of each figure."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"*/{file}")]
    results.sort(key=lambda result: result["date"])
    newest: dict[str, dict[str, float]] = {}
    for result in results if joined else results[-1:]:
        figures: dict[str, dict[str, float]] = {}
        for row in result["rows"]:
            figures.setdefault(row["name"].partition(", seed ")[0], {})[row["name"]] = row["value"]
        newest |= figures
    return {name: value for figure in newest.values() for name, value in figure.items()}


@pytest.mark.parametrize(
    ("file", "page", "joined"),
    [
        ("learning.json", "results", False),
        ("transfer.json", "results", False),
        ("planned_online.json", "results", True),
        ("planners.json", "planning", False),
    ],
)
def test_a_page_has_the_measured_returns(file: str, page: str, joined: bool) -> None:
    values, text = measured(file, joined=joined), read(DOCS / f"{page}.md")
    runs = [name.split(": ")[0] for name in values if name.endswith(": real return")]
    assert runs
    for run in runs:
        low, high = (values[f"{run}: {end} end of its 95% interval"] for end in ("low", "high"))
        expected = f"{values[f'{run}: real return']:.0f} ({low:.0f} to {high:.0f})"
        assert expected in text, f"{run}: {expected}"


def test_the_page_on_training_has_the_measured_returns() -> None:
    values, text = measured("learners*.json", joined=True), read(DOCS / "train.md")
    by_run: dict[str, list[str]] = {}
    for name, value in values.items():
        run, found, _ = name.partition(": real return, seed ")
        if found:
            by_run.setdefault(run, []).append(f"{value:.0f}")
    assert by_run
    for run, returns in by_run.items():
        single = " at " in run or " with " in run  # in the prose; others are in tables
        shown = ", ".join(returns)
        assert (shown if single else f"| {shown} |") in text, run


def test_the_page_on_the_online_loop_has_the_measured_returns() -> None:
    values, text = measured("improve.json"), read(DOCS / "improve.md")
    tasks = [name for name in values if name.endswith(" seeds: mean real return")]
    assert tasks
    for task in tasks:
        mean, seeds = values[task], task.removesuffix("mean real return")
        low, high = (values[f"{seeds}{end} end of its 95% interval"] for end in ("low", "high"))
        assert f"{mean:.0f} ({low:.0f} to {high:.0f})" in text, task


def test_the_page_of_results_has_the_measured_survival_in_take_cover() -> None:
    text = read(DOCS / "results.md").replace("**", "")
    for file in ("take_cover.json", "take_cover_temperatures.json"):
        for name, value in measured(file).items():
            if interval := re.search(r"interval (\d+ to \d+)$", name):
                assert f"{value:.0f} ({interval[1]})" in text, name


@pytest.mark.parametrize(
    "world",
    [
        "TakeCover-MDNRNN-v0",
        "CarRacing-MDNRNN-v0",
        "CartPoleSwingup-MDNRNN-v0",
        "Hopper-PETS-v0",
    ],
)
def test_the_page_of_results_has_the_returns_of_the_cards(world: str) -> None:
    (record,) = [each for each in dreamgym.worlds() if each.name == world]
    parts = read(DOCS / "results.md").replace("**", "").split("\n## ")
    (text,) = [part for part in parts if f"dreamgym/{world}" in part]
    for value in record.returns:
        assert re.search(rf"(?<!\d){value:.0f}(?!\d)", text), f"{world}: {value:.0f}"


def test_the_page_of_results_has_the_measured_returns_in_games() -> None:
    values, text = measured("pixels.json"), read(DOCS / "results.md").replace("**", "")
    means = [name for name in values if name.endswith(" seeds: mean real return")]
    assert means
    for name in means:
        game, family, _ = name.split(", ")
        run = re.compile(rf"{game}, {family}, seed \d+: real return")
        each = ", ".join(f"{value:.2f}" for known, value in values.items() if run.fullmatch(known))
        assert f"| {values[name]:.2f} | {each} |" in text, name


def test_the_page_of_results_has_the_measured_speed_of_dreams() -> None:
    text = read(DOCS / "results.md").split("\n## Speed of dreams\n")[1].split("\n## ")[0]
    for name, value in measured("dream.json").items():
        shown = r"1 envs, float32|64 envs, float32|1024 envs, (float32|bfloat16)(, compiled)?"
        if re.search(rf", ({shown}): times plain$", name):
            assert f" {value:.2f} " in text, f"{name}: {value:.2f}"


def test_the_page_on_reports_has_the_measured_rankings_and_coverage() -> None:
    values = measured("trust.json")
    section = read(DOCS / "report.md").split("\n### Measured\n")[1].split("\n## ")[0]
    means = [name for name in values if name.endswith(": mean Spearman")]
    assert means
    for name in means:
        task = name.partition(",")[0]
        (row,) = re.findall(rf"^\| {task}, .*$", section, re.MULTILINE)
        ranks, coverage = (
            [
                value
                for each, value in values.items()
                if re.fullmatch(f"{task}, seed .: {what}", each)
            ]
            for what in ("Spearman", "recalibrated coverage, largest error")
        )
        shown = ", ".join(f"{value:.2f}" for value in ranks)
        assert f"| {shown} | {values[name]:.3f}" in row, task
        assert "| " + ", ".join(f"{value:.1f}" for value in coverage) + " |" in row, task
        assert ("**not met**" in row) == (values[name] < 0.9), task


def test_the_page_on_planning_has_the_measured_goals() -> None:
    values, text = measured("goals.json"), read(DOCS / "planning.md")
    for way in ("embeddings", "goal value"):
        found = [v for name, v in values.items() if name.endswith(f"by {way}: goals reached")]
        assert f"{way} | {', '.join(f'{100 * value:.0f}%' for value in found)} |" in text
    means = [value for name, value in values.items() if "minus embeddings" in name]
    difference, low, high = (f"{100 * value:.0f}" for value in means)
    assert f"{difference} points (95% interval over the 120 pairs: {low} to {high};" in text
