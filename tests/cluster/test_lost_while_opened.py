"""A connection may end before whoever opened it goes on: before Python 3.12, `asyncio.wait_for` resumes its caller some
iterations of the loop after what it waited for. Such a connection must not be kept."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Callable, List

import pytest
from pytest_asyncio import fixture as async_fixture

from synap.cluster.channels import Channels
from synap.cluster.link import Link
from synap.cluster.node import Lost, Node
from synap.cluster.options import EngineOptions
from tests.cluster.asking import result
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted_node import Command, ScriptedNode


class LateLoop:
    """An event loop in which those that open a connection go on, where `late`, only after it has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.late = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    async def create_connection(self, make: Callable[[], Any], *arguments: Any, **given: Any) -> Any:
        lost = asyncio.Event()

        def watched() -> Any:
            protocol = make()
            connection_lost = protocol.connection_lost

            def noted(error: Any) -> None:
                connection_lost(error)
                lost.set()

            protocol.connection_lost = noted
            return protocol

        late = self.late
        made = await self.loop.create_connection(watched, *arguments, **given)
        if late:
            await asyncio.wait_for(lost.wait(), PATIENCE)
        return made


@async_fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with ScriptedNode() as node:
        yield node


@async_fixture
async def link(node: ScriptedNode) -> AsyncIterator[Link]:
    link = Link(EngineOptions((node.address,), durability="none", patience=PATIENCE, partitions=1))
    await link.open()
    yield link
    await link.close()


def subscribed(command: Command) -> bytes:
    """Confirm a subscription."""
    return b"*3\r\n$10\r\nssubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(command[1]), command[1])


@pytest.mark.parametrize("last_words", [b"", b"-ERR max number of clients reached\r\n"])
async def test_a_connection_for_hints_that_ends_at_once_is_opened_again(
    node: ScriptedNode, link: Link, last_words: bytes
) -> None:
    channels = Channels(link, lambda *_: None, lambda *_: None)
    loop: Any = LateLoop(link.loop)
    link.loop = loop
    node.welcome, node.last_words = False, last_words
    node.script = subscribed
    listening = channels.listen(0, b"c")
    while not node.refused:
        await asyncio.sleep(0.001)
    node.welcome = True
    loop.late = False
    await result(listening)
    assert channels.ready(b"c")
    channels.close()


async def test_a_connection_for_commands_that_ends_while_it_is_made_is_not_taken(
    node: ScriptedNode, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence, lost = Link._fence, Link._lost
    ended: List[Node] = []

    def noted(self: Link, node: Node) -> None:
        lost(self, node)
        ended.append(node)

    async def slow(self: Link, node: Node) -> None:
        await fence(self, node)
        if not ended:
            node.abort()
        while not ended:
            await asyncio.sleep(0)

    monkeypatch.setattr(Link, "_lost", noted)
    monkeypatch.setattr(Link, "_fence", slow)
    assert await result(link.command(0, "GET", "k")) == b"OK"
    assert [other is not ended[0] for other in link.nodes.values()] == [True]


async def test_a_connection_for_commands_that_ended_already_is_not_asked(node: ScriptedNode, link: Link) -> None:
    """What was asked on it would be waited for in vain."""
    loop: Any = LateLoop(link.loop)
    link.loop = loop
    node.welcome = False
    with pytest.raises(Lost):
        await link.connect(node.address)
    node.welcome = True
    loop.late = False
    assert await result(link.command(0, "GET", "k")) == b"OK"
