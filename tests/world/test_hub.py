"""Worlds on the Hugging Face Hub, against a local server that speaks its API."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dreamgym
from dreamgym.errors import WorldError
from dreamgym.world.hub import FILES, HubWorld, is_hub_name, parse_name
from dreamgym.world.world import as_world
from tests.hub_server import TOKEN, Hub, Repository, local_hub
from tests.small_worlds import small_world

hugging = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

EVIL = {"pickle.pkl": b"cos\nsystem\n", "sub/world.json": b"{}", "setup.py": b"raise SystemExit"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with local_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_world().save(tmp_path / "small")


def publish(hub: Hub, folder: Path, name: str = "me/small", **settings: bool) -> str:
    """Put a world, and files that have no business there, onto the hub; return the commit."""
    repository = hub.repositories.setdefault(name, Repository(**settings))
    return repository.commit(EVIL | {each.name: each.read_bytes() for each in folder.iterdir()})


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)


def test_a_commit_is_downloaded_once_and_then_works_offline(hub, folder, monkeypatch):
    name = f"hf://me/small@{publish(hub, folder)}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world = dreamgym.load(name)
    assert world.name == "small"
    assert world.horizon == dreamgym.load(folder).horizon
    assert sorted(hub.downloads) == sorted(FILES), "nothing else is fetched"
    asked = len(hub.requests)
    dreamgym.load(name)
    assert len(hub.requests) == asked, "the cache answers"
    unreachable(monkeypatch)
    assert as_world(Path(name)).name == "small"  # "hf:/me/small@..."


def test_without_a_revision_a_warning_names_the_commit_and_the_cache_keeps_it(hub, folder):
    commit = publish(hub, folder)
    with pytest.warns(UserWarning, match=f"hf://me/small is hf://me/small@{commit}"):
        dreamgym.load("hf://me/small")
    other_world().save(folder, overwrite=True)
    newer = publish(hub, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = dreamgym.load("hf://me/small")
        new = dreamgym.load(f"hf://me/small@{newer}")
    assert weights_differ(again, new)


def other_world() -> dreamgym.World:
    world = small_world()
    for parameter in world.model.parameters():
        parameter.data += 0.1
    return world


def weights_differ(first: dreamgym.World, other: dreamgym.World) -> bool:
    pairs = zip(first.model.parameters(), other.model.parameters(), strict=True)
    return any((a != b).any() for a, b in pairs)


def test_gymnasium_dreams_in_a_world_of_the_hub(hub, folder):
    name = f"hf://me/small@{publish(hub, folder)}"
    envs = gym.make_vec("dreamgym/World-v0", world=name, num_envs=3)
    assert envs.reset(seed=0)[0].shape == (3, 4)
    env = gym.make("dreamgym/World-v0", world=name)
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_a_file_that_differs_from_its_checksum_is_refused(hub, folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")
    with pytest.raises(WorldError, match="checksum differs"):
        dreamgym.load(f"hf://me/small@{publish(hub, folder)}")


@pytest.mark.parametrize("file", FILES)
def test_a_repository_that_is_not_a_world_is_refused(hub, folder, file):
    (folder / file).unlink()
    with pytest.raises(WorldError, match=f"not a world of dreamgym: it has no {file}"):
        dreamgym.load(f"hf://me/small@{publish(hub, folder)}")


def test_what_the_hub_refuses_is_said_with_what_to_do(hub, folder, monkeypatch):
    publish(hub, folder, private=True)
    publish(hub, folder, "me/gated", gated=True)
    publish(hub, folder, "me/open")
    for name, message in {
        "hf://me/none": "there is no me/none on .*or it is private: check the name",
        "hf://me/small": "private one log in",
        "hf://me/gated": "me/gated on .* is gated: accept",
        "hf://me/open@v1": "has no revision 'v1'; give a commit",
    }.items():
        with pytest.raises(WorldError, match=message):
            dreamgym.load(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.warns(UserWarning, match="name that commit"):
        assert dreamgym.load("hf://me/small").name == "small"


def test_without_a_network_and_cache_the_error_says_so(hub, monkeypatch):
    unreachable(monkeypatch)
    with pytest.raises(WorldError, match=r"not in the cache, and http.* cannot be reached"):
        dreamgym.load("hf://me/small")


# ------------------------------------------------------------------------------- publishing


def test_push_publishes_files_and_card_and_returns_what_loads(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    dreamgym.world.annotate(folder, card={"licence": "MIT"}, picture=b"\x89PNG")
    pushed = dreamgym.push(folder, "me/pole", private=True)
    repository = hub.repositories["me/pole"]
    oid, files = repository.commits[-1]
    assert repository.private
    assert pushed == (f"{hub.url}/me/pole/commit/{oid}", f"hf://me/pole@{oid}")
    assert sorted(files) == sorted([*FILES, "README.md", "card.png"])
    for name in FILES:
        assert files[name] == (folder / name).read_bytes()
    card = files["README.md"].decode()
    front = card.split("---\n")[1]
    assert "library_name: dreamgym" in front
    assert "license: mit" in front
    assert "- mdn-rnn" in front
    assert "# pole\n" in card
    assert 'world="hf://me/pole"' in card
    assert dreamgym.load(pushed.world).name == "pole"


def test_push_takes_a_world_in_memory_and_adds_a_commit(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    first = dreamgym.push(small_world(), "me/small")
    second = dreamgym.push(other_world(), "me/small", message="Better")
    assert len(hub.repositories["me/small"].commits) == 2
    assert weights_differ(dreamgym.load(first.world), dreamgym.load(second.world))


def test_push_is_refused_before_anything_is_made(hub, folder, monkeypatch):
    with pytest.raises(WorldError, match="log in with `hf auth login`"):
        dreamgym.push(folder, "me/small")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "starts.safetensors").unlink()
    with pytest.raises(WorldError, match="is missing"):
        dreamgym.push(folder, "me/small")
    for name in ("no-owner", "me/small@main", "hf://me/small"):
        with pytest.raises(WorldError, match="expected owner/name"):
            dreamgym.push("CartPole-MDNRNN-v0", name)
    assert not hub.repositories
    unreachable(monkeypatch)
    with pytest.raises(WorldError, match="cannot be reached"):
        dreamgym.push("CartPole-MDNRNN-v0", "me/small")


@pytest.mark.slow
def test_the_command_line_pushes_and_takes_hub_names(hub, folder, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dreamgym.cli", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    pushed = run("push", folder, "me/small", "--json", tmp_path / "pushed.json")
    assert pushed.returncode == 0, pushed.stderr
    name = json.loads((tmp_path / "pushed.json").read_text())["world"]
    assert pushed.stdout.splitlines()[-1] == name
    trained = run("train", name, "--steps", 64, "--num-envs", 2, "--out", tmp_path / "policy.zip")
    assert trained.returncode == 0, trained.stderr
    refused = run("train", "hf://me/none")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: there is no me/none on")


# ------------------------------------------------------------------------------------ names

PART = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,20}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda part: "--" not in part
)


@given(PART, PART, st.none() | PART | st.from_regex(r"[0-9a-f]{40}", fullmatch=True))
def test_names_are_read_as_they_are_written(owner, name, revision):
    written = HubWorld(f"{owner}/{name}", revision)
    assert is_hub_name(str(written))
    assert parse_name(str(written)) == written
    assert parse_name(Path(str(written))) == written


@given(st.text(max_size=40) | st.from_regex(r"[\w./@-]{1,20}", fullmatch=True))
def test_any_other_text_is_refused_or_names_one_repository(text):
    with contextlib.suppress(WorldError):
        parsed = parse_name(f"hf://{text}")
        assert parsed.repo_id.count("/") == 1
        assert ".." not in str(parsed)
        assert str(parsed) == f"hf://{text}"


@pytest.mark.parametrize(
    "name",
    [
        "hf://small",
        "hf://a/b/c",
        "hf://../b",
        "hf://a/b@../../x",
        "hf://a/b@",
        "hf://a/b ",
        "hf:a/b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(WorldError):
        dreamgym.load(name)


def test_a_world_on_the_hub_is_not_annotated():
    with pytest.raises(WorldError, match="save it to a folder"):
        dreamgym.world.annotate("hf://me/pole")
