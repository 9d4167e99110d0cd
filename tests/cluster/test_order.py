"""Calls of a partition are executed in the order in which they were made, whatever has some of them sent again."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack
from typing import Any, AsyncIterator, Callable, List

import pytest
from msgspec import Raw
from pytest_asyncio import fixture as async_fixture

from synap import AsyncSynapClient
from synap import commands as c
from synap.cluster.calls import Call
from synap.cluster.host import ClusterHost
from synap.cluster.link import Link
from synap.cluster.options import EngineOptions
from synap.cluster.order import Backlog
from synap.errors import SynapError
from synap.testing.cluster import ThrowawayCluster
from tests.cluster.asking import result
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted_node import OK, Command, ScriptedNode, moved

ALL = [b"%d" % number for number in range(12)]


class Scene:
    """A link, the node that has its one partition, and another one."""

    def __init__(self, link: Link, node: ScriptedNode, other: ScriptedNode) -> None:
        self.link = link
        self.node = node
        self.other = other
        self.calls: List[Call] = []

    def store(self, count: int) -> None:
        """Store the next numbers."""
        for _ in range(count):
            self.calls.append(self.link.command(0, "SET", "k", b"%d" % len(self.calls), changes=True))

    async def all(self) -> None:
        """Wait until all are stored."""
        for call in self.calls:
            await result(call)
        assert not self.link._backlogs
        assert self.link.calls == self.link.bytes == 0

    def hold(self, node: ScriptedNode) -> None:
        """Have a node leave calls unanswered."""
        node.script = lambda command: b""

    @staticmethod
    def refuse(node: ScriptedNode, answer: bytes, count: int) -> None:
        """Have a node refuse so many calls."""
        refused = iter([answer] * count)
        node.script = lambda command: next(refused, OK)


@async_fixture
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        node, other = [await stack.enter_async_context(ScriptedNode()) for _ in range(2)]
        link = Link(EngineOptions((node.address,), durability="none", patience=PATIENCE, partitions=1))
        await link.open()
        scene = Scene(link, node, other)
        await result(link.command(0, "GET", "k"))
        node.received.clear()
        node.taken.clear()
        yield scene
        await link.close()


async def until(true: Callable[[], Any]) -> None:
    """Wait for something, and see it though it lasts for one turn of the event loop only."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not true():
        assert loop.time() < end
        await asyncio.sleep(0)


def values(commands: List[Command]) -> List[bytes]:
    """Return what was stored."""
    return [command[2] for command in commands if command[0] == b"SET"]


async def test_what_was_under_way_on_a_lost_connection_is_sent_again_in_order(scene: Scene) -> None:
    node = scene.node
    scene.hold(node)
    scene.store(8)
    await until(lambda: len(node.received) == 8)
    node.script = lambda command: OK
    node.hang_up()
    await until(lambda: scene.link._backlogs)
    scene.store(4)
    await scene.all()
    assert values(node.taken) == ALL


@pytest.mark.parametrize("word", ["LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY", "TRYAGAIN", "NOREPLICAS", "MISCONF"])
async def test_what_a_node_refuses_for_a_while_is_sent_again_in_order(scene: Scene, word: str) -> None:
    scene.refuse(scene.node, f"-{word} not now\r\n".encode(), 8)
    scene.store(8)
    await until(lambda: scene.link._backlogs)
    scene.store(4)
    await scene.all()
    assert values(scene.node.taken) == ALL
    assert scene.link.retries == {word: 8}


@pytest.mark.parametrize("more", range(1, 5))
async def test_a_node_that_takes_calls_again_in_the_midst_of_them_gets_them_in_order(scene: Scene, more: int) -> None:
    scene.refuse(scene.node, b"-LOADING not now\r\n", 8 + more)
    scene.store(8)
    await until(lambda: scene.link._backlogs)
    scene.store(4)
    await scene.all()
    assert values(scene.node.taken) == ALL


async def test_calls_whose_partition_moved_come_in_order_with_new_ones(scene: Scene) -> None:
    node, other = scene.node, scene.other
    scene.hold(node)
    scene.store(8)
    await until(lambda: len(node.owed) == 8)
    node.script = lambda command: moved(other)
    node.owner = other.owner = other.address
    node.answer(3)
    await until(lambda: scene.link.topology.owners == [other.address])
    scene.store(4)
    node.answer(5)
    await scene.all()
    assert values(other.taken) == ALL


async def test_calls_to_a_new_node_come_after_those_that_its_predecessor_has(scene: Scene) -> None:
    node, other = scene.node, scene.other
    scene.hold(node)
    scene.store(8)
    await until(lambda: len(node.owed) == 8)
    node.owner = other.owner = other.address
    scene.link.refresh()
    await until(lambda: scene.link.topology.owners == [other.address])
    connection = scene.link.nodes[other.address] = await scene.link.connect(other.address)
    scene.store(4)
    connection.flush()
    await connection.ask("PING")  # what was sent before has come there, too
    node.script = lambda command: moved(other)
    node.answer(8)
    await scene.all()
    assert values(other.taken) == ALL


async def test_a_call_that_is_redirected_alone_comes_after_those_before_it(scene: Scene) -> None:
    node, other = scene.node, scene.other
    answers = iter([b"-TRYAGAIN some keys have moved\r\n", *[moved(other).replace(b"MOVED", b"ASK")] * 19])
    node.script = lambda command: next(answers)
    scene.store(8)
    await until(lambda: scene.link._backlogs)
    scene.store(4)
    await scene.all()
    assert values(other.taken) == ALL


async def test_calls_that_miss_the_library_come_in_order_with_new_ones(scene: Scene) -> None:
    node, missing = scene.node, iter([b"-ERR Function not found\r\n"] * 8)
    node.script = lambda command: b"" if command[0] == b"FUNCTION" else next(missing, OK)
    scene.store(8)
    await until(lambda: node.owed)
    scene.store(4)
    node.script = lambda command: OK
    node.answer(2)
    await scene.all()
    assert values(node.taken) == ALL


async def test_what_waits_for_a_commit_comes_after_what_was_refused_in_it(scene: Scene) -> None:
    node = scene.node
    scene.link.options = dataclasses.replace(scene.link.options, durability="replicated", replicas=1)
    node.hang_up()
    await until(lambda: not scene.link.nodes)
    refused = iter([b"-NOREPLICAS not now\r\n"])
    scene.hold(node)
    scene.store(4)
    await until(lambda: len(node.owed) == 5)
    scene.store(8)
    node.script = lambda command: b":1\r\n" if command[0] == b"WAIT" else next(refused, OK)
    node.answer(5)
    await scene.all()
    assert sorted(values(node.taken)) == sorted(ALL)
    assert values(node.taken)[3:] == [b"0", *ALL[4:]]  # the node took three of that commit behind the one it refused


async def test_reads_are_answered_while_writes_are_refused(scene: Scene) -> None:
    scene.node.script = lambda command: b"-NOREPLICAS not now\r\n" if command[0] == b"SET" else OK
    scene.store(1)
    for _ in range(5):
        await until(lambda: scene.link._backlogs)
        assert await result(scene.link.command(0, "GET", "k")) == b"OK"
    scene.node.script = lambda command: OK
    await scene.all()


async def test_a_call_behind_others_has_its_own_patience(scene: Scene) -> None:
    scene.node.script = lambda command: b"-LOADING not now\r\n"
    scene.store(1)
    await until(lambda: scene.link._backlogs)
    scene.link.options = dataclasses.replace(scene.link.options, patience=0.1)
    scene.store(1)
    with pytest.raises(SynapError, match="in time") as caught:
        await result(scene.calls.pop())
    assert (caught.value.code, caught.value.may_have_happened) == ("SERVICE_UNAVAILABLE", False)
    scene.node.script = lambda command: OK
    await scene.all()
    assert values(scene.node.taken) == [b"0"]


async def test_a_call_that_nobody_waits_for_any_more_is_not_sent_again(scene: Scene) -> None:
    scene.refuse(scene.node, b"-LOADING not now\r\n", 8)
    scene.store(8)
    await until(lambda: scene.link._backlogs)
    scene.store(4)
    for given_up in (10, 5, 0):
        scene.calls.pop(given_up).cancel()
    await scene.all()
    assert values(scene.node.taken) == [value for value in ALL if value not in (b"0", b"5", b"10")]


async def test_a_consume_that_ends_while_it_waits_to_be_sent_gives_its_message_back(host: ClusterHost) -> None:
    partition = host.link.places.partition("queue")
    await result(
        host.facilities.queues.publish(c.QueuePublish("queue", Raw(b"\x01")), host.memory.request("", 0, False))
    )
    backlog = host.link._backlogs[partition] = Backlog(partition)
    backlog.loading = True
    consume = host.consumers.begin(c.QUEUE_CONSUME, c.QueueConsume("queue", 0), host.memory.request("", 0, False))
    await until(lambda: backlog.calls)
    consume.cancel()
    host.link._order.loaded([partition], "")
    waiting = c.QueueConsume("queue", PATIENCE)
    (delivery,) = await result(host.consumers.begin(c.QUEUE_CONSUME, waiting, host.memory.request("", 0, False)))
    assert (delivery.answer.message, delivery.answer.retry_count) == (1, 0)


async def test_what_follows_a_call_whose_time_is_up_is_not_sent_to_a_node_that_refused_it(scene: Scene) -> None:
    scene.refuse(scene.node, b"-LOADING not now\r\n", 10)
    scene.store(8)
    await until(lambda: scene.link._backlogs)
    late = scene.calls.pop(0)
    late.deadline = scene.link.loop.time()
    with pytest.raises(SynapError, match="in time"):
        await result(late)
    await scene.all()
    assert values(scene.node.taken) == ALL[1:8]


async def test_calls_that_wait_when_the_link_is_closed_fail(scene: Scene) -> None:
    scene.node.script = lambda command: b"-LOADING not now\r\n"
    scene.store(2)
    await until(lambda: scene.link._backlogs)
    await scene.link.close()
    for call in scene.calls:
        with pytest.raises(SynapError, match="closed"):
            await result(call)


async def test_a_pipeline_is_executed_in_order_through_a_restart_of_its_node() -> None:
    with ThrowawayCluster(persistent=True) as cluster:
        engine = {"durability": "none", "partitions": 16, "patience": PATIENCE}
        async with AsyncSynapClient(url=cluster.url, engine=engine, timeout=PATIENCE) as client:
            await client.kv.set("warm", 1)
            (node,) = cluster.members
            node.pause()

            async def publish() -> None:
                async with client.pipeline() as pipeline:
                    for number in range(10):
                        pipeline.kv.set("k", number)
                        pipeline.stream.publish("room", "e", number)
                        pipeline.queue.publish("queue", number)
                        pipeline.kv.set("{queue}", number)

            publishing = asyncio.ensure_future(publish())
            await asyncio.sleep(0)
            node.kill()
            cluster.spawn(node)
            await publishing
            assert (await client.kv.get("k")).value == (await client.kv.get("{queue}")).value == 9
            assert [event.data for event in (await client.stream.history("room")).events] == list(range(10))
            assert [message.message for message in (await client.queue.peek("queue")).messages] == list(range(10))
