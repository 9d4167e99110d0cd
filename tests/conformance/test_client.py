"""The client itself: its beginning, its end, and what it is told."""

from __future__ import annotations

import asyncio
from typing import Any, Dict

import pytest

from synap import AsyncSynapClient, ClientConfig, SynapClient, SynapError
from tests.conformance.conftest import Make
from tests.conformance.targets import Target
from tests.helpers.colour import in_thread
from tests.helpers.patience import PATIENCE


async def test_ping_gives_seconds(client: AsyncSynapClient) -> None:
    seconds = await client.ping()
    assert isinstance(seconds, float)
    assert 0 < seconds < 30


async def test_health_says_that_all_is_well(client: AsyncSynapClient) -> None:
    assert (await client.health())["status"] == "ok"


async def test_stats_are_figures_by_name(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, 1)
    stats = await client.stats()
    assert isinstance(stats, dict)
    assert stats["requests_total"] >= 1


async def test_connect_may_be_called_first_and_again(client: AsyncSynapClient, name: str) -> None:
    await client.connect()
    await client.connect()
    assert await client.kv.incr(name) == 1


async def test_a_client_is_a_context_manager(make: Make, name: str) -> None:
    async with make() as client:
        await client.kv.set(name, "value")
        assert (await client.kv.get(name)).value == "value"


async def test_close_may_be_called_twice(client: AsyncSynapClient, name: str) -> None:
    await client.kv.exists(name)
    await client.close()
    await client.close()


async def test_a_client_that_never_called_can_be_closed(client: AsyncSynapClient) -> None:
    await client.close()


async def test_a_config_and_options_make_the_same_client(target: Target, url: str, name: str) -> None:
    config = ClientConfig(url=url, **target.options)
    if target.colour == "sync":

        def use() -> None:
            with SynapClient(config) as client:
                assert client.kv.incr(name) == 1

        await in_thread(use)
    else:
        async with AsyncSynapClient(config) as client:
            assert await client.kv.incr(name) == 1


@pytest.mark.only("memory")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "htp://localhost"}, "http://"),
        ({"url": "localhost:15500"}, "http://"),
        ({"url": "http://user:secret@localhost"}, "api_key"),
        ({"url": "http://localhost/path"}, "path"),
        ({"tiemout": 3}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "fast"}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"pool_size": 0}, "pool_size"),
        ({"format": "xml"}, "msgpack"),
        ({"transport": "carrier pigeon"}, "native"),
    ],
    ids=str,
)
async def test_an_option_that_cannot_be_is_refused_by_name(make: Make, options: Dict[str, Any], said: str) -> None:
    with pytest.raises(SynapError) as caught:
        make(**options)
    assert caught.value.code == "INVALID_REQUEST"
    assert said in caught.value.message
    assert "secret" not in str(caught.value)


@pytest.mark.only("memory")
async def test_a_private_memory_is_private(make: Make, name: str) -> None:
    one, two = make(url="memory://"), make(url="memory://")
    await one.kv.set(name, 1)
    assert not (await two.kv.get(name)).found


@pytest.mark.only("memory")
async def test_a_named_memory_is_shared_by_name(make: Make, name: str) -> None:
    one, two, three = make(), make(), make(url=f"memory://{name}-another")
    await one.kv.set(name, 1)
    assert (await two.kv.get(name)).value == 1
    assert not (await three.kv.get(name)).found


@pytest.mark.only("memory", "file")
async def test_both_colours_share_what_is_in_this_process(make: Make, url: str, target: Target, name: str) -> None:
    await make().kv.set(name, "shared")

    def look() -> None:
        with SynapClient(url=url) as client:
            assert client.kv.get(name).value == "shared"

    await in_thread(look)


@pytest.mark.only("file")
async def test_a_file_keeps_everything_from_client_to_client(make: Make, name: str) -> None:
    first = make()
    await first.kv.set(name, {"kept": True}, ttl=600)
    await first.queue.publish(name, "leased")
    await first.queue.publish(name, "ready")
    message = await first.queue.consume(name)
    assert message is not None
    await first.stream.publish(name, "type", "event")
    await first.close()
    second = make()
    found = await second.kv.get(name)
    assert found.value == {"kept": True}
    assert found.ttl in range(590, 601)
    stats = await second.queue.stats(name)
    assert (stats.depth, stats.pending) == (1, 1)
    await second.queue.ack(name, message.message_id)
    assert (await second.stream.history(name)).events[0].data == "event"


@pytest.mark.without("crashing")
async def test_many_calls_at_once_get_their_own_answers(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{number}": number for number in range(200)})
    results = await asyncio.gather(*(client.kv.get(f"{name}:{number}") for number in range(200)))
    assert [result.value for result in results] == list(range(200))


@pytest.mark.without("crashing")
async def test_a_waiting_call_holds_up_no_other(client: AsyncSynapClient, name: str) -> None:
    waiting = [asyncio.create_task(client.queue.consume(name, timeout=PATIENCE)) for _ in range(12)]
    for _ in range(20):
        await client.kv.incr(name)
    await client.batch([{"command": "queue.publish", "payload": {"queue": name, "message": 1}}] * 12)
    messages = await asyncio.gather(*waiting)
    assert all(message and message.message == 1 for message in messages)


@pytest.mark.only("async")
@pytest.mark.without("crashing")
async def test_a_cancelled_call_disturbs_no_other(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({f"{name}:{number}": number for number in range(100)})
    calls = [asyncio.ensure_future(client.kv.get(f"{name}:{number}")) for number in range(100)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    for number, result in enumerate(results):
        if not isinstance(result, asyncio.CancelledError):
            assert not isinstance(result, BaseException)
            assert result.value == number
    assert (await client.kv.get(f"{name}:7")).value == 7
