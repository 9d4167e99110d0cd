"""Take the pictures of the console that README and docs show: `python -m tests.console.pictures`.

`python -m tests.console.pictures FOLDER` takes one of every screen, to be looked at.

A service with a small shop's worth of queues, rooms and keys runs for half a minute while the browser looks.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Page

from synap import AsyncSynapClient, SynapClient
from synap.testing.server import ThrowawayServer
from synap.worker import Worker
from tests.console.browser import Console, chromium

FOLDER = Path(__file__).parents[2] / "docs" / "console"
SECONDS = 40.0


class Picture(NamedTuple):
    """A screen as it is shown. `act`: what to do there before the picture is taken."""

    name: str
    screen: str
    dark: bool = False
    width: int = 1280
    height: int = 800
    shown: bool = False
    """Whether the docs show it."""
    act: Callable[[Page], None] = lambda page: None


def first_row(page: Page) -> None:
    page.get_by_role("grid").locator(".row.opens").nth(1).click()


def leave_the_mouse(page: Page) -> None:
    page.mouse.move(5, 790)


def open_prefix(page: Page) -> None:
    page.get_by_text("article:", exact=True).click()


def listen(page: Page) -> None:
    page.get_by_role("button", name="Listen").click()
    page.wait_for_timeout(3000)


def try_publish(page: Page) -> None:
    page.get_by_role("combobox").fill("queue.publish")
    page.get_by_role("combobox").press("Enter")
    page.get_by_role("button", name="Run").click()
    page.get_by_label("Answer", exact=True).wait_for()


PICTURES = [
    Picture("now", "now", shown=True),
    Picture("now-dark", "now", dark=True),
    Picture("queues", "queues"),
    Picture("queue", "queues/webhooks?tab=dead", shown=True, act=first_row),
    Picture("stream", "streams/chat-room-1", dark=True, shown=True, act=first_row),
    Picture("streams", "streams"),
    Picture("keys", "keys/user%3A12", shown=True, act=open_prefix),
    Picture("pubsub", "pubsub", act=listen),
    Picture("clients", "clients"),
    Picture("workers", "workers", dark=True),
    Picture("try", "try", act=try_publish),
    Picture("server", "server"),
    Picture("phone", "now", width=390, height=844, shown=True),
    Picture("phone-queue", "queues/orders", width=390, height=844, dark=True),
    Picture("phone-server", "server", width=390, height=844),
]


def fill(client: SynapClient) -> None:
    """Put in what such a service holds."""
    dice = random.Random(7)
    for name, number in (("emails", 1240), ("thumbnails", 36), ("webhooks", 12), ("reports", 3)):
        client.queue.create(name, max_retries=2)
        for at in range(number):
            order = {"id": 1000 + at, "customer": f"cust-{at % 37}", "total": round(dice.random() * 300, 2)}
            headers = {"source": "checkout", "trace": f"{dice.getrandbits(64):016x}"}
            client.queue.publish(name, order, priority=dice.choice([5, 5, 5, 8, 3]), headers=headers)
    for at in range(40):
        client.queue.publish("reminders", {"user": at}, delay=3600 + at * 60)
    for _ in range(7):
        message = client.queue.consume("webhooks")
        assert message is not None
        client.queue.nack("webhooks", message.message_id, requeue=False)
    for _ in range(200):
        text = dice.choice(["hello", "shipping today", "ok", "see the report", "on my way"])
        said = {"from": dice.choice(["Alice", "Bob", "Chen", "Dara"]), "text": text}
        client.stream.publish(
            "chat-room-1", dice.choice(["message", "message", "typing"]), said, metadata={"via": "web"}
        )
    for room in ("audit", "deployments"):
        for at in range(50):
            client.stream.publish(room, "event", {"n": at})
    client.stream.commit("audit", "archive", 37)
    client.stream.commit("audit", "alerts", 49)
    client.stream.commit("deployments", "status-page", 49)
    for at in range(120):
        client.kv.set(f"user:{at}", {"name": f"User {at}", "plan": dice.choice(["free", "pro"]), "score": at / 4})
        client.kv.set(f"session:{dice.getrandbits(40):010x}", {"user": at}, ttl=3600)
    for at in range(60):
        client.kv.set(f"article:{at}:views", at * 17)
        client.kv.set(f"article:{at}:title", f"Article {at}")
    client.kv.set("user:12", {"name": "Alice", "plan": "pro", "score": 12.0, "tags": ["beta", "eu"]}, ttl=3599)


def shop(url: str, over: threading.Event) -> None:
    """Do what the shop does all day."""
    with SynapClient(url=url) as client:
        for at in itertools.count():
            if over.wait(0.02 * random.random() * (1.3 + (at // 200) % 3)):
                return
            client.queue.publish("orders", {"id": at, "total": at / 7})
            client.kv.set("last-order", at)
            client.kv.get("last-order")
            client.stream.publish("sensors", "reading", {"n": at, "celsius": round(20 + random.random(), 2)})
            client.pubsub.publish("metrics.cpu", {"load": round(random.random(), 2)})
            if at % 20 == 0:
                client.stream.publish("chat-room-1", "message", {"from": "Alice", "text": f"order {at} is out"})


async def work(url: str, over: threading.Event) -> None:
    """Run two workers."""
    packing, drawing = (Worker(AsyncSynapClient(url=url), concurrency=size) for size in (8, 2))

    @packing.handles("orders")
    async def pack_order(order: Any) -> None:
        await asyncio.sleep(0.01)

    @drawing.handles("thumbnails")
    async def make_thumbnail(image: Any) -> None:
        await asyncio.sleep(20)

    running = [asyncio.ensure_future(worker.run(handle_signals=False)) for worker in (packing, drawing)]
    while not over.is_set():  # a thread's event
        await asyncio.sleep(0.1)
    for worker in (packing, drawing):
        worker.stop()
        worker.stop()
    await asyncio.gather(*running)


def listener(url: str, over: threading.Event) -> None:
    with SynapClient(url=url) as client:
        client.pubsub.subscribe(["metrics.#", "orders.*.paid"], lambda topic, message: None)
        client.queue.consume("invoices", timeout=SECONDS)
        over.wait()


def main(folder: Path, pictures: list[Picture]) -> None:
    """Take pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    over = threading.Event()
    with tempfile.TemporaryDirectory() as data, ThrowawayServer(data=f"{data}/shop", port=15500) as server:
        with SynapClient(url=server.url) as client:
            fill(client)
        jobs: list[tuple[Callable[..., Any], Any]] = [(shop, server.url), (shop, server.url), (listener, server.url)]
        threads = [threading.Thread(target=job, args=(url, over)) for job, url in jobs]
        threads.append(threading.Thread(target=lambda: asyncio.run(work(server.url, over))))
        for thread in threads:
            thread.start()
        try:
            with chromium() as browser:
                shoot(browser, server.url, folder, pictures)
        finally:
            over.set()
            for thread in threads:
                thread.join()


def shoot(browser: Any, url: str, folder: Path, pictures: list[Picture]) -> None:
    looks = {(picture.dark, picture.width, picture.height) for picture in pictures}
    windows = {look: Console(browser, url, dark=look[0], width=look[1], height=look[2]) for look in sorted(looks)}
    for window in windows.values():
        window.open()
    time.sleep(SECONDS)
    for picture in pictures:
        window = windows[picture.dark, picture.width, picture.height]
        page = window.open(picture.screen)
        page.wait_for_timeout(700)
        picture.act(page)
        leave_the_mouse(page)
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{picture.name}.png")
    for window in windows.values():
        window.check()
        window.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.console.pictures", description="Take the console's pictures.")
    parser.add_argument("folder", nargs="?", type=Path, help="take one of every screen, into this folder")
    given: Path | None = parser.parse_args().folder
    if given is not None:
        main(given, PICTURES)
    else:
        main(FOLDER, [picture for picture in PICTURES if picture.shown])
