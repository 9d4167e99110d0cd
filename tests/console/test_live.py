"""What happens in the service is seen at once, and what is done in the page happens in the service."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from synap import SynapClient
from synap.testing.server import ThrowawayServer
from tests.console.browser import PATIENCE, until
from tests.console.conftest import Background, Look, Serve

SECONDS = PATIENCE / 1000


PUBLISH = """async (name) => {
    const body = JSON.stringify({command: "queue.publish", payload: {queue: name, message: 1}});
    const answer = await fetch("api/v1/command", {method: "POST", headers: {"Content-Type": "application/json"}, body});
    await answer.json();
}"""


def fill_value(page: Page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def test_a_publish_is_a_row_after_the_next_push(look: Look, server: ThrowawayServer) -> None:
    """How long that takes: python -m tests.console.rows."""
    console = look(server)
    pushes: list[str] = []

    def received(frame: str | bytes) -> None:
        if isinstance(frame, str) and '"queues":{' in frame:
            pushes.append(frame)

    console.page.on("websocket", lambda socket: socket.on("framereceived", received))
    page = console.open("queues")
    for number in range(20):
        name = f"fresh-{number}"
        page.evaluate(PUBLISH, name)
        before = len(pushes)
        expect(page.get_by_role("row", name=name, exact=False).first).to_be_visible()
        # One push may have been on its way when the publish was answered.
        assert any(f'"{name}"' in push for push in pushes[: before + 2])


def test_a_tab_that_nobody_sees_is_sent_nothing(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    """That the service then computes nothing: tests/server/test_watch.py."""
    console = look(server)
    sent: list[str] = []
    console.page.on("websocket", lambda socket: socket.on("framesent", lambda text: sent.append(str(text))))
    page = console.open("queues")
    hide = """hidden => {
        Object.defineProperty(document, "visibilityState", {configurable: true, value: hidden ? "hidden" : "visible"});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    watches = [text for text in sent if "admin.watch" in text]
    assert ['"enabled":false' in text for text in watches] == [False, True], watches
    client.queue.publish("meanwhile", 1)
    page.evaluate(hide, False)
    expect(page.get_by_role("row", name="meanwhile")).to_be_visible()


def test_how_far_durable_subscriptions_are_behind(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    for number in range(5):
        client.stream.publish("orders", "paid", number)
    client.stream.commit("orders", "billing", 2)
    client.stream.commit("orders", "mail", 4)
    page = look(server).open("streams")
    row = page.get_by_role("row", name="orders")
    expect(row).to_contain_text("2 billing +1")
    row.click()
    subscriptions = page.get_by_label("Durable subscriptions")
    expect(subscriptions).to_contain_text("billing at 2 2 events behind")
    expect(subscriptions).to_contain_text("mail at 4 up to date")
    client.stream.publish("orders", "paid", 5)
    expect(subscriptions).to_contain_text("mail at 4 1 event behind")
    client.stream.commit("orders", "billing", 5)
    expect(subscriptions).to_contain_text("billing at 5 up to date")


def test_publishing_from_the_page_reaches_a_consumer(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    client.queue.create("orders")
    page = look(server).open("queues/orders")
    page.get_by_role("button", name="Publish").click()
    fill_value(page, "Message", '{"id": 12345678901234567890, "price": 1.0}')
    page.get_by_label("Priority").fill("8")
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Headers: name 1").fill("source")
    page.get_by_label("Headers: text 1").fill("page")
    page.get_by_role("dialog").get_by_role("button", name="Publish", exact=True).click()
    message = client.queue.consume("orders", timeout=SECONDS)
    assert message is not None
    assert repr(message.message) == "{'id': 12345678901234567890, 'price': 1.0}"
    assert message.priority == 8
    assert message.headers == {"source": "page"}


SEEN = """() => [...document.querySelectorAll('.offset')].map((cell) => Number(cell.textContent.replace(/,/g, '')))"""
# Only the rows in sight are in the page: look at all of them, from the first to the last.
SEEN_BY_SCROLLING = f"""async (grid) => {{
    const seen = new Set();
    for (let place = 0; place < grid.scrollHeight + 300; place += 300) {{
        grid.scrollTo(0, place);
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
        for (const offset of ({SEEN})()) seen.add(offset);
    }}
    return [...seen];
}}"""


def test_a_tail_has_no_gap_over_kill_9(look: Look, serve: Serve, tmp_path: Path, background: Background) -> None:
    service = serve(data=str(tmp_path / "data"))
    sent = 0

    def publish(over: threading.Event) -> None:
        nonlocal sent
        with SynapClient(url=service.url, retries=10_000, retry_max_delay=0.2) as client:
            while not over.is_set():
                client.stream.publish("tail", "tick", {"n": sent})
                sent += 1
                over.wait(0.01)

    background(publish)
    console = look(service)
    console.expected += ["WebSocket connection to", "Failed to load resource", "ERR_CONNECTION_REFUSED"]
    page = console.open("streams/tail")
    expect(page.get_by_role("grid").get_by_text("tick").first).to_be_visible()
    begin = min(page.evaluate(SEEN))
    for _ in range(2):
        before = sent
        service.restart()
        deadline = time.monotonic() + SECONDS
        while sent < before + 40:
            assert time.monotonic() < deadline, "nothing is published after the restart"
            time.sleep(0.05)
    last = sent - 5
    until(page, f"last => Math.max(...({SEEN})()) >= last", last)
    page.get_by_role("button", name="Pause").click()
    grid = page.get_by_role("grid")
    seen = set(grid.evaluate(SEEN_BY_SCROLLING))
    rows = int(grid.get_attribute("aria-rowcount") or 0) - 1
    assert rows == max(seen) - min(seen) + 1, "an event is there twice"
    missing = [offset for offset in range(begin, last + 1) if offset not in seen]
    assert missing == []


def stands_at_end(page: Page) -> bool:
    return bool(
        page.get_by_role("grid").evaluate("(grid) => grid.scrollTop + grid.clientHeight >= grid.scrollHeight - 1")
    )


@pytest.mark.parametrize("screen", ["streams", "pubsub"])
def test_a_followed_list_stays_at_its_end_when_it_gets_smaller(
    look: Look, server: ThrowawayServer, client: SynapClient, screen: str
) -> None:
    """A banner, a detail, a smaller window: none is somebody scrolling back. Whoever does scroll back stays there."""
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            if screen == "streams":
                client.stream.publish("tail", "tick", sent)
            else:
                client.pubsub.publish("tail", sent)
            sent += 1

    def shows(number: int) -> Locator:
        return page.get_by_role("grid").get_by_text(str(number), exact=True).first

    if screen == "pubsub":
        page = look(server).open("pubsub")
        page.get_by_role("button", name="Listen").click()
        expect(page.get_by_text("Listening…")).to_be_visible()
        deadline = time.monotonic() + SECONDS
        while "#" not in client.pubsub.topics() and time.monotonic() < deadline:
            time.sleep(0.02)
    else:
        send(1)
        page = look(server).open("streams/tail")
    send(100)
    expect(shows(sent - 1)).to_be_visible()
    grid = page.get_by_role("grid")
    # The list shrinks between a row's scrolling and the event that tells of it.
    page.set_viewport_size({"width": 1280, "height": 600})
    grid.evaluate("(grid) => grid.dispatchEvent(new Event('scroll'))")
    send(100)
    expect(shows(sent - 1)).to_be_visible()
    assert stands_at_end(page)
    # Up by hand, and more comes: the place stays.
    place = grid.evaluate(
        """async (grid) => {
            grid.scrollBy(0, -400);
            await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
            return grid.scrollTop;
        }"""
    )
    send(100)
    expect(grid).to_have_attribute("aria-rowcount", str(sent + 1))
    assert grid.evaluate("(grid) => grid.scrollTop") == place
    # Back at the end it follows again.
    grid.evaluate("(grid) => grid.scrollTo(0, grid.scrollHeight)")
    expect(shows(sent - 1)).to_be_visible()
    send(100)
    expect(shows(sent - 1)).to_be_visible()


def test_back_to_the_newest_follows_again(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    for number in range(300):
        client.stream.publish("tail", "tick", number)
    page = look(server).open("streams/tail")
    grid = page.get_by_role("grid")
    expect(grid.get_by_text("299", exact=True).first).to_be_visible()
    page.get_by_label("Jump to an offset or a time").fill("50")
    page.get_by_role("button", name="Jump").click()
    expect(grid.get_by_text("50", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Back to the newest").click()
    expect(page.get_by_text("200 events, live")).to_be_visible()  # those from 50 on are 250
    expect(grid.get_by_text("299", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    grid.evaluate("(grid) => grid.scrollTo(0, 0)")
    expect(grid.get_by_text("100", exact=True).first).to_be_visible()
    client.stream.publish("tail", "tick", 300)
    page.get_by_role("button", name="Resume").click()
    expect(grid.get_by_text("300", exact=True).first).to_be_visible()


def test_a_tail_that_is_answered_late_is_a_tail(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    """A service that hangs longer than the page waits for other answers."""
    client.stream.publish("tail", "tick", 0)
    console = look(server)
    console.page.clock.install()
    page = console.open("streams")
    server.signal(signal.SIGSTOP)
    try:
        page.evaluate("location.hash = '#/streams/tail'")
        expect(page.get_by_role("heading", name="tail")).to_be_visible()
        page.clock.fast_forward(30_000)
    finally:
        server.signal(signal.SIGCONT)
    client.stream.publish("tail", "tick", 1)
    expect(page.get_by_role("grid").get_by_text("1", exact=True).first).to_be_visible()


def test_keys_are_set_edited_and_expire(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    client.kv.set("user:1", {"score": 1.0, "big": 2**60})
    page = look(server).open("keys/user%3A1")
    expect(page.get_by_label("Key", exact=True).get_by_text("1152921504606846976")).to_be_visible()
    page.get_by_role("button", name="Expire…").click()
    page.get_by_label("Seconds from now").fill("500")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_role("timer")).to_contain_text("8 min")
    page.get_by_role("button", name="Edit").click()
    box = page.get_by_label("Value", exact=True).last
    expect(box).to_have_value('{"score": 1.0, "big": 1152921504606846976}')
    box.fill('{"score": 2.0, "big": 1152921504606846977}')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Key", exact=True).get_by_text("1152921504606846977")).to_be_visible()
    found = client.kv.get("user:1")
    assert repr(found.value) == "{'score': 2.0, 'big': 1152921504606846977}"
    assert found.ttl is not None


def test_keys_are_in_the_order_people_count_in(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    client.kv.mset({f"article:{number}:{what}": 1 for number in (1, 2, 10, 19, 20) for what in ("title", "views")})
    page = look(server).open("keys")
    page.get_by_text("article:", exact=True).click()
    expect(page.locator(".prefix")).to_have_text(["article:", "1:", "2:", "10:", "19:", "20:"])


def test_topics_are_heard(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    page = look(server).open("pubsub")
    page.get_by_label("Patterns to listen to").fill("orders.*.paid")
    page.get_by_role("button", name="Listen").click()
    expect(page.get_by_text("Listening…")).to_be_visible()
    deadline = time.monotonic() + SECONDS
    while "orders.*.paid" not in client.pubsub.topics() and time.monotonic() < deadline:
        time.sleep(0.02)
    client.pubsub.publish("orders.17.paid", {"total": 9.5})
    expect(page.get_by_role("row", name="orders.17.paid")).to_contain_text('{"total":9.5}')


def test_a_client_can_be_disconnected(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    client.kv.set("a", 1)
    page = look(server).open("clients")
    page.get_by_role("row", name="native").first.click()
    page.get_by_role("button", name="Disconnect").click()
    page.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
    expect(page.get_by_text("disconnected")).to_be_visible()
    assert client.kv.get("a").value == 1


def test_what_is_wrong_is_told_with_what_to_do(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    page = look(server).open("now")
    expect(page.get_by_text("Operations", exact=True)).to_be_visible()
    expect(page.get_by_role("region", name="Problems")).to_have_count(0)
    client.queue.create("small", max_depth=1)
    client.queue.publish("small", 1)
    problem = page.get_by_role("region", name="Problems")
    expect(problem).to_contain_text("small is full: 1 of 1")
    expect(problem).to_contain_text("Start more workers, or raise max_depth")


def test_any_command_can_be_tried(look: Look, server: ThrowawayServer, client: SynapClient) -> None:
    page = look(server).open("try")
    page.get_by_role("combobox").fill("kv.inc")
    expect(page.get_by_role("option", name="kv.incr")).to_be_visible()  # the list of commands is there
    page.get_by_role("combobox").press("Enter")
    box = page.get_by_label("Payload")
    expect(box).to_have_value('{\n  "key": "user:1"\n}')
    box.fill('{"key": "n", "amount": 41, "typo": 1}')
    expect(page.get_by_text("kv.incr doesn't know “typo”")).to_be_visible()
    box.fill('{"key": "n", "amount": 41}')
    box.press("Control+Enter")
    expect(page.get_by_label("Answer", exact=True)).to_contain_text('"value": 41')
    assert client.kv.get("n").value == 41


def test_a_redrive_reaches_a_worker(
    look: Look, server: ThrowawayServer, client: SynapClient, background: Background
) -> None:
    """Of three dead letters two are chosen; a worker gets these, and the third stays."""
    for number in range(3):
        client.queue.publish("jobs", {"n": number}, headers={"trace": f"t{number}"})
        message = client.queue.consume("jobs")
        assert message is not None
        client.queue.nack("jobs", message.message_id, requeue=False)
    done: list[int] = []

    def work(over: threading.Event) -> None:
        with SynapClient(url=server.url) as worker:
            while not over.is_set():
                message = worker.queue.consume("jobs", timeout=0.5)
                if message is not None:
                    done.append(message.message["n"])
                    worker.queue.ack("jobs", message.message_id)

    background(work)
    page = look(server).open("queues/jobs?tab=dead")
    page.get_by_role("row", name='{"n":1}').click()
    detail = page.get_by_label("Message", exact=True).first
    expect(page.get_by_text("a consumer gave it up")).to_be_visible()
    expect(page.get_by_text("t1", exact=True)).to_be_visible()
    expect(detail).to_be_visible()
    for number in (0, 2):
        page.get_by_role("row", name=f'{{"n":{number}}}').get_by_role("checkbox").check()
    page.get_by_role("button", name="Redrive 2 selected").click()
    page.get_by_role("dialog").get_by_role("button", name="Redrive", exact=True).click()
    expect(page.get_by_role("tab", name="Dead")).to_contain_text("1")
    deadline = time.monotonic() + SECONDS
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(done) == [0, 2]
    assert [letter.message for letter in client.queue.peek("jobs.dlq").messages] == [{"n": 1}]


@pytest.mark.parametrize("kind", ["purge", "delete"])
def test_what_destroys_wants_its_name_typed(
    look: Look, server: ThrowawayServer, client: SynapClient, kind: str
) -> None:
    for number in range(3):
        client.queue.publish("precious", number)
    page = look(server).open("queues/precious")
    page.get_by_role("button", name=kind.capitalize()).click()
    confirm = page.get_by_role("dialog").get_by_role("button", name=kind.capitalize(), exact=True)
    expect(confirm).to_be_disabled()
    page.get_by_role("dialog").get_by_role("textbox").fill("preciou")
    expect(confirm).to_be_disabled()
    page.get_by_role("dialog").get_by_role("textbox").fill("precious")
    confirm.click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    left: Any = client.queue.stats("precious").depth if kind == "purge" else client.queue.list()
    assert left == (0 if kind == "purge" else [])
