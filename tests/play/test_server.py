"""The server: this machine only, nothing without the token, no page but its own."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from dreamgym.play import PlayServer, PlaySession
from dreamgym.play.protocol import Conversation
from dreamgym.play.server import FILES
from tests.small_worlds import small_world

client = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PlayServer]:
    world, folder = small_world(horizon=100), tmp_path_factory.mktemp("out")
    made = PlayServer(lambda: Conversation(PlaySession(world, device="cpu"), folder))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.close()
    thread.join(10)
    assert not thread.is_alive()


def get(server: PlayServer, path: str, host: str | None = None, method: str = "GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def socket_url(server: PlayServer) -> str:
    return server.url.replace("http", "ws") + "socket"


def origin(server: PlayServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_the_page_is_served_with_its_files_and_nothing_from_elsewhere(server):
    path = urlsplit(server.url).path
    for name, (_, media_type) in FILES.items():
        response, body = get(server, path + name)
        assert response.status == 200
        assert response.headers.get_all("Content-Type") == [media_type]
        assert int(response.headers["Content-Length"]) == len(body) > 1000
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        text = body.decode()
        assert "http://www.w3.org/2000/svg" in text or "http" not in text.replace('"http"', "")
        assert "innerHTML" not in text


@pytest.mark.parametrize(
    "path", ["/", "/x/", "//", "/play.js", "/%00/", "/" + "a" * 22 + "/socket", "/%C3%A4/"]
)
def test_without_the_token_there_is_nothing(server, path):
    response, body = get(server, path)
    assert response.status == 403
    assert b"token" in body


def test_an_address_that_is_no_ascii_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(b"GET /\xc3\xa4\xff/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " not in raw.recv(1 << 12)


@pytest.mark.parametrize("name", ["server.py", "../server.py", "%2e%2e/server.py", "x", "play.js/"])
def test_only_the_files_of_the_page_are_served(server, name):
    response, _ = get(server, urlsplit(server.url).path + name)
    assert response.status == 404


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "0.0.0.0", ""])
def test_another_host_name_is_refused(server, host):
    response, _ = get(server, urlsplit(server.url).path, host or " ")
    assert response.status == 403


def test_localhost_through_a_tunnel_is_another_port(server):
    response, _ = get(server, urlsplit(server.url).path, "localhost:9999")
    assert response.status == 200


def test_it_listens_on_this_machine_only(server):
    assert server._server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "other", [None, "http://example.org", "http://127.0.0.1:1", "null", "file://"]
)
def test_another_page_cannot_play(server, other):
    with pytest.raises(InvalidStatus) as refused:
        client.connect(socket_url(server), origin=other)
    assert refused.value.response.status_code == 403


def test_the_token_is_needed_for_the_socket(server):
    with pytest.raises(InvalidStatus):
        client.connect(f"ws://127.0.0.1:{server.port}/nothing/socket", origin=origin(server))


def test_each_page_has_a_session_of_its_own(server):
    with (
        client.connect(socket_url(server), origin=origin(server)) as first,
        client.connect(socket_url(server), origin=origin(server)) as second,
    ):
        for page in (first, second):
            page.send('{"do": "reset", "seed": 1}')
            assert json.loads(page.recv(timeout=20))["step"] == 0
        first.send('{"do": "step", "action": [1]}')
        assert json.loads(first.recv(timeout=20))["step"] == 1
        second.send('{"do": "go", "step": 1}')
        assert json.loads(second.recv(timeout=20))["kind"] == "error"


def test_a_message_that_is_too_long_closes_the_connection(server):
    with client.connect(socket_url(server), origin=origin(server)) as page:
        page.send(" " * (1 << 17))
        with pytest.raises(ConnectionClosed):
            page.recv(timeout=20)


def test_a_session_that_cannot_be_made_says_why(tmp_path):
    def fail():
        raise ValueError("no such thing")

    with PlayServer(fail) as server:
        threading.Thread(target=server.serve_forever).start()
        with client.connect(socket_url(server), origin=origin(server)) as page:
            assert json.loads(page.recv(timeout=20))["text"] == "no such thing"


def test_a_port_in_use_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            PlayServer(lambda: None, port=taken.getsockname()[1])
