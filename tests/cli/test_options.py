"""Options that are generated from config dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from dreamgym.cli.options import field_descriptions, options_from


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings.

    Attributes:
        name: word to use. Further words are not shown.
    """

    name: Literal["one", "two"] = "one"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer settings.

    Attributes:
        count: number of things [at most 10],
            over two lines; see `inner_rate`.
        inner_rate: rate.
        sizes: sizes of things.
        pair: a pair.
        flag: whether to do it.
        model: no option.
    """

    count: int = 3
    inner_rate: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.5, 1.0)
    flag: bool = False
    model: Any = None
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def app() -> tuple[typer.Typer, dict[str, Any]]:
    received: dict[str, Any] = {}
    application = typer.Typer(rich_markup_mode="rich")

    @application.command()
    @options_from(Outer, rename={"name": "word"})
    def verb(target: str, **settings: Any) -> None:
        """Do it."""
        received.update(settings, target=target)

    return application, received


def test_descriptions_are_read_from_the_docstring() -> None:
    descriptions = field_descriptions(Outer)
    assert (
        descriptions["count"] == "number of things [at most 10], over two lines; see `inner_rate`."
    )
    assert descriptions["model"] == "no option."


def test_only_options_that_were_given_reach_the_verb(app: Any) -> None:
    application, received = app
    assert CliRunner().invoke(application, ["x"]).exit_code == 0
    assert received == {"target": "x"}
    line = "x --count 4 --sizes 5 --sizes 6 --pair 1 2 --flag --word two --inner-rate 0.1"
    assert CliRunner().invoke(application, line.split()).exit_code == 0
    assert received == {
        "target": "x",
        "count": 4,
        "sizes": (5, 6),
        "pair": (1.0, 2.0),
        "flag": True,
        "word": "two",
        "inner_rate": 0.1,
    }


def test_help_shows_the_first_sentence_the_default_and_option_names(app: Any) -> None:
    shown = CliRunner().invoke(app[0], ["--help"], env={"COLUMNS": "200"}).output
    line = "Number of things [at most 10], over two lines; see --inner-rate. Default: 3."
    assert line in shown
    assert "Word to use. Default: one." in shown
    assert "Further words" not in shown
    assert "one|two" in shown
    assert "--model" not in shown
