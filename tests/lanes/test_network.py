"""Hosts with several addresses, dead and alive: one deadline over all of them, and no socket left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from synap import AsyncSynapClient, SynapClient
from synap.errors import SynapError
from synap.lanes.io.addresses import Address, in_turns
from synap.lanes.io.network import async_network, network
from synap.testing.ports import ReservedPort
from tests.helpers.dead_address import dead_address
from tests.helpers.loops import run
from tests.helpers.patience import PATIENCE, Stopwatch

Place = Tuple[str, int]


@pytest.fixture
def hole() -> Iterator[Place]:
    """An address that takes no connection and refuses none: its queue is full."""
    with dead_address() as address:
        yield address


@pytest.fixture
def refusing() -> Iterator[Place]:
    """An address at which nobody listens, nor will as long as the test runs."""
    reserved = ReservedPort()
    yield "127.0.0.1", reserved.number
    del reserved


@pytest.fixture
def good() -> Iterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


Names = Callable[..., None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Gives the host `db.test` addresses."""
    look_up = socket.getaddrinfo

    def name(*places: Place) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

        def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
            if host == "db.test":
                if more.get("flags", 0) & socket.AI_NUMERICHOST:
                    raise socket.gaierror(socket.EAI_NONAME, "a name")
                return found
            return look_up(host, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return name


class Kept(asyncio.Protocol):
    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


def connect(colour: str, seconds: float, host: str = "db.test", port: int = 1) -> Place:
    """Connect within so many seconds; returns where to."""
    if colour == "sync":
        with network.connect(host, port, time.monotonic() + seconds, lambda: False) as sock:
            place: Place = sock.getpeername()
        return place

    async def reach() -> Place:
        kept = Kept()
        await asyncio.wait_for(async_network.connect(kept, host, port, None), seconds)
        place: Place = kept.transport.get_extra_info("peername")
        kept.transport.abort()
        await asyncio.sleep(0)
        return place

    try:
        reached: Place = run(reach())
        return reached
    except asyncio.TimeoutError:
        raise TimeoutError from None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "db.test"])
@pytest.mark.parametrize("transport", ["auto", "native", "websocket"])
def test_who_finds_no_service_on_this_machine_is_told_how_to_start_one(
    colour: str, transport: Any, host: str, refusing: Place, names: Names
) -> None:
    names(refusing, ("127.0.0.2", refusing[1]))
    url = f"http://{host}:{refusing[1]}"

    async def get() -> Any:
        async with AsyncSynapClient(url=url, transport=transport, retries=0) as client:
            return await client.kv.get("k")

    def ask() -> Any:
        if colour == "async":
            return run(get())
        with SynapClient(url=url, transport=transport, retries=0) as client:
            return client.kv.get("k")

    with pytest.raises(SynapError) as caught:
        ask()
    assert caught.value.code == "CONNECTION_FAILED"
    assert ("`synap serve` starts a service" in caught.value.message) is (host != "db.test")


def test_a_live_address_behind_dead_ones_answers_soon(colour: str, names: Names, hole: Place, good: Place) -> None:
    names(hole, hole, good)
    before = open_files()
    assert connect(colour, 600) == good
    assert open_files() <= before


def test_the_next_address_is_tried_at_once_where_one_refuses(
    colour: str, names: Names, refusing: Place, good: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap.lanes.io.network.ATTEMPT_DELAY", 60)
    names(refusing, good)
    assert connect(colour, 10) == good


def test_all_addresses_together_have_one_deadline(colour: str, names: Names, hole: Place) -> None:
    names(hole, hole, hole)
    with Stopwatch() as watch, pytest.raises(TimeoutError):
        connect(colour, 4)
    assert watch.seconds < 10  # three deadlines would be 12 seconds


def test_all_that_refuse_are_one_error(colour: str, names: Names, refusing: Place) -> None:
    names(refusing, refusing)
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(colour, 10)


def test_a_host_without_addresses_is_an_error(colour: str, names: Names) -> None:
    names()
    with pytest.raises(OSError, match="no address"):
        connect(colour, 10)


@pytest.mark.parametrize("host", ["x" * 300, "a..b", "no-such-host.invalid"])
def test_what_is_no_name_of_a_host_is_an_error(colour: str, host: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011  # the words are the system's
        connect(colour, 10, host)


def test_a_look_up_that_takes_its_time_is_in_the_deadline(colour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def getaddrinfo(*place: Any, **more: Any) -> Any:
        if more.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        over.wait(PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    end = threading.Timer(
        2.0 if colour == "async" else 30.0, over.set
    )  # an event loop waits for its threads at its end
    end.start()
    with pytest.raises(TimeoutError):
        connect(colour, 0.3)
    if colour == "sync":
        assert not over.is_set()
    over.set()
    end.cancel()


def test_a_name_is_looked_up_where_no_thread_can_be_started(
    colour: str, names: Names, good: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as many as there may be, or the interpreter ends: at its end many a program has something to say."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names(good)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert connect(colour, PATIENCE) == good


def test_an_attempt_that_nobody_wants_any_more_ends_soon(hole: Place) -> None:
    unwanted = threading.Event()
    threading.Timer(0.1, unwanted.set).start()
    with pytest.raises(TimeoutError):
        network.connect(*hole, time.monotonic() + 600, unwanted.is_set)


async def test_cancelling_leaves_no_socket_behind(names: Names, hole: Place, good: Place) -> None:
    names(hole, good, good)
    before = open_files()
    for turns in range(12):
        kept = Kept()
        connecting = asyncio.ensure_future(async_network.connect(kept, "db.test", 1, None))
        for _ in range(turns):
            await asyncio.sleep(0.03)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        if kept.transport is not None:
            kept.transport.abort()
    until = time.monotonic() + PATIENCE
    while open_files() > before + 2 and time.monotonic() < until:  # two are what the loop itself keeps
        await asyncio.sleep(0.02)
    assert open_files() <= before + 2


def test_families_are_tried_by_turns() -> None:
    def found(family: int, *hosts: str) -> List[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (host, 1)) for host in hosts]

    six, four = socket.AF_INET6, socket.AF_INET
    addresses = in_turns(found(six, "::1", "::2", "::3") + found(four, "1.1.1.1") + found(six, "::1"))
    assert [address.place[0] for address in addresses] == ["::1", "1.1.1.1", "::2", "::3"]
    assert isinstance(addresses[0], Address)
