"""The page in headless Chromium: real keys, real clicks, real touches."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamgym.play import PlayServer, PlaySession
from dreamgym.play.protocol import Conversation
from tests.dream.test_rendering import build_world

api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("websockets")
pytest.importorskip("pygame", reason="CartPole's own renderer needs pygame")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"there is none of {', '.join(BROWSERS)}"),
    pytest.mark.xdist_group("browser"),  # one process starts it
]

LONG = 60_000
"""Milliseconds that a busy machine may take to answer."""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("play")


@pytest.fixture(scope="module")
def cartpole_server(cartpole_world, folder) -> Iterator[PlayServer]:
    with PlayServer(lambda: Conversation(PlaySession(cartpole_world), folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server


@pytest.fixture
def open_page(browser):
    """Return a function that opens a page, and check that it had no error and asked nobody else."""
    errors, asked, contexts = [], [], []

    def opened(server, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(LONG)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        page.wait_for_selector("body[data-ready=yes]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors
    assert asked
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)


def at_step(page, step: int) -> None:
    page.wait_for_selector(f"body[data-step='{step}']")


def one_step(page, step: int, key: str | None = None) -> None:
    """Take one step, with a key held down, and wait until it is shown."""
    if key:
        page.keyboard.down(key)
    page.keyboard.press(".")
    at_step(page, step)
    if key:
        page.keyboard.up(key)


def pressed(page) -> list[str]:
    return [each.split("\n")[0] for each in page.locator(".choice button.held").all_inner_texts()]


def values(page) -> list[str]:
    return page.locator("#observations output").all_inner_texts()


def test_keys_push_the_cart(cartpole_server, open_page):
    page = open_page(cartpole_server)
    assert page.title().startswith("CartPole-MDNRNN-v0")
    velocity = 1
    for step in range(1, 4):
        one_step(page, step, "ArrowRight")
        assert pressed(page) == ["push right"]
    right = float(values(page)[velocity])
    for step in range(4, 10):
        one_step(page, step, "ArrowLeft")
        assert pressed(page) == ["push left"]
    assert float(values(page)[velocity]) < 0 < right
    assert page.locator("#real-figures").inner_text() == "return 9"
    for frame in ("#dream-frame", "#real-frame"):
        assert page.locator(frame).evaluate("image => image.naturalWidth") == 600
    assert page.locator("#message").inner_text() == ""


def test_space_plays_and_pauses_at_the_pace_that_is_set(cartpole_server, open_page):
    page = open_page(cartpole_server)
    page.keyboard.press("Space")
    page.wait_for_selector("body:not([data-step='0']):not([data-step='1'])")
    page.keyboard.press("Space")
    stopped = page.locator("body").get_attribute("data-step")
    assert page.locator("#play").inner_text() == "▶ Play"
    page.wait_for_timeout(300)
    now = page.locator("body").get_attribute("data-step")
    assert int(now) - int(stopped) <= 1, "at most the step that was under way"


def test_time_goes_back_and_branches_part(cartpole_server, open_page):
    page = open_page(cartpole_server)
    for step in range(1, 5):
        one_step(page, step, "ArrowRight" if step % 2 else "ArrowLeft")
    there = values(page)
    page.keyboard.press("Backspace")
    at_step(page, 3)
    page.keyboard.press("b")
    page.wait_for_selector(".branch")
    one_step(page, 4, "ArrowLeft")
    assert values(page) == there, "the same action leads to the same future"
    futures = []
    for _ in range(2):
        page.locator(".branch button", has_text="Other future").click()
        at_step(page, 3)
        one_step(page, 4, "ArrowLeft")
        futures.append(values(page))
    assert there not in futures
    assert futures[0] != futures[1]
    page.locator("#time").fill("1")
    at_step(page, 1)
    page.locator(".branch button", has_text="×").click()
    page.wait_for_selector(".branch", state="detached")


def test_a_new_episode_has_a_new_seed_and_again_has_the_same(cartpole_server, open_page):
    page = open_page(cartpole_server)
    first = values(page)
    one_step(page, 1)
    page.keyboard.press("r")
    at_step(page, 0)
    assert values(page) == first
    page.keyboard.press("n")
    api.expect(page.locator("#seed")).to_have_value("1")
    api.expect(page.locator("#observations output").first).not_to_have_text(first[0])


def test_the_end_is_shown_and_can_be_undone(cartpole_server, open_page):
    page = open_page(cartpole_server)
    page.locator("#horizon").fill("0")  # ten steps
    api.expect(page.locator("#horizon-out")).to_have_text("10")
    page.locator("#fps").fill("60")
    page.keyboard.press("Space")
    page.wait_for_selector("#dream-over:visible")
    assert "truncated at step 10" in page.locator("#dream-over").inner_text()
    page.keyboard.press("Backspace")
    at_step(page, 9)
    assert not page.locator("#dream-over").is_visible()


def test_a_planner_plays(cartpole_server, open_page):
    page = open_page(cartpole_server)
    page.locator("#player").select_option("random")
    one_step(page, 1)
    page.locator("#player").select_option("plan:categorical-cem")
    one_step(page, 2)
    assert len(pressed(page)) == 1


def test_an_edit_moves_the_pole_and_the_real_one_is_put_there(cartpole_server, open_page):
    page = open_page(cartpole_server)
    page.locator("#edit summary").click()
    slider = page.locator("#latents input").nth(2)
    before = page.locator("#dream-frame").get_attribute("src")
    slider.focus()
    slider.press("End")
    api.expect(page.locator("#dream-frame")).not_to_have_attribute("src", before)
    page.locator("#place").click()
    dream = page.locator("#dream-frame").get_attribute("src")
    api.expect(page.locator("#real-frame")).to_have_attribute("src", dream)
    page.locator("#leaf").select_option("h")
    api.expect(page.locator("#leaf-range")).to_have_text("0–15 of 64")
    page.locator("#more").click()
    api.expect(page.locator("#leaf-range")).to_have_text("16–31 of 64")


def test_what_was_played_is_saved(cartpole_server, open_page, folder):
    page = open_page(cartpole_server)
    one_step(page, 1)
    page.locator("#save-episode").click()
    api.expect(page.locator("#saved")).to_contain_text("-real.h5")
    assert len(list(folder.glob("*.h5"))) == 2


def test_an_error_is_shown_and_the_page_goes_on(cartpole_server, open_page):
    page = open_page(cartpole_server)
    page.locator("#save-clip").click()
    api.expect(page.locator("#message")).to_contain_text("take a step first")
    one_step(page, 1)
    assert page.locator("#message").inner_text() == ""


def test_a_finger_plays_on_a_phone(cartpole_server, open_page):
    page = open_page(
        cartpole_server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing is cut off"
    page.locator("#wait-for-key").check()
    page.locator("#play").tap()
    page.wait_for_timeout(200)
    assert page.locator("body").get_attribute("data-step") == "0", "it waits for a press"
    right = page.locator(".choice button", has_text="push right")
    right.dispatch_event("pointerdown", {"pointerId": 1})
    page.wait_for_selector("body:not([data-step='0'])")
    assert pressed(page) == ["push right"]
    right.dispatch_event("pointerup", {"pointerId": 1})


def test_dragging_on_the_picture_moves_the_slider(open_page, tmp_path):
    import gymnasium as gym

    world = build_world(gym.make("Pendulum-v1"))
    with PlayServer(lambda: Conversation(PlaySession(world), tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        page = open_page(server)
        box = page.locator("#dream-screen").bounding_box()
        page.mouse.move(box["x"] + 1, box["y"] + 10)
        page.mouse.down()
        output = page.locator(".named output").first
        assert float(output.inner_text()) == pytest.approx(-2, abs=0.05)
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 10)
        assert float(output.inner_text()) == pytest.approx(1, abs=0.05)
        page.mouse.up()
        assert float(output.inner_text()) == 0
        page.keyboard.down("ArrowRight")
        assert float(output.inner_text()) == 2
        page.keyboard.down("ArrowLeft")
        assert float(output.inner_text()) == 0, "both keys cancel out"
        page.keyboard.up("ArrowRight")
        assert float(output.inner_text()) == -2


def test_a_stopped_server_is_said(cartpole_world, browser, tmp_path):
    server = PlayServer(lambda: Conversation(PlaySession(cartpole_world), tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("body[data-ready=yes]", timeout=LONG)
    server.close()
    thread.join(20)
    api.expect(page.locator("#message")).to_contain_text("has stopped")
    assert page.locator("#play").is_disabled()
    page.close()
