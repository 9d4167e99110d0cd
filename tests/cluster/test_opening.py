"""What is opened, and closed again: a host that clients in this process share, and channels."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Dict, List

import pytest

from synap import AsyncSynapClient, GetResult, SynapClient, SynapError
from synap.cluster.calls import pack
from synap.cluster.host import ClusterHost
from synap.cluster.running import in_task
from synap.cluster.topology import ANSWER
from synap.host import inprocess
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.conftest import a_space
from tests.helpers.colour import coated
from tests.helpers.patience import PATIENCE
from tests.helpers.streams import served


@pytest.mark.parametrize("others", [0, 1])
async def test_a_host_whose_opening_was_given_up_is_closed_unless_another_client_has_it(
    one_node: ThrowawayCluster, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: List[inprocess.LocalHost] = []
    begin = inprocess.LocalHost.begin

    def noted(local: inprocess.LocalHost, host: Any, close: Any, *, durable: bool) -> None:
        def and_note() -> None:
            close()
            closed.append(local)

        begin(local, host, and_note, durable=durable)

    monkeypatch.setattr(inprocess.LocalHost, "begin", noted)
    engine = a_space()
    gone, *stay = [AsyncSynapClient(url=one_node.url, engine=engine) for _ in range(1 + others)]
    given_up = asyncio.ensure_future(gone.kv.get("k"))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(client.kv.set("k", 1)) for client in stay]
    while not inprocess._opening:
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, *waiting, return_exceptions=True)
    await gone.close()
    for client in stay:
        assert (await client.kv.get("k")).value == 1
        await client.close()
    while not closed:
        await asyncio.sleep(0.01)
    assert closed[0] not in inprocess._shared.values()


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_clients_with_other_options_share_no_host(colour: str, one_node: ThrowawayCluster) -> None:
    """They shared the first one's: its space, its durability."""

    def make() -> AsyncSynapClient:
        options: Dict[str, Any] = {"url": one_node.url, "engine": a_space()}
        return AsyncSynapClient(**options) if colour == "async" else coated(SynapClient(**options))

    here, there = make(), make()
    async with here, there:
        await here.kv.set("k", 1)
        assert not (await there.kv.get("k")).found
        assert (await here.kv.get("k")).value == 1


async def test_others_are_opened_while_a_client_of_the_cluster_is_closed(one_node: ThrowawayCluster) -> None:
    """Closing waited for the event loop, which waited for it."""
    client = AsyncSynapClient(url=one_node.url, engine=a_space())
    await client.kv.set("k", 1)
    closing = asyncio.ensure_future(client.close())
    while not closing.done():
        async with AsyncSynapClient("memory://named") as other:
            await other.kv.set("k", 1)
        await asyncio.sleep(0)
    await closing


async def test_a_channel_that_is_left_before_it_is_confirmed_leaves_nothing_behind(host: ClusterHost) -> None:
    channels, place = host.channels, host.link.places.room(0, "r")[3]
    gone = channels.listen(0, place)
    channels.quit(place)
    assert not channels._waiting
    again = channels.listen(0, place)
    await in_task(again)
    assert not gone.done


async def test_a_message_that_cannot_be_read_costs_no_other(
    host: ClusterHost, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = host.channels
    taken: List[str] = []
    place = host.link.places.gateway(0, host.gateway)
    await in_task(channels.listen(0, place))
    [connection] = channels._connections.values()
    monkeypatch.setattr(host.consumers, "hint", taken.append)
    both = (b"t\xff\xfe", b"qtasks")
    connection.data_received(b"".join(pack((b"smessage", place, message)) for message in both))
    assert taken == ["tasks"]
    assert "was not taken well" in caplog.text


async def test_a_node_that_was_away_for_longer_than_the_patience_is_reached_once_it_is_back() -> None:
    """A wait that ended then withdrew from its queue in the very turn in which the connection was given up, so that no
    further one was begun, and all calls to that node waited for it."""
    with ThrowawayCluster() as cluster:
        (node,) = cluster.members
        engine = {"durability": "none"}
        async with AsyncSynapClient(url=cluster.url, engine=engine, timeout=PATIENCE, retries=0) as client:
            await client.queue.create("q")
            waits = asyncio.ensure_future(client.queue.consume("q", timeout=600))
            while (await client.queue.stats("q")).consumers == 0:
                await asyncio.sleep(0)
            (link,) = [one.host.link for one in inprocess._shared.values() if isinstance(one.host, ClusterHost)]
            link.options = dataclasses.replace(link.options, patience=0.5)
            node.kill()
            with pytest.raises(SynapError, match=r"can't be reached|not reached"):
                await waits
            cluster.spawn(node)
            found: object = SynapError("SERVICE_UNAVAILABLE", "it is starting")
            while isinstance(found, SynapError) and found.code == "SERVICE_UNAVAILABLE":
                (found,) = await asyncio.gather(client.kv.get("k"), return_exceptions=True)
            assert found == GetResult(False, None, None)


async def test_a_cluster_that_stood_still_for_a_while_is_opened_all_the_same() -> None:
    """There is no other node to ask, so it has as long as a call has."""
    with ThrowawayCluster() as cluster:
        (node,) = cluster.members
        engine = {"durability": "none", "patience": PATIENCE}
        async with AsyncSynapClient(url=cluster.url, engine=engine, retries=0, timeout=PATIENCE) as client:
            node.pause()
            getting = asyncio.ensure_future(client.kv.get("k"))
            try:
                await asyncio.sleep(2 * ANSWER)  # what it is about: that this isn't too long
                assert not getting.done()
            finally:
                node.go_on()
            assert not (await getting).found


async def test_a_node_that_says_nothing_is_said_to() -> None:
    """As behind a firewall that drops, or where `valkeys://` leads to a node without TLS."""
    async with served(lambda reader, writer: asyncio.Event().wait()) as port:
        engine = {"durability": "none", "patience": 0.1}
        async with AsyncSynapClient(url=f"valkey://127.0.0.1:{port}", engine=engine, retries=0) as client:
            with pytest.raises(SynapError, match=f"127.0.0.1:{port}: no answer in time"):
                await client.kv.get("a")
