"""One synchronous client shared by many threads, and by a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, List

import pytest

from synap import SynapClient
from synap.testing import ThrowawayServer
from tests.helpers.patience import PATIENCE

THREADS = 16
CALLS = 200


def test_threads_share_a_client_and_get_their_own_answers(url: str, transport: str, name: str) -> None:
    with SynapClient(url=url, transport=transport, pool_size=4) as client:
        client.kv.mset({f"{name}:{number}": number for number in range(THREADS * CALLS)})
        together = threading.Barrier(THREADS)

        def work(thread: int) -> None:
            together.wait()
            for step in range(CALLS):
                number = thread * CALLS + step
                assert client.kv.get(f"{name}:{number}").value == number
                client.kv.incr(f"{name}:count")

        with ThreadPoolExecutor(THREADS) as pool:
            for outcome in [pool.submit(work, thread) for thread in range(THREADS)]:
                outcome.result()
        assert client.kv.get(f"{name}:count").value == THREADS * CALLS


def test_threads_that_wait_hold_up_no_other(url: str, transport: str, name: str) -> None:
    with SynapClient(url=url, transport=transport, pool_size=4) as client:
        got: List[Any] = []

        def wait() -> None:
            message = client.queue.consume(name, timeout=PATIENCE)
            assert message is not None
            got.append(message.message)
            client.queue.ack(name, message.message_id)

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        for number in range(8):
            client.kv.incr(name)
            client.queue.publish(name, number)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(got) == list(range(8))
        assert client.queue.stats(name).acked_total == 8


def test_what_one_thread_took_another_acknowledges_by_its_id_as_plain_text(url: str, transport: str, name: str) -> None:
    with SynapClient(url=url, transport=transport) as client, ThreadPoolExecutor(4) as threads:
        together = threading.Barrier(4)

        def take(number: int) -> str:
            client.queue.publish(name, number)
            together.wait(PATIENCE)
            message = client.queue.consume(name, timeout=PATIENCE)
            assert message is not None
            return "".join(message.message_id)

        for taken in list(threads.map(take, range(4))):
            client.queue.ack(name, taken)
        assert client.queue.stats(name).acked_total == 4


def test_more_consumers_than_the_pool_has_places_leave_it_as_it_was(server: ThrowawayServer, name: str) -> None:
    with SynapClient(url=server.url, transport="native", pool_size=4) as client, ThreadPoolExecutor(8) as threads:
        taken = []
        for _ in range(3):
            waits = [threads.submit(client.queue.consume, name, timeout=PATIENCE) for _ in range(8)]
            while name not in client.queue.list() or client.queue.stats(name).consumers < 8:
                pass
            for number in range(8):
                client.queue.publish(name, number)
            taken += [
                message.message_id for message in [wait.result(PATIENCE) for wait in waits] if message is not None
            ]
        before = client.stats()["lanes"]["native"]
        assert len(taken) == 24
        for message_id in taken:  # also what came by places that are gone
            client.queue.ack(name, "".join(message_id))
        assert client.stats()["lanes"]["native"] == before


def test_closing_while_a_thread_waits_ends_the_wait(url: str, transport: str, name: str) -> None:
    client = SynapClient(url=url, transport=transport)
    ended = threading.Event()

    def wait() -> None:
        try:
            client.queue.consume(name, timeout=PATIENCE)
        except Exception:
            pass
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    with SynapClient(url=url, transport=transport) as other:
        while name not in other.queue.list() or other.queue.stats(name).consumers == 0:
            pass
        client.close()
        assert ended.wait(PATIENCE)
        thread.join()


FORKING = """
import os, sys
from synap import SynapClient

client = SynapClient(url=sys.argv[1], transport=sys.argv[2], retries=0)
name = sys.argv[3]
for number in range(20):
    client.kv.set(f"{name}:{number}", number)
seen = []
client.pubsub.subscribe([name], lambda topic, message: seen.append(message))
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        for number in range(20):
            assert client.kv.get(f"{name}:{number}").value == number
            client.kv.incr(f"{name}:count")
        client.close()
        os._exit(0)
    children.append(pid)
for number in range(20):
    assert client.kv.get(f"{name}:{number}").value == number
    client.kv.incr(f"{name}:count")
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
assert client.kv.get(f"{name}:count").value == 100
assert client.pubsub.publish(name, "still there").subscribers_matched == 1
while not seen:
    pass
client.close()
print("well")
"""

FORKING_ASYNC = """
import asyncio, os, sys
from synap import AsyncSynapClient

name = sys.argv[3]
client = AsyncSynapClient(url=sys.argv[1], transport=sys.argv[2], retries=0)

async def use():
    for number in range(20):
        await client.kv.set(f"{name}:{number}", number)
        assert (await client.kv.get(f"{name}:{number}")).value == number
        await client.kv.incr(f"{name}:count")

loop = asyncio.new_event_loop()
loop.run_until_complete(use())
pid = os.fork()
if pid == 0:
    # The fork has the parent's client and makes an event loop of its own.
    asyncio.run(use())
    os._exit(0)

async def parent():
    await use()
    assert os.waitpid(pid, 0)[1] == 0
    await use()
    assert (await client.kv.get(f"{name}:count")).value == 80
    await client.close()
    print("well")

loop.run_until_complete(parent())
loop.close()
"""


@pytest.mark.parametrize("program", [FORKING, FORKING_ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("lane", ["native", "websocket"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_connects_anew_and_leaves_the_parents_connection_alone(
    request: pytest.FixtureRequest, lane: str, name: str, program: str
) -> None:
    url = request.getfixturevalue("server").url
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, url, lane, name],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
