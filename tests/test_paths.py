"""Paths that users name: `~` and variables are expanded, and URLs refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import dreamgym
from dreamgym._files import local_path
from dreamgym.cli.app import main
from dreamgym.data import DatasetMetadata, DatasetWriter, Recorder, ShardPlan
from dreamgym.errors import DreamgymError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder beside an empty working folder, in which nothing may appear."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


def test_the_home_folder_is_expanded(home: Path) -> None:
    assert local_path("~/a") == local_path(Path("~/a")) == home / "a"
    for plain in ("a~", "./~", "a/~/b", "C:/a", "a:b", "dreamgym:dreamgym/X-v0"):
        assert local_path(plain) == Path(plain)


def test_environment_variables_are_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(home))
    assert local_path("$SCRATCH/a") == local_path("${SCRATCH}/a") == home / "a"
    assert local_path("a$b/c$") == Path("a$b/c$")
    (home / "$a").touch()
    assert local_path(home / "$a") == home / "$a"
    for path in ("$NO_SUCH/a", "/scratch/${NO_SUCH}/a"):
        with pytest.raises(DreamgymError, match="no environment variable 'NO_SUCH'"):
            local_path(path)


@pytest.mark.parametrize("path", ["s3://b/a", "hf://b", "file:///a", Path("gs://b/a")])
def test_urls_are_refused(path: str | Path) -> None:
    with pytest.raises(DreamgymError, match=r"is a URL .*local files only; download"):
        local_path(path)


def test_unknown_users_are_refused() -> None:
    with pytest.raises(DreamgymError, match=r"no such user.*'\./~no-such-user/a'"):
        local_path("~no-such-user/a")


def test_every_stage_expands_the_home_folder(home: Path) -> None:
    dreamgym.record("CartPole-v1", steps=200, out="~/a.h5")
    assert dreamgym.check("~/a.h5").steps == 200
    dreamgym.data.resume("CartPole-v1", steps=300, out="~/a.h5")
    dreamgym.data.pack("~/a.h5", "~/packed.h5")
    dreamgym.data.write_page("~/a.h5", "~/a.html")
    config = dreamgym.FitConfig(updates=1, starts=8, segment_length=4, batch_size=4)
    world = dreamgym.fit("~/a.h5", "~/world", config=config)
    dreamgym.load("~/world").save("~/copy")
    main_exits("check", "~/a.h5", "--json=~/a.json")
    assert {path.name for path in home.iterdir()} >= {
        *("a.h5", "packed.h5", "a.html", "world", "copy", "a.json")
    }
    assert world.env_id == "CartPole-v1"


def main_exits(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leave:
        main(list(arguments))
    return int(leave.value.code or 0)  # type: ignore[arg-type]


def calls() -> dict[str, Callable[[str], Any]]:
    """Return a call of every public function that takes a path, as a function of the path."""
    env = gym.make("CartPole-v1")
    data, cartpole = dreamgym.data, "CartPole-MDNRNN-v0"
    metadata = DatasetMetadata.of_env(env)
    return {
        "record": lambda url: data.record(env, steps=5, out=url),
        "resume": lambda url: data.resume(env, steps=5, out=url),
        "record_shards": lambda url: data.record_shards("CartPole-v1", url, ShardPlan(steps=4)),
        "resume_shards": lambda url: data.resume_shards("CartPole-v1", url, ShardPlan(steps=4)),
        "Recorder": lambda url: Recorder(env, url),
        "DatasetWriter": lambda url: DatasetWriter(url, metadata),
        "recover": lambda url: data.recover(url),
        "check": lambda url: data.check(url),
        "Dataset": lambda url: data.Dataset(url),
        "snapshot": lambda url: data.Dataset.snapshot(url),
        "convert": lambda url: data.convert(url, "out.h5"),
        "convert to": lambda url: data.convert("in.hdf5", url),
        "pack to": lambda url: data.pack("in.h5", url),
        "fit": lambda url: dreamgym.fit("missing.h5", url),
        "fit from": lambda url: dreamgym.fit(url),
        "load": lambda url: dreamgym.load(url),
        "train_policy": lambda url: dreamgym.train_policy(cartpole, out=url),
        "load_policy": lambda url: dreamgym.train.load_policy(url),
        "transfer_policy": lambda url: dreamgym.transfer_policy(url, cartpole),
    }


@pytest.mark.parametrize("name", calls())
def test_every_function_refuses_a_url(home: Path, name: str) -> None:
    with pytest.raises(DreamgymError, match="'s3://bucket/a' is a URL"):
        calls()[name]("s3://bucket/a")


@pytest.mark.parametrize(
    "line",
    [
        "record CartPole-v1 --steps 5 --out=s3://b/a.h5",
        "check a.h5 --json s3://b/a.json",
        "check a.h5 --html s3://b/a.html",
        "fit a.h5 --out s3://b/world",
        "train CartPole-MDNRNN-v0 --out s3://b/policy",
        "transfer s3://b/policy.zip --world CartPole-MDNRNN-v0",
        "convert s3://b/a.hdf5 out.h5",
    ],
)
def test_every_verb_refuses_a_url(
    home: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_exits(*line.split()) == 1
    assert "is a URL" in capsys.readouterr().err
