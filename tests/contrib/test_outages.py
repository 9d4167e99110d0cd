"""Integrations while their service is away or their key refused: well again without a restart, and told once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List

import pytest

from synap import AsyncSynapClient, SynapClient
from synap.testing import ThrowawayServer
from synap.testing.reaper import kill_at_exit

pytest.importorskip("celery")
pytest.importorskip("channels")
pytest.importorskip("fastapi")
pytest.importorskip("socketio")
pytest.importorskip("taskiq")

import celery
from fastapi import FastAPI
from taskiq import AckableMessage, BrokerMessage
from taskiq.utils import maybe_awaitable

from synap import QueueMessage
from synap.contrib import fastapi as contrib_fastapi
from synap.contrib import sharing
from synap.contrib.celery import backend as celery_backend
from synap.contrib.channels import SynapChannelLayer
from synap.contrib.fastapi import consumer, synap_lifespan
from synap.contrib.socketio import AsyncSynapManager, SynapManager
from synap.contrib.taskiq import SynapBroadcastBroker, SynapBroker
from tests.helpers.patience import PATIENCE

KEY, ANOTHER = "the-key-of-this-test", "the-key-of-another"
TASKS = """
import celery
import synap.contrib.celery

app = celery.Celery("tasks", broker="{url}", backend="{url}")
app.conf.broker_channel_error_retry = True

@app.task(name="double")
def double(number):
    return 2 * number
"""
OPTIONS: Dict[str, Any] = {"api_key": KEY, "retries": 0, "retry_max_delay": 0.1}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PAUSE", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThrowawayServer]:
    with ThrowawayServer(data=tmp_path / "data", arguments=["--api-key", KEY]) as running:
        yield running


def restart(server: ThrowawayServer, key: str) -> None:
    server.kill()
    server.arguments[-1] = key
    server.start()


async def until(holds: Callable[[], object]) -> None:
    async def look() -> None:
        while not holds():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), PATIENCE)


def lines(caplog: pytest.LogCaptureFixture, text: str) -> List[str]:
    return [message for message in caplog.messages if text in message]


@contextlib.asynccontextmanager
async def refused_for_a_while(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture, what: str
) -> AsyncIterator[None]:
    """Have the service refuse the key until that is in the log, run the block, and take the key again."""
    restart(server, ANOTHER)
    await until(lambda: lines(caplog, f"{what} failed, retrying: ") and "UNAUTHORIZED" in caplog.text)
    yield
    restart(server, KEY)
    await until(lambda: lines(caplog, f"{what} works again"))
    said = lines(caplog, f"{what} failed")
    assert len(said) == len(set(said)), "the same is said once"


async def heard(send: Callable[[], Any], got: Callable[[], Any]) -> Any:
    """Send until something is heard: a topic's message reaches those who are subscribed."""
    hearing = asyncio.ensure_future(got())
    deadline = time.monotonic() + PATIENCE
    while not hearing.done():
        assert time.monotonic() < deadline, "nothing was heard"
        await send()
        await asyncio.wait([hearing], timeout=0.1)
    return hearing.result()


async def test_groups_and_channels_of_a_process_hear_again(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = SynapChannelLayer(server.url, options=OPTIONS)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    async with refused_for_a_while(server, caplog, "receiving from channels and groups"):
        pass
    for send in (lambda: layer.group_send("group", {"type": "m"}), lambda: layer.send(channel, {"type": "m"})):
        assert await heard(send, lambda: layer.receive(channel)) == {"type": "m"}
    await layer.close()


async def test_a_message_that_is_none_of_channels_ends_nothing(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = SynapChannelLayer(server.url, options=OPTIONS)
    channel = await layer.new_channel()
    async with AsyncSynapClient(url=server.url, **OPTIONS) as client:
        await client.pubsub.publish(f"asgi.channel.{layer.client_prefix}!", "nonsense")
    await layer.send(channel, {"type": "m"})
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"type": "m"}
    assert "can't be handed on" in caplog.text
    await layer.close()


async def test_a_socketio_server_hears_again(server: ThrowawayServer, caplog: pytest.LogCaptureFixture) -> None:
    manager = AsyncSynapManager(server.url, "s", options=OPTIONS, logger=logging.getLogger("socketio"))
    other = AsyncSynapManager(server.url, "s", options=OPTIONS, write_only=True)
    messages = manager._listen()
    first = asyncio.ensure_future(messages.__anext__())
    async with refused_for_a_while(server, caplog, "receiving from synap"):
        pass
    assert "e" in await heard(lambda: other._publish({"event": "e"}), lambda: first)
    await messages.aclose()  # type: ignore[attr-defined]  # it is an async generator
    await manager.client.close()
    await other.client.close()


async def test_a_socketio_server_with_threads_hears_again(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture
) -> None:
    manager = SynapManager(server.url, "s", options=OPTIONS, logger=logging.getLogger("socketio"))
    other = SynapManager(server.url, "s", options=OPTIONS, write_only=True)
    messages: List[Any] = []
    thread = threading.Thread(target=lambda: messages.extend(manager._listen()))
    thread.start()
    while not other.client.pubsub.stats().subscriptions:
        await asyncio.sleep(0.01)
    async with refused_for_a_while(server, caplog, "receiving from synap"):
        pass
    other._publish({"event": "e"})
    await until(lambda: messages)
    manager.client.close()
    thread.join(PATIENCE)
    assert messages
    other.client.close()


async def test_a_broadcast_listener_hears_again(server: ThrowawayServer, caplog: pytest.LogCaptureFixture) -> None:
    broker = SynapBroadcastBroker(server.url, "topic", options=OPTIONS)
    listening = broker.listen()
    first = asyncio.ensure_future(listening.__anext__())
    async with refused_for_a_while(server, caplog, "receiving from topic topic"):
        assert not first.done()
    task = BrokerMessage(task_id="1", task_name="t", message=b"work", labels={})
    assert await heard(lambda: broker.kick(task), lambda: first) == b"work"
    await listening.aclose()
    await broker.shutdown()


async def test_a_task_that_is_done_during_an_outage_is_acknowledged_after_it(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture
) -> None:
    broker = SynapBroker(server.url, "tasks", options=OPTIONS)
    await broker.kick(BrokerMessage(task_id="1", task_name="t", message=b"work", labels={}))
    listening = broker.listen()
    held = await asyncio.wait_for(listening.__anext__(), PATIENCE)
    assert isinstance(held, AckableMessage)
    server.kill()
    settling = asyncio.ensure_future(maybe_awaitable(held.ack()))
    await until(lambda: lines(caplog, "acknowledging task 1 failed, retrying: "))
    server.start()
    await asyncio.wait_for(settling, PATIENCE)
    assert (await broker.client.queue.stats("tasks")).acked_total == 1
    await listening.aclose()
    await broker.shutdown()


async def test_a_consumer_of_an_application_finishes_its_work_through_an_outage(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrib_fastapi, "WAIT", 0.2)
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: List[Any] = []

    async def work(message: QueueMessage) -> None:
        begun.set()
        await go_on.wait()
        done.append(message.message)

    workers = [consumer("queue", work, concurrency=2)]
    app = FastAPI(lifespan=synap_lifespan(server.url, workers=workers, options=OPTIONS))
    async with app.router.lifespan_context(app):
        client: AsyncSynapClient = app.state.synap
        await client.queue.publish("queue", 1)
        await asyncio.wait_for(begun.wait(), PATIENCE)
        async with refused_for_a_while(server, caplog, "consuming from queue queue"):
            go_on.set()
            await until(lambda: lines(caplog, "settling message"))
        await until(lambda: lines(caplog, "settling message")[1:])
        await client.queue.publish("queue", 2)
        await until(lambda: done == [1, 2])
        while (await client.queue.stats("queue")).acked_total < 2:
            await asyncio.sleep(0.01)
    assert done == [1, 2], "what was being handled was neither cancelled nor handled again"


async def test_who_waits_for_a_result_gets_one_that_was_announced_while_nobody_could_hear_it(
    server: ThrowawayServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_backend, "LOOK", 0.2)
    url = server.url.replace("http://", f"synap://:{KEY}@")
    app = celery.Celery("waits", broker=url, backend=url)
    app.conf.result_backend_transport_options = {"options": {"retries": 0}}
    result = app.AsyncResult(str(uuid.uuid4()))
    begun = threading.Event()
    drain = celery_backend.ResultConsumer.drain_events

    def while_it_waits(consumer: Any, timeout: float) -> None:
        begun.set()
        drain(consumer, timeout)

    monkeypatch.setattr(celery_backend.ResultConsumer, "drain_events", while_it_waits)
    waiting = asyncio.get_running_loop().run_in_executor(None, lambda: result.get(timeout=PATIENCE))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, PATIENCE)
    server.kill()
    await until(lambda: lines(caplog, "waiting for results failed, retrying: "))
    assert not waiting.done()
    server.start()
    meta = {"status": "SUCCESS", "result": 7, "traceback": None, "children": [], "task_id": result.id}
    with SynapClient(url=server.url, **{**OPTIONS, "format": "msgpack"}) as client:  # it is announced to nobody
        client.kv.set(app.backend.key_of(result.id), app.backend.encode(meta))
    assert await asyncio.wait_for(waiting, PATIENCE) == 7
    assert lines(caplog, "waiting for results works again")
    app.close()
    app.backend.client.close()


def test_a_celery_worker_that_may_tries_again_until_its_key_is_taken(server: ThrowawayServer, tmp_path: Path) -> None:
    url = server.url.replace("http://", f"synap://:{KEY}@")
    (tmp_path / "tasks.py").write_text(TASKS.format(url=url), "utf-8")
    said = tmp_path / "said"
    app = celery.Celery("sends", broker=url, backend=url)

    def works() -> bool:
        with app.connection_for_write() as connection:
            found: int = app.send_task("double", [4], connection=connection).get(timeout=PATIENCE)
        return found == 8

    with said.open("wb") as output:
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool=solo"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    kill_at_exit(process.pid)
    try:
        assert works()
        restart(server, ANOTHER)
        deadline = time.monotonic() + PATIENCE
        while "UNAUTHORIZED" not in said.read_text("utf-8"):
            assert time.monotonic() < deadline, "the worker didn't say what is wrong"
            time.sleep(0.01)
        restart(server, KEY)
        assert works()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        app.close()
        app.backend.client.close()
