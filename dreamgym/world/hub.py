"""Worlds on the Hugging Face Hub: `hf://owner/name@revision` is downloaded, `push` publishes.

Only `world.json` and the two safetensors files are downloaded, under any name of a repository; the
checksums in world.json are compared with them, and nothing is executed. A commit as revision fixes
world.json itself, and so everything.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dreamgym._extras import import_extra
from dreamgym.errors import WorldError
from dreamgym.world.card import CARD_FILE, PICTURE_FILE, card_text
from dreamgym.world.serialization import MODEL_FILE, STARTS_FILE
from dreamgym.world.zoo import WORLD_FILE

SCHEME = "hf://"
FILES = (WORLD_FILE, MODEL_FILE, STARTS_FILE)
"""What is downloaded."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"hf:/{{1,2}}({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubWorld(NamedTuple):
    """A world on the hub.

    Attributes:
        repo_id: `owner/name`.
        revision: a commit, a branch or a tag; None for the newest.
    """

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo_id}" + ("" if self.revision is None else f"@{self.revision}")


class Pushed(NamedTuple):
    """A world that was published.

    Attributes:
        url: page of the commit.
        world: name of exactly this world, `hf://owner/name@commit`.
    """

    url: str
    world: str


def is_hub_name(name: str | Path) -> bool:
    """Return whether a name begins as that of a world on the hub does."""
    return str(name).startswith(("hf:/", "hf:\\"))


def parse_name(name: str | Path) -> HubWorld:
    """Return what a name `hf://owner/name@revision` means.

    Raises:
        WorldError: it is not such a name.
    """
    match = _NAME.fullmatch(str(name))
    if match is None or ".." in str(name) or "--" in match[1]:
        raise WorldError(
            f"{str(name)!r} is not the name of a world on the hub; expected "
            f"{SCHEME}owner/name@revision, for instance {SCHEME}someone/pendulum@main"
        )
    return HubWorld(match[1], match[2])


def download(name: str | Path) -> Path:
    """Return the folder of a world on the hub, downloaded unless it is in the cache.

    What is in the cache is used without asking the hub, so that a name means the same world from
    then on, and works offline. If the newest revision is downloaded, or a branch or a tag, a
    warning names the commit.

    Raises:
        WorldError: it is not a name of the hub; there is no such repository or revision, or access
            is denied; it is not a world; or the hub cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    wanted = parse_name(name)
    hub = import_extra("huggingface_hub", f"the world {wanted}")
    arguments: dict[str, Any] = {"revision": wanted.revision, "allow_patterns": list(FILES)}
    try:
        cached = Path(hub.snapshot_download(wanted.repo_id, local_files_only=True, **arguments))
        if _is_complete(cached):
            return cached
    except hub.errors.LocalEntryNotFoundError:
        pass
    with _hub_errors(wanted):
        folder = Path(hub.snapshot_download(wanted.repo_id, **arguments))
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise WorldError(f"{wanted} is not a world of dreamgym: it has no {', '.join(missing)}")
    if wanted.revision is None or not _COMMIT.fullmatch(wanted.revision):
        pinned = wanted._replace(revision=folder.name)
        warnings.warn(
            f"{wanted} is {pinned}; name that commit to get the same world anywhere and always",
            stacklevel=4,
        )
    return folder


def _is_complete(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


def push_folder(folder: Path, repo_id: str, *, private: bool, message: str | None) -> Pushed:
    """Publish the folder of a world; see `dreamgym.push`."""
    if not _REPOSITORY.fullmatch(repo_id):
        raise WorldError(f"{repo_id!r} is not the name of a repository; expected owner/name")
    wanted = HubWorld(repo_id)
    hub = import_extra("huggingface_hub", "publishing a world")
    description = json.loads((folder / WORLD_FILE).read_text(encoding="utf-8"))
    picture = (folder / PICTURE_FILE).is_file()
    name = repo_id.partition("/")[2]
    text = card_text(name, description, picture=picture, source=str(wanted))
    card = f"---\n{_front_matter(hub, description)}\n---\n\n{text}"
    contents: dict[str, Any] = {file: str(folder / file) for file in FILES}
    contents |= {PICTURE_FILE: str(folder / PICTURE_FILE)} if picture else {}
    contents[CARD_FILE] = card.encode()
    with _hub_errors(wanted):
        api = hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [
                hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=content)
                for file, content in contents.items()
            ],
            commit_message=message or " ".join(["World model", *_env_id(description)]),
        )
    return Pushed(commit.commit_url, str(wanted._replace(revision=commit.oid)))


def _front_matter(hub: Any, description: dict[str, Any]) -> str:
    """Return the metadata that the hub reads from a card, as YAML."""
    licence = (description["provenance"].get("card") or {}).get("licence")
    data = hub.ModelCardData(
        library_name="dreamgym",
        license=None if licence is None else licence.lower(),
        pipeline_tag="reinforcement-learning",
        tags=["world-model", "gymnasium", description["family"], *_env_id(description)],
    )
    text: str = data.to_yaml()
    return text


def _env_id(description: dict[str, Any]) -> list[str]:
    """Return the id of the real environment, or nothing."""
    spec = description["env_spec"]
    return [] if spec is None else [str(spec["id"])]


@contextmanager
def _hub_errors(wanted: HubWorld) -> Iterator[None]:
    """Turn errors of huggingface_hub into a `WorldError` that says what to do."""
    from huggingface_hub import constants, errors

    where = f"{wanted.repo_id} on {constants.ENDPOINT}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise WorldError(
            f"{where} is gated: accept its conditions on its page, then log in with `hf auth login`"
            " or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WorldError(
            f"{where} has no revision {wanted.revision!r}; give a commit, a branch or a tag of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WorldError(
            f"there is no {where}, or it is private: check the name; for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise WorldError(
            f"{wanted} is not in the cache, and {constants.ENDPOINT} cannot be reached "
            f"({_reason(error.__cause__ or error)}); try again with a network, or copy the world's "
            "folder and give its path"
        ) from error
    except errors.HfHubHTTPError as error:
        denied = error.response is not None and error.response.status_code in (401, 403)
        advice = "log in with `hf auth login` or set HF_TOKEN" if denied else "try again later"
        raise WorldError(f"{where}: {_reason(error)}; {advice}") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise WorldError(
            f"{constants.ENDPOINT} cannot be reached ({_reason(error)}); try again with a network"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def saved(world: Any) -> Iterator[Path]:
    """Yield a folder with a world in it that may not be on disk yet."""
    folder = Path(tempfile.mkdtemp(prefix="dreamgym-"))
    try:
        yield world.save(folder / world.name)
    finally:
        shutil.rmtree(folder)
