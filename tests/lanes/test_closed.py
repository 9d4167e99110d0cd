"""A lane that was closed opens nothing any more, however late the thread comes that still uses it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Callable, Iterator, List

import pytest

from synap import AsyncSynapClient
from synap.commands import KV_GET, STREAM_SUBSCRIBE, KvGet, StreamSubscribe
from synap.config import ClientConfig, parse_url
from synap.errors import ConnectionError, SynapError
from synap.host import inprocess
from synap.lanes._async.base import AsyncLane
from synap.lanes._sync.base import Lane
from synap.lanes.inprocess.async_lane import AsyncLocalLane
from synap.lanes.inprocess.lane import LocalLane
from synap.lanes.native.async_lane import AsyncNativeLane
from synap.lanes.native.lane import NativeLane
from synap.lanes.websocket import WebSocketOpening
from synap.testing.server import ThrowawayServer, can_serve
from synap.wire.codec import JSON
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService

LANES = ["memory", "file"] + (["native", "websocket"] if can_serve() else [])


class Silent:
    """A listener that nothing is expected to reach."""

    def item(self, *arguments: Any) -> None:
        pass

    def ended(self, *arguments: Any) -> None:
        pass

    def lost(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if not can_serve():
        yield ""
        return
    with ThrowawayServer() as running:
        yield running.url


@pytest.fixture(params=LANES)
def url(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://"
    if request.param == "file":
        return f"file://{tmp_path / 'data'}"
    return server if request.param == "native" else server + "#websocket"


def sync_lane(url: str) -> Lane:
    url, _, inside = url.partition("#")
    config, target = ClientConfig(url=url), parse_url(url)
    if target.in_process:
        return LocalLane(config, target, JSON)
    return NativeLane(config, target, JSON, begin=WebSocketOpening) if inside else NativeLane(config, target, JSON)


def async_lane(url: str) -> AsyncLane:
    url, _, inside = url.partition("#")
    config, target = ClientConfig(url=url), parse_url(url)
    if target.in_process:
        return AsyncLocalLane(config, target, JSON)
    if inside:
        return AsyncNativeLane(config, target, JSON, begin=WebSocketOpening)
    return AsyncNativeLane(config, target, JSON)


def uses(lane: Lane) -> List[Callable[[], Any]]:
    """List the ways to use a lane."""

    def call() -> None:
        ticket = lane.ticket()
        try:
            lane.call(KV_GET, KvGet("k"), ticket=ticket, began=monotonic(), timeout=PATIENCE)
        finally:
            lane.drop(ticket)

    def subscribe() -> None:
        listener: Any = Silent()
        lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe("room"), listener, monotonic() + PATIENCE)

    def health() -> None:
        lane.health(monotonic() + PATIENCE)

    return [lambda: lane.connect(monotonic() + PATIENCE), call, subscribe, health]


def async_uses(lane: AsyncLane) -> List[Callable[[], Any]]:
    async def call() -> None:
        ticket = lane.ticket()
        try:
            await lane.call(KV_GET, KvGet("k"), ticket=ticket, began=monotonic(), timeout=PATIENCE)
        finally:
            lane.drop(ticket)

    async def subscribe() -> None:
        listener: Any = Silent()
        await lane.subscribe(STREAM_SUBSCRIBE, StreamSubscribe("room"), listener, monotonic() + PATIENCE)

    async def health() -> None:
        await lane.health(monotonic() + PATIENCE)

    return [lambda: lane.connect(monotonic() + PATIENCE), call, subscribe, health]


def is_closed(refused: pytest.ExceptionInfo[SynapError]) -> bool:
    return refused.value.code == "CONNECTION_FAILED" and bool(refused.value.details.get("closed"))


@pytest.mark.parametrize("way", range(4), ids=["connect", "call", "subscribe", "health"])
@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
def test_a_closed_lane_stays_closed(url: str, way: int, used: bool) -> None:
    lane = sync_lane(url)
    if used:
        uses(lane)[way]()
    lane.close()
    with pytest.raises(SynapError) as refused:
        uses(lane)[way]()
    assert is_closed(refused)


@pytest.mark.parametrize("way", range(4), ids=["connect", "call", "subscribe", "health"])
@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
async def test_a_closed_lane_stays_closed_in_an_event_loop(url: str, way: int, used: bool) -> None:
    lane = async_lane(url)
    if used:
        await async_uses(lane)[way]()
    await lane.close()
    with pytest.raises(SynapError) as refused:
        await async_uses(lane)[way]()
    assert is_closed(refused)


@pytest.mark.parametrize("way", range(4), ids=["connect", "call", "subscribe", "health"])
def test_nothing_is_left_open_by_whoever_connected_while_the_lane_was_closed(url: str, way: int) -> None:
    # What is left open fails the test, by the warning of the lane's destructor.
    lane = sync_lane(url)
    lane.connected = lane.close
    with suppress(ConnectionError):
        uses(lane)[way]()
    assert not inprocess._shared
    assert not [thread for thread in threading.enumerate() if thread.name == "synap-reader" and not ends(thread)]


def ends(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


@pytest.mark.parametrize("way", range(4), ids=["connect", "call", "subscribe", "health"])
async def test_nothing_is_left_open_where_it_is_closed_while_it_connects(url: str, way: int) -> None:
    lane = async_lane(url)
    using = asyncio.ensure_future(async_uses(lane)[way]())
    await asyncio.sleep(0)  # it has begun
    await lane.close()
    with suppress(ConnectionError):
        await asyncio.wait_for(using, PATIENCE)
    assert not inprocess._shared


def test_whoever_waits_for_room_in_the_pool_is_told_at_once(server: str) -> None:
    if not server:
        return
    lane = NativeLane(ClientConfig(url=server, pool_size=1, timeout=10 * PATIENCE), parse_url(server), JSON)
    taken = lane.ticket()
    told: List[BaseException] = []

    def wait() -> None:
        try:
            lane.ticket()
        except SynapError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not lane._queued:
        sleep(0.001)
    lane.close()
    assert ends(waiting)
    lane.drop(taken)
    assert [error.code for error in told if isinstance(error, SynapError)] == ["CONNECTION_FAILED"]


async def test_closing_a_directory_goes_on_where_waiting_for_it_is_cancelled(tmp_path: Path) -> None:
    """Also while the event loop's executor has other things to do."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        client = AsyncSynapClient(f"file://{tmp_path / 'data'}")
        await client.kv.set("key", 1)
        goes_on = threading.Event()
        busy = loop.run_in_executor(None, goes_on.wait, PATIENCE)
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        goes_on.set()
        await busy
        await loop.run_in_executor(None, int)  # whatever was in the queue before is done
        assert not inprocess._shared


async def test_a_connection_whose_peer_reads_nothing_is_aborted_also_where_waiting_for_it_is_cancelled() -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        over.wait(PATIENCE)

    with ScriptedService(script) as service:
        client = AsyncSynapClient(service.url, transport="native")
        await client.connect()
        lane: Any = client._calls.lane
        [connection] = lane._here().connections
        calls = [asyncio.ensure_future(client.kv.set("key", "x" * 9_000_000)) for _ in range(3)]
        while not connection.full:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.wait_for(asyncio.shield(connection.lost), PATIENCE)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ConnectionError}
        over.set()
