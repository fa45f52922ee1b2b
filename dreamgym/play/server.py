"""The server of the page: three files and a WebSocket, on this machine only."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from importlib import resources
from typing import Any, Self
from urllib.parse import urlsplit

from dreamgym._extras import import_extra
from dreamgym._files import json_text
from dreamgym.play.protocol import Conversation

HOST = "127.0.0.1"
"""Address that the server listens on: nobody but this machine reaches it."""

HOSTS = ("127.0.0.1", "localhost", "::1")
"""Names under which a browser may ask for the page, against DNS rebinding."""

FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "play.css": ("play.css", "text/css; charset=utf-8"),
    "play.js": ("play.js", "text/javascript; charset=utf-8"),
}
"""Files of the page and their media types, by the last part of the address."""

LONGEST_MESSAGE = 64 << 10

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PlayServer:
    """Serves the page; each page that is open plays a session of its own.

    The address holds a random token, without which nothing is answered. The WebSocket also has to
    come from the page itself (`Origin`).

    Args:
        converse: makes the conversation of a page. It is called, used and closed in one thread.
        port: port to listen on; 0 for a free one.

    Attributes:
        url: address of the page.

    Raises:
        ModuleNotFoundError: the extra `play` is not installed.
        OSError: the port is in use.
    """

    def __init__(self, converse: Callable[[], Conversation], port: int = 0) -> None:
        websockets: Any = import_extra("websockets.sync.server", "dreamgym play")
        self._converse = converse
        self._token = secrets.token_urlsafe(16)
        self._closed = import_extra("websockets.exceptions", "dreamgym play").ConnectionClosed
        self._server = websockets.serve(
            self._play,
            HOST,
            port,
            process_request=self._respond,
            max_size=LONGEST_MESSAGE,
            # Frames are compressed already.
            compression=None,
            # A browser opens connections ahead, and closing waits for them.
            open_timeout=2,
            close_timeout=2,
            # A planner may take longer over one step than a ping may take.
            ping_interval=None,
        )
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/{self._token}/"

    def serve_forever(self) -> None:
        """Serve until `close` is called from another thread, or Ctrl-C."""
        self._server.serve_forever()

    def close(self) -> None:
        """Close all connections and stop."""
        self._server.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _play(self, connection: Any) -> None:
        """Answer the messages of one page until it is closed."""
        try:
            conversation = self._converse()
        except Exception as error:
            connection.send(json_text({"kind": "error", "text": f"{error}"}))
            raise  # into the log, and the connection is closed
        try:
            for message in connection:
                connection.send(conversation.answer(message))
        except self._closed:
            pass  # the page was closed before its answer came
        finally:
            conversation.session.close()

    def _respond(self, connection: Any, request: Any) -> Any:
        """Answer an HTTP request; None lets a WebSocket in."""
        host = request.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in HOSTS:
            return connection.respond(403, "This server answers on this machine only.\n")
        token, _, name = urlsplit(request.path).path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(errors="replace"), self._token.encode()):
            return connection.respond(
                403, "The address lacks the token; use the one that dreamgym play has printed.\n"
            )
        if name == "socket":
            origin = request.headers.get("Origin", "")
            if urlsplit(origin).netloc != host:
                return connection.respond(403, "Only the page itself may play.\n")
            return None
        if name not in FILES:
            return connection.respond(404, "There is no such file.\n")
        return self._file(connection, *FILES[name])

    def _file(self, connection: Any, file: str, media_type: str) -> Any:
        body = resources.files("dreamgym.play").joinpath("page", file).read_bytes()
        response, headers = (
            connection.respond(200, ""),
            SECURITY
            | {
                "Content-Type": media_type,
                "Content-Length": str(len(body)),
            },
        )
        response.body = body
        for name, value in headers.items():
            response.headers.pop(name, None)
            response.headers[name] = value
        return response
