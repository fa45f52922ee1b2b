"""A few mutations of every kind of file; `python -m tests.mutations --count 10000` has more."""

from __future__ import annotations

import random
import sys

import pytest

from dreamgym.data.formats import registry
from tests import mutations

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


def test_damaged_files_give_an_error_of_dreamgym_or_what_is_in_them() -> None:
    assert list(mutations.find_faults(None, count=3)) == []


def test_every_format_has_a_target(tmp_path) -> None:
    names = {each.NAME for each in registry.FORMATS} - {"RLDS"}  # made by tensorflow-datasets only
    assert names <= set(mutations.make_targets(tmp_path))


def test_whatever_is_no_error_of_dreamgym_is_found(tmp_path, monkeypatch) -> None:
    """A mutation that raises does not end the others."""

    def read(path) -> None:
        raise KeyError("bare")

    (tmp_path / "good").write_bytes(b"content")
    monkeypatch.setattr(mutations, "make_targets", lambda _: {"odd": (tmp_path / "good", read)})
    monkeypatch.setattr(mutations, "limit_memory", lambda: None)
    state = tmp_path / "state"
    mutations.work_through(tmp_path, None, 0, range(2), state)
    assert state.read_text().count("KeyError at test_mutations.py") == 2


@pytest.mark.parametrize("seed", range(50))
def test_damage_is_the_same_for_the_same_number(tmp_path, seed: int) -> None:
    content = b'{"a": [1, 2, {"b": "c"}], "d": "{\\"e\\": 3}"}'
    results = set()
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(content)
        mutations.damage(tmp_path / name, random.Random(seed))
        results.add((tmp_path / name).read_bytes())
    assert len(results) == 1
