"""Time is kept to: timeouts, closing, pauses between tries, whatever a peer does or doesn't."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from typing import Iterator, List

import pytest

import synap
from synap import AsyncSynapClient, ClientConfig, SynapClient, SynapError
from synap.client.retry import RetryPolicy
from synap.testing import ThrowawayServer
from tests.client.conftest import Make
from tests.helpers.dead_address import dead_address
from tests.helpers.fault_proxy import Fault, FaultProxy
from tests.helpers.patience import PATIENCE, Stopwatch, impatient
from tests.helpers.scripted import Peer, ScriptedService, name_of

LANES = ["native", "websocket"]
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def hole() -> Iterator[str]:
    """The URL of an address that takes no connection and refuses none: its queue is full."""
    with dead_address() as (host, port):
        yield f"http://{host}:{port}"


def silent(peer: Peer) -> None:
    """Agree, and answer nothing."""
    peer.hello()
    while True:
        peer.frame()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_timeout_fires_while_signals_arrive() -> None:
    before = signal.signal(signal.SIGALRM, lambda number, stack: None)
    try:
        with ScriptedService(silent) as service, SynapClient(service.url, retries=0) as client:
            client.connect()
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            with impatient(client, 3), pytest.raises(synap.TimeoutError):
                client.kv.get("key")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, sys
from synap import SynapClient, TimeoutError
url, lane = sys.argv[1:]
client = SynapClient(url, timeout=60, retries=0, transport=lane)
client.kv.set("gevent", 1)
gevent.sleep(1.2)
assert client.kv.get("gevent").value == 1, "after an idle second"
got = []
subscription = client.pubsub.subscribe(["gevent"], lambda topic, message: got.append(message))
jobs = [gevent.spawn(client.kv.incr, "n") for _ in range(50)]
gevent.joinall(jobs, timeout=60, raise_error=True)
assert sorted(job.value for job in jobs)[-1] >= 50
client.pubsub.publish("gevent", "hello")
with gevent.Timeout(60):
    while not got: gevent.sleep(0.01)
other = SynapClient(url, transport=lane)
gevent.spawn_later(0.1, other.queue.publish, "gevent", "from another")
assert client.queue.consume("gevent", timeout=60).message == "from another", "others had no turn while a call waited"
subscription.unsubscribe()
client.close()
other.close()
print("fine")
"""


@pytest.mark.skipif("free-threading" in sys.version, reason="gevent has no release for it yet")
@pytest.mark.parametrize("lane", LANES)
def test_under_gevent_calls_wait_in_time_and_let_others_run(server: ThrowawayServer, lane: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNDER_GEVENT, server.url, lane],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("lane", ["auto", *LANES])
async def test_a_timeout_bounds_addresses_retries_and_lanes_together(make: Make, hole: str, lane: str) -> None:
    client = make(hole, timeout=4, retries=5, transport=lane)
    with Stopwatch() as watch, pytest.raises(synap.ConnectionError):
        await client.kv.get("key")
    assert watch.seconds < 20  # six timeouts would be 24 seconds


@pytest.mark.parametrize("timeout", [3e6, 1e12, 1e300])
async def test_a_timeout_may_be_as_long_as_one_likes(make: Make, timeout: float) -> None:
    """A system call takes 24 days at most."""

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if name_of(request) == "kv.incr":
                peer.answer(request, {"value": 1})
            else:
                peer.answer(request, {"subscription_id": 1, "topics": ["topic"]})

    with ScriptedService(script) as service:
        client = make(service.url.replace("127.0.0.1", "localhost"), timeout=timeout)
        assert await client.kv.incr("n") == 1
        await client.pubsub.subscribe(["topic"])


async def test_retries_that_would_begin_too_late_are_not_made(make: Make) -> None:
    with Stopwatch() as watch, pytest.raises(synap.ConnectionError):
        await make(NOWHERE, timeout=0.5, retries=1000, retry_delay=0.05, retry_backoff=1).kv.get("key")
    assert watch.seconds < 20  # a thousand retries would be 50 seconds


@pytest.mark.parametrize("lane", LANES)
async def test_close_does_not_wait_for_an_attempt_to_connect(hole: str, lane: str) -> None:
    client = AsyncSynapClient(hole, timeout=600, transport=lane)
    call = asyncio.ensure_future(client.kv.get("key"))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(SynapError, match="client is closed"):
        await call


@pytest.mark.parametrize("lane", LANES)
def test_close_of_a_sync_client_ends_another_thread_s_attempt_to_connect(hole: str, lane: str) -> None:
    client = SynapClient(hole, timeout=600, transport=lane)
    raised: List[BaseException] = []

    def call() -> None:
        try:
            client.kv.get("key")
        except SynapError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not client._calls._lanes:
        time.sleep(0.001)
    client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert "client is closed" in str(raised[0])


def test_the_defaults_outlive_a_graceful_restart() -> None:
    attempts = range(ClientConfig().retries)
    policy = RetryPolicy(ClientConfig(), chance=lambda: 0.0)
    assert sum(map(policy.backed_off, attempts)) == pytest.approx(12.7)
    policy = RetryPolicy(ClientConfig(), chance=lambda: 1.0)
    assert sum(map(policy.backed_off, attempts)) == pytest.approx(6.35)


async def test_a_client_with_the_defaults_outlives_two_seconds_without_a_service(server: ThrowawayServer) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        client = AsyncSynapClient(proxy.url)
        await client.queue.publish("jobs", "job")
        message = await client.queue.consume("jobs")
        assert message is not None
        proxy.fail(up=Fault(cut=0), down=Fault(cut=0))
        asyncio.get_running_loop().call_later(2, proxy.heal)
        await client.queue.ack("jobs", message.message_id)
        await client.close()


async def test_a_subscriber_does_not_come_running_back_to_a_service_that_cuts_it_off(make: Make) -> None:
    """Each handshake works, and each connection is lost right after it."""

    def script(peer: Peer) -> None:
        peer.hello()
        peer.answer(peer.request(), {"subscription_id": 1, "room": "room", "next_offset": 0})

    with ScriptedService(script) as service:
        client = make(service.url, retry_delay=0.05, retries=0)
        began = time.monotonic()
        await client.stream.subscribe("room", print)
        while len(service.peers) < 7:
            await asyncio.sleep(0.01)
        assert time.monotonic() - began > 0.7  # 0.05, 0.1, 0.2, 0.4, 0.8 seconds, each half of it at least
        await client.close()
