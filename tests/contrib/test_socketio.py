"""python-socketio: two servers and a process that only emits, over a real service."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any, List

import pytest

socketio = pytest.importorskip("socketio")

from synap.contrib.socketio import AsyncSynapManager, SynapManager
from tests.helpers.patience import PATIENCE


async def test_what_one_server_emits_reaches_the_clients_of_the_other(synap_url: str) -> None:
    channel = f"socketio-{uuid.uuid4()}"
    managers = [AsyncSynapManager(synap_url, channel) for _ in range(2)]
    servers = [socketio.AsyncServer(client_manager=manager, async_mode="asgi") for manager in managers]
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def send_packet(eio_sid: str, packet: Any) -> None:
        sent.put_nowait((eio_sid, packet.data))  # what Engine.IO would write to a browser

    for server, manager in zip(servers, managers):
        server.eio.send_packet = send_packet
        manager.initialize()
    sid = await managers[1].connect("browser", "/")
    await managers[1].enter_room(sid, "/", "chat")
    while (await managers[0].client.pubsub.stats()).subscriptions < 2:
        await asyncio.sleep(0.01)
    await servers[0].emit("greeting", {"text": "hello"}, room="chat")
    assert await asyncio.wait_for(sent.get(), PATIENCE) == ("browser", '2["greeting",{"text":"hello"}]')

    outside = AsyncSynapManager(synap_url, channel, write_only=True)
    await outside.emit("news", {"n": 1}, room="chat")
    assert await asyncio.wait_for(sent.get(), PATIENCE) == ("browser", '2["news",{"n":1}]')
    for manager in [*managers, outside]:
        await manager.client.close()
    await asyncio.gather(*(manager.thread for manager in managers), return_exceptions=True)


def test_the_manager_with_threads_hears_what_another_publishes(synap_url: str) -> None:
    channel = f"socketio-{uuid.uuid4()}"
    listening, speaking = SynapManager(synap_url, channel), SynapManager(synap_url, channel, write_only=True)
    heard: List[Any] = []
    done = threading.Event()

    def listen() -> None:
        for message in listening._listen():
            heard.append(message)
            done.set()

    thread = threading.Thread(target=listen)
    thread.start()
    while not done.wait(0.05):  # until the subscription stands, nobody hears it
        speaking._publish({"method": "emit", "event": "e"})
    assert '"method"' in heard[0]
    listening.client.close()
    speaking.client.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
