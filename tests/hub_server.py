"""A local server that speaks as much of the Hugging Face Hub's API as worlds need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_test"


@dataclass
class Repository:
    """A repository: its commits, oldest first, each with all files."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        before = self.commits[-1][1] if self.commits else {}
        content = {**before, **files}
        text = repr((len(self.commits), sorted(content.items())))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((oid, content))
        return oid

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main" and self.commits:
            return self.commits[-1]
        return next((each for each in self.commits if each[0] == revision), None)


@dataclass
class Hub:
    """Repositories by name, the large files that wait for a commit, and the requests."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [each.split("/")[-1] for each in self.requests if re.match(r"GET .*/resolve/", each)]


class Refused(Exception):
    """An answer that is an error: status and code."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match:
                    return self.send(*function(self, *match.groups(), body))
            raise Refused(404, "EntryNotFound")
        except Refused as refused:
            status, code = refused.args
            self.send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def send(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/json" if not isinstance(content, bytes) else "application/octet-stream"
        values = {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}
        for name, value in values.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def trusted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.trusted()):
            raise Refused(401, "RepoNotFound")
        if found.gated and not self.trusted():
            raise Refused(403, "GatedRepo")
        return found

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self.repository(name).find(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound")
        return found

    def info(self, name: str, revision: str, _: bytes) -> Any:
        oid, files = self.revision(name, revision)
        return ({"id": name, "sha": oid, "siblings": [{"rfilename": each} for each in files]},)

    def tree(self, name: str, revision: str, _: bytes) -> Any:
        _, files = self.revision(name, revision)
        return (
            [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in files.items()
            ],
        )

    def resolve(self, name: str, revision: str, path: str, _: bytes) -> Any:
        oid, files = self.revision(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        return files[path], {"X-Repo-Commit": oid, "ETag": f'"{etag(files[path])}"'}

    def create(self, body: bytes) -> Any:
        if not self.trusted():
            raise Refused(401, "Unauthorized")
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return {"url": f"{self.hub.url}/{name}"}, {}, 409
        private = asked.get("private") or asked.get("visibility") == "private"  # before 2 and since
        self.hub.repositories[name] = Repository(private=bool(private))
        return ({"url": f"{self.hub.url}/{name}"},)

    def validate(self, body: bytes) -> Any:
        content = json.loads(body)["content"]
        return ({"errors": [] if content.startswith("---\n") else ["no metadata"], "warnings": []},)

    def preupload(self, name: str, body: bytes) -> Any:
        self.repository(name)
        return (
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
            },
        )

    def batch(self, name: str, body: bytes) -> Any:
        self.repository(name)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return ({"transfer": "basic", "objects": objects},)

    def upload(self, oid: str, body: bytes) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        return ({},)

    def commit(self, name: str, body: bytes) -> Any:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = self.repository(name).commit(files)
        return ({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid},)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


ROUTES: list[tuple[str, Any]] = [
    (r"/api/models/([^/]+/[^/]+)/revision/(.+)", Handler.info),
    (r"/api/models/([^/]+/[^/]+)/tree/(.+)", Handler.tree),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (r"/api/models/([^/]+/[^/]+)/preupload/main", Handler.preupload),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"/large/(\w+)", Handler.upload),
    (r"/api/models/([^/]+/[^/]+)/commit/main", Handler.commit),
]


@contextmanager
def local_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = None
) -> Iterator[Hub]:
    """Yield a hub on a port of this machine, which huggingface_hub takes for the real one."""
    from huggingface_hub import constants

    with _serving() as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        # The server has no chunk store (Xet); large files go by Git LFS.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        yield hub


@contextmanager
def _serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
