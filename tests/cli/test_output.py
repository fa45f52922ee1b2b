"""Tables, figures and messages of the command line."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path

import pytest

from dreamgym.cli import output
from dreamgym.cli.errors import Interrupted, explain, keeping
from dreamgym.cli.output import number, progress_bar, show_figures, write_json


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3, "3"), (10_000, "10,000"), (0.0312345, "0.03123"), (12345.6, "12,346"), (math.nan, "nan")],
)
def test_numbers_read_well(value: float, shown: str) -> None:
    assert number(value) == shown


def test_json_is_whole_plain_and_makes_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    write_json(file, {"mean": 1.5, "interval": (1.0, math.inf), "deep": {"nan": math.nan}})
    assert json.loads(file.read_text()) == {
        "mean": 1.5,
        "interval": [1.0, None],
        "deep": {"nan": None},
    }
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text("before")
    with pytest.raises(TypeError):
        write_json(file, {"not plain": object()})
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_progress_without_a_terminal_is_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("fit") as report:
        for done in range(1, 1001):
            report(done, 1000, {"loss": 0.5})
        report(1000, 1000, {"loss": 0.5})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fit 1000/1000 loss 0.5\n"


def test_progress_goes_on_while_nothing_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", 0.05)
    with progress_bar("fit") as report:
        report(20, 20, {"loss": 0.5})
        report(20, 20, {"measuring": "on held-out episodes"})
        time.sleep(0.5)
    first, *more = capsys.readouterr().err.splitlines()
    assert first == "fit 20/20 loss 0.5"
    assert more[-1] == "fit 20/20 measuring on held-out episodes"


def test_empty_groups_and_lists_have_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    show_figures("Title", {"ends": {}, "alarms": [], "rmse": 0.0})
    assert capsys.readouterr().out.split() == ["Title", "rmse", "0"]


def test_figures_are_shown_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    show_figures("Title", {"reward_rmse": 0.25, "open_loop": {"1": {"rmse": 0.5}}, "ok": True})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        ["Title"],
        ["reward", "rmse", "0.25"],
        ["open", "loop"],
        ["1"],
        ["rmse", "0.5"],
        ["ok", "yes"],
    ]


def test_markup_in_a_message_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_figures("a [bold]path[/]", {"key": "[red]value[/]"})
    shown = capsys.readouterr().out
    assert "a [bold]path[/]" in shown
    assert "[red]value[/]" in shown


def test_an_interruption_says_what_was_kept() -> None:
    with pytest.raises(Interrupted, match="the file"), keeping(lambda: "the file"):
        raise KeyboardInterrupt
    with pytest.raises(Interrupted, match="better"), keeping(lambda: "the file"):
        raise KeyboardInterrupt("better knowledge")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\nb"), "a b"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.h5"), "x.h5; free some space"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.h5"), "check the path"),
        (ModuleNotFoundError("no", name="stable_baselines3"), "dreamgym[sb3]"),
        (ModuleNotFoundError("no", name="vizdoom.vizdoom"), "dreamgym[doom]"),
        (KeyError("x"), "defect"),
        (ValueError(), "defect"),
    ],
)
def test_errors_are_explained_in_one_line(error: Exception, message: str) -> None:
    line = explain(error)
    assert message in line
    assert "\n" not in line
