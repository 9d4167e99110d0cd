"""Django Channels: what channels_redis's tests don't ask of a layer."""

from __future__ import annotations

import asyncio
import threading
import uuid
from types import SimpleNamespace
from typing import Any, AsyncIterator

import pytest

from synap import AsyncSynapClient, ConnectionError
from synap.testing import ThrowawayServer, plugin

pytest.importorskip("channels")

from channels.exceptions import ChannelFull

from synap.contrib import channels, inboxes
from synap.contrib.channels import SynapChannelLayer
from tests.helpers.patience import PATIENCE

a_layer = plugin.async_fixture


@a_layer
async def layers(synap_url: str) -> AsyncIterator[tuple[SynapChannelLayer, SynapChannelLayer]]:
    prefix = f"asgi-{uuid.uuid4()}"
    pair = (SynapChannelLayer(synap_url, prefix=prefix), SynapChannelLayer(synap_url, prefix=prefix, capacity=2))
    yield pair
    for layer in pair:
        await layer.close()


async def receive(layer: SynapChannelLayer, channel: str) -> object:
    return await asyncio.wait_for(layer.receive(channel), PATIENCE)


async def test_processes_send_to_each_others_channels_and_groups(
    layers: tuple[SynapChannelLayer, SynapChannelLayer],
) -> None:
    here, there = layers
    channels = [await there.new_channel() for _ in range(2)]
    await here.send(channels[0], {"type": "m", "body": b"\x00"})
    assert await receive(there, channels[0]) == {"type": "m", "body": b"\x00"}
    for channel in channels:
        await there.group_add("a.group", channel)
    await here.group_send("a.group", {"type": "all"})
    assert [await receive(there, channel) for channel in channels] == [{"type": "all"}] * 2
    await there.group_discard("a.group", channels[0])
    await here.group_send("a.group", {"type": "rest"})
    assert await receive(there, channels[1]) == {"type": "rest"}


async def test_what_a_consumer_does_to_its_message_the_others_of_its_group_do_not_see(
    layers: tuple[SynapChannelLayer, SynapChannelLayer],
) -> None:
    layer, _ = layers
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "m", "list": [1]})
    got: Any = await receive(layer, channels[0])
    got["list"].append(got.pop("type"))
    assert await receive(layer, channels[1]) == {"type": "m", "list": [1]}


async def test_who_comes_after_an_outage_is_not_told_of_it(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who subscribed during it had gone before that failed."""
    layer, _ = layers
    background = layer._running()
    begun, over = threading.Event(), threading.Event()

    async def fail(topic: str, arrived: Any) -> Any:
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, over.wait, PATIENCE)
        raise ConnectionError("CONNECTION_LOST", "the service was away", {})

    with monkeypatch.context() as patched:
        patched.setattr(background, "hear", fail)
        gone = asyncio.ensure_future(layer.new_channel())
        assert await asyncio.get_running_loop().run_in_executor(None, begun.wait, PATIENCE)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        [failed] = layer._subscriptions.values()
        over.set()
        while not failed.done():  # in another event loop
            await asyncio.sleep(0.01)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "m"})
    assert await receive(layer, channel) == {"type": "m"}


async def test_flush_leaves_out_queues_that_are_gone_and_does_not_stumble_over_new_ones(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], synap_client: AsyncSynapClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = layers
    await here.send("gone", {"n": 1})
    [gone] = here._queues
    await synap_client.queue.delete(gone)
    await here.send("kept", {"n": 1})
    [kept] = here._queues - {gone}
    client = here._running().client
    ready = here._ready
    purge = type(client.queue).purge

    async def while_another_comes(queues: Any, name: str) -> int:
        await ready(client, "new")
        return await purge(queues, name)

    monkeypatch.setattr(type(client.queue), "purge", while_another_comes)
    await here.flush()
    assert (await synap_client.queue.stats(kept)).depth == 0


async def test_who_joins_a_group_while_its_last_member_leaves_gets_its_messages(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = layers
    leaving, joining = [await there.new_channel() for _ in range(2)]
    await there.group_add("group", leaving)
    background = there._running()
    run = background.run

    async def after_another_thread_joins(work: Any) -> Any:
        monkeypatch.setattr(background, "run", run)
        await there.group_add("group", joining)
        return await run(work)

    monkeypatch.setattr(background, "run", after_another_thread_joins)
    await there.group_discard("group", leaving)
    await here.group_send("group", {"type": "m"})
    assert await receive(there, joining) == {"type": "m"}


async def test_a_channel_of_workers_gives_each_message_to_one_and_keeps_it_until_then(
    layers: tuple[SynapChannelLayer, SynapChannelLayer],
) -> None:
    here, there = layers
    await there.send("thumbnails", {"n": 0})
    await there.send("thumbnails", {"n": 1})
    with pytest.raises(ChannelFull):
        await there.send("thumbnails", {"n": 2})
    seen = await asyncio.gather(receive(here, "thumbnails"), receive(there, "thumbnails"))
    assert sorted(str(message) for message in seen) == ["{'n': 0}", "{'n': 1}"]


async def test_what_has_expired_does_not_count_to_the_capacity(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel whose workers were away refused all messages until they were back."""
    _, layer = layers
    now = 1e9
    monkeypatch.setattr(channels, "time", SimpleNamespace(time=lambda: now))
    await layer.send("thumbnails", {"n": 0})
    now += 59
    await layer.send("thumbnails", {"n": 1})
    with pytest.raises(ChannelFull):
        await layer.send("thumbnails", {"n": 2})
    now += 2
    await layer.send("thumbnails", {"n": 3})
    with pytest.raises(ChannelFull):
        await layer.send("thumbnails", {"n": 4})
    assert [await receive(layer, "thumbnails") for _ in range(2)] == [{"n": 1}, {"n": 3}]


async def test_a_worker_that_takes_an_expired_message_first_loses_none_of_the_others(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, layer = layers
    now = 1e9
    monkeypatch.setattr(channels, "time", SimpleNamespace(time=lambda: now))
    await layer.send("thumbnails", {"n": 0})
    now += 59
    await layer.send("thumbnails", {"n": 1})
    now += 2
    queues = type(layer._running().client.queue)
    peek = queues.peek
    received: list[object] = []

    async def meanwhile(self: Any, queue: str, **options: Any) -> Any:
        seen = await peek(self, queue, **options)
        taken = await self.consume(queue)
        await self.ack(queue, taken.message_id)
        received.append(taken.message)
        return seen

    monkeypatch.setattr(queues, "peek", meanwhile)
    await layer.send("thumbnails", {"n": 2})
    assert received == [{"n": 0}]
    assert [await receive(layer, "thumbnails") for _ in range(2)] == [{"n": 1}, {"n": 2}]


async def test_what_no_layer_has_published_is_passed_over(
    layers: tuple[SynapChannelLayer, SynapChannelLayer],
    synap_client: AsyncSynapClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here, there = layers
    await here.send("thumbnails", {"n": 1})
    assert await receive(here, "thumbnails") == {"n": 1}
    [queue] = here._queues
    never = {"expires": "inf"}
    foreign: list[tuple[object, dict[str, str]]] = [
        ({"hello": "from the console"}, {}),
        ({"n": 2}, {"expires": "soon"}),
        ({"n": 3}, {"expires": "nan"}),
        ("n", never),
        (None, never),
    ]
    for message, headers in foreign:
        await synap_client.queue.publish(queue, message, headers=headers)
    await here.send("thumbnails", {"n": 4})
    assert await receive(here, "thumbnails") == {"n": 4}
    assert caplog.text.count("is no channel layer's") == len(foreign)
    await here.group_add("group", await here.new_channel())
    channel = await here.new_channel()
    await here.group_add("group", channel)
    for topic in here._subscriptions:
        for message in ("n", None, [channel], [channel, "n"], [5, {"n": 5}], [[], {"n": 6}]):
            await synap_client.pubsub.publish(topic, message)
    await there.send(channel, {"n": 7})
    await there.group_send("group", {"n": 8})
    seen = [await receive(here, channel) for _ in range(2)]
    assert sorted(map(str, seen)) == ["{'n': 7}", "{'n': 8}"]


async def test_a_channel_whose_queue_is_deleted_goes_on(
    layers: tuple[SynapChannelLayer, SynapChannelLayer], synap_client: AsyncSynapClient
) -> None:
    here, there = layers
    waiting = asyncio.ensure_future(receive(there, "thumbnails"))
    queues: list[str] = []
    while not queues:
        queues = [queue for queue in await synap_client.queue.list() if queue.startswith(there._prefix)]
        await asyncio.sleep(0.01)
    for _ in range(3):
        await synap_client.queue.delete(queues[0])
        while queues[0] not in await synap_client.queue.list():
            assert not waiting.done()
            await asyncio.sleep(0.01)
    await here.send("thumbnails", {"n": 1})
    assert await waiting == {"n": 1}


async def test_a_channel_of_workers_waits_through_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    with ThrowawayServer() as server:
        layer = SynapChannelLayer(server.url, options={"retries": 0})
        waiting = asyncio.ensure_future(receive(layer, "thumbnails"))
        async with AsyncSynapClient(url=server.url) as client:
            while not await client.queue.list():
                await asyncio.sleep(0.01)
        server.kill()
        while "retrying" not in caplog.text:
            assert not waiting.done()
            await asyncio.sleep(0.01)
        server.start()
        other = SynapChannelLayer(server.url)
        await other.send("thumbnails", {"n": 1})
        assert await waiting == {"n": 1}
        await layer.close()
        await other.close()


async def test_what_is_not_this_processs_is_refused(layers: tuple[SynapChannelLayer, SynapChannelLayer]) -> None:
    here, there = layers
    channel = await there.new_channel()
    with pytest.raises(RuntimeError, match="this process"):
        await here.group_add("group", channel)
    with pytest.raises(RuntimeError, match="this process"):
        await here.group_add("group", "thumbnails")
    with pytest.raises(TypeError):
        await here.send("no spaces", {})


async def test_a_consumer_that_goes_away_leaves_nothing_behind(
    layers: tuple[SynapChannelLayer, SynapChannelLayer],
) -> None:
    here, _ = layers
    channel = await here.new_channel()
    receiving = asyncio.ensure_future(here.receive(channel))
    while not here._inboxes:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    assert not here._inboxes


class Clock:
    """The time for inboxes, which tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(inboxes, "time", SimpleNamespace(monotonic=lambda: self.now))


async def test_channels_that_have_ended_and_what_comes_for_them_later_are_forgotten(
    synap_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 of them left 300 messages, which nobody reads any more."""
    clock = Clock(monkeypatch)
    layer = SynapChannelLayer(synap_url, prefix=f"asgi-{uuid.uuid4()}")
    ended = [await layer.new_channel() for _ in range(10)]
    living, member = [await layer.new_channel() for _ in range(2)]
    receiving = asyncio.ensure_future(receive(layer, living))
    await layer.group_add("group", member)
    for channel in ended:
        await layer.send(channel, {"type": "late"})
    while len(layer._inboxes) < len(ended) + 2:
        await asyncio.sleep(0.01)
    clock.now = 59.0
    await layer.send(ended[0], {"type": "later"})
    another = await layer.new_channel()
    await layer.send(another, {"type": "m"})
    while len(layer._inboxes) < len(ended) + 3:
        await asyncio.sleep(0.01)
    clock.now = 61.0
    latest = await layer.new_channel()
    await layer.send(latest, {"type": "m"})
    assert await receive(layer, latest) == {"type": "m"}
    assert sorted(layer._inboxes) == sorted([living, member, ended[0], latest, another])
    await layer.send(living, {"type": "m"})
    assert await receiving == {"type": "m"}
    await layer.group_send("group", {"type": "all"})
    assert await receive(layer, member) == {"type": "all"}
    await layer.close()


async def test_a_channel_from_which_nobody_receives_for_a_day_leaves_its_groups(
    synap_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that had ended without `group_discard` was a member for ever."""
    clock = Clock(monkeypatch)
    layer = SynapChannelLayer(synap_url, prefix=f"asgi-{uuid.uuid4()}")
    ended, living = [await layer.new_channel() for _ in range(2)]
    for channel in (ended, living):
        await layer.group_add("group", channel)
    await layer.group_add("left", ended)
    receiving = asyncio.ensure_future(receive(layer, living))
    while not layer._inboxes._inboxes[living].receivers:
        await asyncio.sleep(0)
    for clock.now in (86_399.0, 86_461.0):
        assert layer._inboxes.has_members("left")
        await layer.group_add("group", await layer.new_channel())
    assert not layer._inboxes.has_members("left")
    assert ended not in layer._inboxes
    while any(".left" in topic for topic in layer._subscriptions):  # in another event loop
        await asyncio.sleep(0.01)
    await layer.group_send("group", {"type": "all"})
    assert await receiving == {"type": "all"}
    await layer.close()
