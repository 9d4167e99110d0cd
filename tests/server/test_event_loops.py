"""The async client in other event loops than asyncio's as it is: it must make no difference."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from synap import AsyncSynapClient
from synap.testing.server import ThrowawayServer
from tests.helpers.patience import PATIENCE


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def call(client: AsyncSynapClient, number: int) -> int:
    result = await client.kv.set(f"uvloop:{number}", number)
    assert result.key == f"uvloop:{number}"
    value: int = (await client.kv.get(f"uvloop:{number}", required=True)).value  # type: ignore[assignment]
    return value


@pytest.mark.parametrize("transport", ["native", "websocket"])
def test_many_calls_some_cancelled_and_large_values(
    loop: asyncio.AbstractEventLoop, server: ThrowawayServer, transport: str
) -> None:
    async def work() -> None:
        async with AsyncSynapClient(url=server.url, transport=transport) as client:
            calls = [asyncio.ensure_future(call(client, number)) for number in range(300)]
            await asyncio.sleep(0)
            for cancelled in calls[::3]:
                cancelled.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                assert outcome == number or isinstance(outcome, asyncio.CancelledError)
            assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            large = "x" * 1_000_000
            await client.kv.set("uvloop:large", large)
            assert (await client.kv.get("uvloop:large")).value == large
            heard: list[Any] = []
            subscription = await client.stream.subscribe("uvloop", heard.append)
            for number in range(100):
                await client.stream.publish("uvloop", "n", number)
            while len(heard) < 100:
                await asyncio.sleep(0.001)
            await subscription.unsubscribe()
            assert [event.data for event in heard] == list(range(100))

    loop.run_until_complete(asyncio.wait_for(work(), PATIENCE))


def test_a_task_that_ends_the_program_ends_it(loop: asyncio.AbstractEventLoop, server: ThrowawayServer) -> None:
    client = AsyncSynapClient(url=server.url, transport="native")

    async def leave() -> None:
        await client.kv.set("uvloop:exit", 1)
        sys.exit("enough")

    async def work() -> None:
        await client.connect()
        await asyncio.gather(leave(), *(call(client, number) for number in range(20)))

    with pytest.raises(SystemExit, match="enough"):
        loop.run_until_complete(work())
    assert loop.run_until_complete(call(client, 5)) == 5
    loop.run_until_complete(client.close())


NESTED = """
import asyncio, sys
import nest_asyncio
nest_asyncio.apply()
from synap import AsyncSynapClient

async def main(url):
    async with AsyncSynapClient(url=url, transport="native") as client:
        async def plain(number):
            await client.kv.set(f"nested:{number}", number)
            return (await client.kv.get(f"nested:{number}")).value

        async def nested(number):
            await client.kv.set(f"nesting:{number}", number)
            return asyncio.get_event_loop().run_until_complete(plain(number))

        found = await asyncio.gather(*(nested(n) if n % 5 == 0 else plain(n) for n in range(100)))
        assert found == list(range(100)), found

asyncio.run(main(sys.argv[1]))
"""


def test_a_loop_that_runs_within_itself_as_in_notebooks(server: ThrowawayServer) -> None:
    # In a process of its own: nest_asyncio changes asyncio for good.
    subprocess.run([sys.executable, "-c", NESTED, server.url], check=True, timeout=PATIENCE)
