"""Frames a second of `dreamgym play`: a world of 64x64 pixels, and CartPole beside the real one.

Each frame is a whole turn: a message of the page, a step, decoding, drawing, encoding, and the
answer over the WebSocket. Where Chromium and Playwright are installed, the page itself is measured
as well, which shows each frame. The processor time of a frame does not depend on what else runs on
the machine; the others do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import worlds
from support.reporting import Row, at_least, parser, report
from websockets.sync.client import connect

import dreamgym
from dreamgym.play import PlayServer, PlaySession
from dreamgym.play.protocol import Conversation
from dreamgym.world.world import World

FPS = 20.0
"""Frames a second that a person finds smooth enough to play."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def served(world: World, folder: str) -> Iterator[PlayServer]:
    """Serve the page of a world."""
    with PlayServer(lambda: Conversation(PlaySession(world), Path(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server


def over_the_socket(server: PlayServer, seconds: float) -> tuple[float, float]:
    """Return frames a second for a client without a screen, and processor time of one in ms."""
    url = server.url.replace("http", "ws") + "socket"
    with connect(url, origin=server.url.split("/", 3)[0] + "//" + server.url.split("/")[2]) as page:

        def ask(**message: object) -> dict:
            page.send(json.dumps(message))
            return json.loads(page.recv())

        seed = 0
        ask(do="set", player="random")
        shown = ask(do="reset", seed=seed)
        steps, begin, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            if shown["done"]:
                seed += 1
                shown = ask(do="reset", seed=seed)
            shown = ask(do="step")
            steps += shown["kind"] == "moment"
        used = time.process_time() - used
        return steps / (time.perf_counter() - begin), 1e3 * used / steps


def in_the_browser(server: PlayServer, browser: str, seconds: float) -> float:
    """Return the frames a second that the page shows at full speed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.goto(server.url)
        page.wait_for_selector("body[data-ready=yes]")
        page.locator("#horizon").fill("200")
        page.locator("#fps").fill("60")
        page.keyboard.press("Space")
        shown, begin, steps = 0, time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            time.sleep(0.2)
            now = int(page.locator("body").get_attribute("data-step") or 0)
            steps, shown = steps + max(now - shown, 0), now
            if page.locator("#dream-over").is_visible():
                page.keyboard.press("r")
                page.keyboard.press("Space")
                shown = 0
        took = time.perf_counter() - begin
        chromium.close()
        return steps / took


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    seconds = 4.0 if arguments.quick else 15.0
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    rows: list[Row] = []
    played = {
        "V-M-C Car, 64x64": worlds.v_m_c(),
        "CartPole beside the real one": dreamgym.load("CartPole-MDNRNN-v0"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, world in played.items():
            with served(world, folder) as server:
                rate, used = over_the_socket(server, seconds)
                rows += [
                    at_least(f"{name}: over the socket", rate, "frames/s", FPS),
                    Row(name=f"{name}: processor time", value=used, unit="ms/frame"),
                ]
                try:
                    shown = None if browser is None else in_the_browser(server, browser, seconds)
                except ImportError:
                    continue  # Playwright is not installed
                if shown is not None:
                    rows.append(at_least(f"{name}: in Chromium", shown, "frames/s", FPS))
    report(rows, arguments)


if __name__ == "__main__":
    main()
