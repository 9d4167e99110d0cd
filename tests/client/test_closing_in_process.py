"""What becomes of the calls to an engine of this process while their client is closed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Callable, List

import pytest

from synap import AsyncSynapClient, SynapError
from synap.host import inprocess
from synap.host.inprocess import LocalHost
from synap.host.registry import open_engine
from synap.storage.store import Store
from synap.wire.codec import Codec
from tests.client.conftest import Make
from tests.helpers.patience import PATIENCE

WAIT = 3000.0
"""Seconds that nobody waits for."""


def lane_of(client: Any) -> Any:
    return getattr(client, "_inner", client)._calls.lane


async def failure(call: Any) -> SynapError:
    with pytest.raises(SynapError) as caught:
        await asyncio.wait_for(call, PATIENCE)
    return caught.value


async def waiting(client: Any, count: int) -> None:
    """Wait until so many of a client's requests wait for their answers."""
    attachment = lane_of(client)._attachment
    while sum(len(session.waiters) for session in attachment.sessions) < count:
        await asyncio.sleep(0.001)


async def test_a_write_that_waits_for_the_disk_may_have_happened(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path / 'data'}"
    client = make(url)
    await client.kv.set("n", 0)
    goes_on = threading.Event()
    append = Store.append

    def slow(store: Store, *arguments: Any, **options: Any) -> None:
        assert goes_on.wait(PATIENCE)
        append(store, *arguments, **options)

    monkeypatch.setattr(Store, "append", slow)
    write = asyncio.ensure_future(client.kv.incr("n"))
    await waiting(client, 1)
    read = asyncio.ensure_future(client.kv.get("n"))  # which is shown nothing that isn't on disk
    await waiting(client, 2)
    closing = asyncio.ensure_future(client.close())
    try:
        written, seen = await failure(write), await failure(read)
    finally:
        goes_on.set()
    await asyncio.wait_for(closing, PATIENCE)
    assert (written.code, written.may_have_happened) == ("CONNECTION_LOST", True)
    assert "kv.incr" in written.message
    assert "nothing" not in written.message
    assert (seen.code, seen.may_have_happened) == ("CONNECTION_LOST", False)
    assert (await make(url).kv.get("n")).value == 1


async def test_a_directory_whose_opening_was_abandoned_is_not_closed_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, goes_on, closed = threading.Event(), threading.Event(), threading.Event()
    closers: List[int] = []
    close = LocalHost.close

    def slow(*arguments: Any) -> Any:
        opening.set()
        assert goes_on.wait(PATIENCE)
        return open_engine(*arguments)

    def record(local: LocalHost) -> None:
        close(local)
        closers.append(threading.get_ident())
        closed.set()

    monkeypatch.setattr(inprocess, "open_engine", slow)
    monkeypatch.setattr(LocalHost, "close", record)
    client = AsyncSynapClient(f"file://{tmp_path / 'data'}")
    call = asyncio.ensure_future(client.kv.get("a"))
    while not opening.is_set():
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    goes_on.set()
    while not closed.is_set():
        await asyncio.sleep(0.001)
    assert closers != [threading.get_ident()]
    await client.close()


async def test_a_consume_that_waits_ends(make: Make) -> None:
    client = make("memory://")
    consume = asyncio.ensure_future(client.queue.consume("q", timeout=WAIT))
    while lane_of(client) is None or lane_of(client)._attachment is None:
        await asyncio.sleep(0.001)
    await waiting(client, 1)
    await client.close()
    error = await failure(consume)
    assert (error.code, error.may_have_happened) == ("CONNECTION_LOST", True)


class Interrupting:
    """A codec that has something done while a payload is encoded, as another thread may."""

    def __init__(self, codec: Codec, meanwhile: Callable[[], None]) -> None:
        self._codec = codec
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode_payload(self, *arguments: Any) -> bytes:
        body = self._codec.encode_payload(*arguments)
        self._meanwhile()
        return body


def closes(client: Any) -> Callable[[], None]:
    """Return what closes a client on another thread."""

    def close() -> None:
        inner = getattr(client, "_inner", None)
        if inner is None:
            closing = threading.Thread(target=lambda: asyncio.run(client.close()))
        else:
            closing = threading.Thread(target=inner.close)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()

    return close


@pytest.mark.parametrize(
    "options", [{}, {"fsync": "always"}, {"fsync": "everysec"}], ids=["memory", "always", "everysec"]
)
async def test_a_call_that_comes_too_late_does_nothing(make: Make, tmp_path: Path, options: Any) -> None:
    url = f"file://{tmp_path / 'data'}" if options else f"memory://{tmp_path.name}"
    client = make(url, **options)
    await client.kv.set("n", 0)
    attachment = lane_of(client)._attachment
    attachment.codec = Interrupting(attachment.codec, closes(client))
    error = await failure(client.kv.incr("n"))
    assert (error.code, error.may_have_happened) == ("CONNECTION_FAILED", False)
    assert error.details["closed"]
    if options:
        assert (await make(url).kv.get("n")).value == 0


async def test_a_call_that_comes_too_late_does_nothing_to_others_data(make: Make, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    client, other = make(url), make(url)
    await client.kv.set("n", 0)
    await other.kv.get("n")
    attachment = lane_of(client)._attachment
    attachment.codec = Interrupting(attachment.codec, closes(client))
    await failure(client.kv.incr("n"))
    assert (await other.kv.get("n")).value == 0


async def test_a_subscription_that_comes_too_late_is_none(make: Make, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    client, other = make(url), make(url)
    await client.kv.get("n")
    await other.kv.get("n")
    lane = lane_of(client)
    lane.codec = Interrupting(lane.codec, closes(client))
    error = await failure(client.pubsub.subscribe(["topic"], print))
    assert error.details["closed"]
    assert (await other.pubsub.publish("topic", 1)).subscribers_matched == 0


async def test_health_that_is_asked_for_too_late_is_none(make: Make) -> None:
    client = make("memory://")
    await client.kv.get("n")
    attachment = lane_of(client)._attachment
    await client.close()
    with pytest.raises(SynapError) as caught:
        attachment.health()
    assert caught.value.details["closed"]
