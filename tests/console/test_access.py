"""Usable by everybody: axe-core finds nothing, the keyboard reaches everything, a phone shows everything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.console.conftest import Look

AXE = Path(__file__).parents[2] / "console" / "node_modules" / "axe-core" / "axe.min.js"
SCREENS = [
    "now",
    "queues",
    "queues/orders",
    "streams",
    "streams/chat",
    "keys",
    "keys/user%3A1",
    "pubsub",
    "clients",
    "workers",
    "try",
    "server",
]


@pytest.fixture
def full(server: ThrowawayServer, client: SynapClient) -> ThrowawayServer:
    for number in range(3):
        client.queue.publish("orders", {"n": number, "ok": True, "none": None}, headers={"a": "b"})
        client.stream.publish("chat", "message", {"n": number})
        client.kv.set(f"user:{number}", {"name": "Alice"}, ttl=1000)
    client.queue.create("small", max_depth=1)
    client.queue.publish("small", 1)
    return server


@pytest.mark.parametrize(
    "look_as",
    [{}, {"dark": True}, {"width": 390, "height": 844}],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing(look: Look, full: ThrowawayServer, look_as: dict[str, Any]) -> None:
    assert AXE.is_file(), "axe-core isn't there: npm ci in console/"
    console = look(full, **look_as)
    page = console.open()
    script = AXE.read_text("utf-8")
    found: list[str] = []
    for screen in SCREENS:
        console.open(screen)
        page.wait_for_timeout(250)
        rows = page.get_by_role("grid").locator(".row.opens")
        if "/" in screen and not screen.startswith("keys") and rows.count():
            rows.first.click()
        if screen == "queues":
            page.get_by_role("button", name="Publish").click()
        if not page.evaluate("typeof axe === 'object'"):
            page.evaluate(script + "; 0")
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for violation in result["violations"]:
            where = "; ".join(str(node["target"]) + " " + node["failureSummary"] for node in violation["nodes"][:3])
            found.append(f"{screen}: {violation['id']}: {where}")
        if page.get_by_role("dialog").count():
            page.keyboard.press("Escape")
    assert not found, "\n".join(found)


def test_everything_is_reached_by_keyboard(look: Look, full: ThrowawayServer) -> None:
    page = look(full).open("now")
    press = page.keyboard.press
    press("g")
    press("q")
    expect(page.get_by_role("heading", level=1)).to_have_text("Queues")
    expect(page.get_by_role("row", name="orders")).to_be_visible()
    press("/")
    page.keyboard.type("ord")
    press("Escape")
    page.get_by_role("grid").focus()
    press("j")
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("orders")
    press("n")
    expect(page.get_by_role("dialog")).to_be_visible()
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    press("Escape")
    expect(page.get_by_role("heading", level=1)).to_have_text("Queues")
    press("?")
    expect(page.get_by_role("dialog")).to_contain_text("g q")
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    press("g")
    press("t")
    expect(page.get_by_role("heading", level=1)).to_have_text("Try it")


def test_escape_leaves_a_page_at_once_after_a_dialog_closed(look: Look, full: ThrowawayServer) -> None:
    page = look(full).open("queues/orders")
    page.keyboard.press("n")
    page.get_by_role("dialog").get_by_role("textbox").first.focus()
    page.evaluate("""() => {
        const field = document.activeElement;
        field.closest("dialog").close();
        field.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
    }""")
    expect(page.get_by_role("heading", level=1)).to_have_text("Queues")


def test_tab_reaches_every_control_in_sight(look: Look, full: ThrowawayServer) -> None:
    page = look(full).open("queues/orders")
    expect(page.get_by_role("grid").locator(".row.opens").first).to_be_visible()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
    wanted = {"Queues", "Publish", "Settings", "Purge", "Delete", "Ready\n3", "Messages of orders, ready"}
    assert wanted <= {re.sub(r"^ +", "", text) for text in reached}, reached


@pytest.mark.parametrize("screen", SCREENS)
def test_a_phone_shows_it_without_sideways_scrolling(look: Look, full: ThrowawayServer, screen: str) -> None:
    page = look(full, width=360, height=740).open(screen)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('main').scrollWidth - document.querySelector('main').clientWidth") <= 0


def test_dark_and_light_follow_the_system_until_chosen(look: Look, full: ThrowawayServer) -> None:
    page = look(full, dark=True).open()
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "dark"
    page.get_by_role("button", name="Theme: auto").click()
    assert page.evaluate(theme) == "light"
    page.reload()
    page.wait_for_selector(".state.live")
    assert page.evaluate(theme) == "light"
