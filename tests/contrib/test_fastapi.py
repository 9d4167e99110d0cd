"""FastAPI and Starlette: the client of an application, rooms as server-sent events, workers."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from typing import Any, AsyncIterator, List

import pytest

from synap import AsyncSynapClient, QueueMessage, StreamEvent, SynapError

fastapi = pytest.importorskip("fastapi")

from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from synap.contrib import fastapi as contrib
from synap.contrib.fastapi import Synap, consumer, event_stream, synap_lifespan
from synap.testing import ThrowawayServer
from tests.helpers.patience import PATIENCE


async def served(app: Any, path: str, headers: Any = (), status: int = 200) -> AsyncIterator[str]:
    """Call an ASGI application as a server does, and yield the pieces of the body; leaving is hanging up."""
    pieces: asyncio.Queue[Any] = asyncio.Queue()
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pieces.put_nowait(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"",
        "headers": list(headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    task = asyncio.ensure_future(app(scope, receive, send))
    try:
        start = await asyncio.wait_for(pieces.get(), PATIENCE)
        assert start["status"] == status
        while True:
            message = await asyncio.wait_for(pieces.get(), PATIENCE)
            yield message["body"].decode()
            if not message.get("more_body"):
                return
    finally:
        gone.set()
        await asyncio.wait_for(task, PATIENCE)


def application(url: str, **about: Any) -> FastAPI:
    app = FastAPI(lifespan=synap_lifespan(url))

    @app.get("/value/{key}")
    async def value(key: str, synap: Synap) -> Any:
        return (await synap.kv.get(key)).value

    @app.get("/events/{room}")
    async def events(room: str, request: Request, synap: Synap) -> StreamingResponse:
        return event_stream(request, synap, room, **about)

    return app


async def test_an_endpoint_has_the_applications_client(synap_url: str, synap_client: AsyncSynapClient) -> None:
    app = application(synap_url)
    key = str(uuid.uuid4())
    await synap_client.kv.set(key, {"name": "Alice"})
    async with app.router.lifespan_context(app):
        body = [piece async for piece in served(app, f"/value/{key}")]
    assert "".join(body) == '{"name":"Alice"}'
    with pytest.raises(Exception, match="closed"):
        await app.state.synap.kv.get(key)


async def test_a_room_whose_name_is_refused_is_the_status(synap_url: str) -> None:
    app = application(synap_url)
    async with app.router.lifespan_context(app):
        body = [piece async for piece in served(app, f"/events/{'x' * 300}", status=422)]
    assert "room" in "".join(body)


async def test_events_of_a_service_that_is_away_end_at_once_and_the_browser_comes_back() -> None:
    app = FastAPI(lifespan=synap_lifespan("http://127.0.0.1:1", options={"retries": 0}))

    @app.get("/events/{room}")
    async def events(room: str, request: Request, synap: Synap) -> StreamingResponse:
        return event_stream(request, synap, room)

    async with app.router.lifespan_context(app):
        assert "".join([piece async for piece in served(app, "/events/r")]) == ""


async def test_a_room_is_sent_as_events_from_behind_the_last_one_seen(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    app = application(synap_url, replay=True)
    room = str(uuid.uuid4())
    for n in range(3):
        await synap_client.stream.publish(room, "line\nbreak", {"n": n, "text": "a\nb"})
    async with app.router.lifespan_context(app):
        seen = await first(served(app, f"/events/{room}"), 4)
        assert seen[0] == ": open\n\n"
        assert seen[1] == 'id: 0\nevent: line break\ndata: {"n":0,"text":"a\\nb"}\n\n'
        again = await first(served(app, f"/events/{room}", [(b"last-event-id", b"1")]), 2)
        assert again[1].startswith("id: 2\n")
        for nonsense in (b"9" * 5000, b"9" * 19, b"\xb2", b"-1"):  # a caller may send anything
            again = await first(served(app, f"/events/{room}", [(b"last-event-id", nonsense)]), 2)
            assert again[1].startswith("id: 0\n")


async def test_silence_is_filled_and_what_is_not_wanted_left_out(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    def only_b(event: StreamEvent) -> bool:
        return event.event_type == "b"

    app = application(synap_url, heartbeat=0.05, keep=only_b, replay=True)
    room = str(uuid.uuid4())
    await synap_client.stream.publish(room, "a", 1)
    await synap_client.stream.publish(room, "b", 2)
    async with app.router.lifespan_context(app):
        seen = await first(served(app, f"/events/{room}"), 3)
    assert seen[1:] == ["id: 1\nevent: b\ndata: 2\n\n", ": still here\n\n"]


async def first(pieces: AsyncIterator[str], count: int) -> List[str]:
    taken: List[str] = []
    async for piece in pieces:
        taken.append(piece)
        if len(taken) == count:
            break
    await pieces.aclose()  # type: ignore[attr-defined]  # it is an async generator
    return taken


async def test_a_worker_runs_beside_the_application_and_gives_back_what_fails(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    queue = str(uuid.uuid4())
    done: asyncio.Queue[Any] = asyncio.Queue()

    async def work(message: QueueMessage) -> None:
        if message.message == "bad" and message.retry_count == 0:
            raise ValueError("not yet")
        done.put_nowait((message.message, message.retry_count))

    app = FastAPI(lifespan=synap_lifespan(synap_url, workers=[consumer(queue, work, concurrency=2)]))
    await synap_client.queue.publish(queue, "good")
    await synap_client.queue.publish(queue, "bad")
    async with app.router.lifespan_context(app):
        seen = {await asyncio.wait_for(done.get(), PATIENCE) for _ in range(2)}
        while (await synap_client.queue.stats(queue)).acked_total < 2:
            await asyncio.sleep(0.01)
    assert seen == {("good", 0), ("bad", 1)}


async def test_a_message_whose_worker_is_stopped_goes_back(synap_url: str, synap_client: AsyncSynapClient) -> None:
    queue = str(uuid.uuid4())
    begun = asyncio.Event()

    async def work(message: QueueMessage) -> None:
        begun.set()
        await asyncio.Event().wait()

    app = FastAPI(lifespan=synap_lifespan(synap_url, workers=[consumer(queue, work)]))
    await synap_client.queue.publish(queue, "task")
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(begun.wait(), PATIENCE)
    message = await synap_client.queue.consume(queue, PATIENCE)
    assert message is not None
    assert message.message == "task"


async def test_an_application_ends_while_the_service_is_away() -> None:
    """Giving its message back failed, so its worker was restarted, and the application never ended."""
    begun = asyncio.Event()

    async def work(message: QueueMessage) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def cleans_up(client: AsyncSynapClient) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await client.kv.delete("running")

    with ThrowawayServer() as server:
        lifespan = synap_lifespan(
            server.url, workers=[consumer("q", work), cleans_up], options={"retries": 0, "timeout": 1.0}
        )
        app = FastAPI(lifespan=lifespan)

        async def serve() -> None:
            async with lifespan(app):
                await app.state.synap.queue.publish("q", "work")
                await begun.wait()
                server.kill()

        await asyncio.wait_for(serve(), PATIENCE)


async def test_the_deletion_of_its_queue_ends_no_consumer(
    synap_url: str, synap_client: AsyncSynapClient, caplog: pytest.LogCaptureFixture
) -> None:
    queue = str(uuid.uuid4())
    begun, end, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(message: QueueMessage) -> None:
        if message.message == "long":
            begun.set()
            await end.wait()
        else:
            done.set()

    app = FastAPI(lifespan=synap_lifespan(synap_url, workers=[consumer(queue, work, concurrency=2)]))
    await synap_client.queue.publish(queue, "long")
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(begun.wait(), PATIENCE)
        for _ in range(3):
            await synap_client.queue.delete(queue)
            while queue not in await synap_client.queue.list():  # until the other waits again
                await asyncio.sleep(0.01)
        await synap_client.queue.publish(queue, "short")
        await asyncio.wait_for(done.wait(), PATIENCE)
        end.set()
        while "redelivered" not in caplog.text:  # the first wasn't cancelled
            await asyncio.sleep(0.01)
    assert "restart" not in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks of this Python don't tell who is cancelled")
async def test_a_function_that_awaits_what_was_cancelled_is_called_again_and_ends_no_worker(
    synap_memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def cancelled(*about: object) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def work(message: QueueMessage) -> None:
        seen.put_nowait(message.retry_count)
        if not message.retry_count:
            await cancelled()

    queue = str(uuid.uuid4())
    workers = [consumer(queue, work), cancelled]
    app = FastAPI(lifespan=synap_lifespan(synap_memory_url, workers=workers))
    async with app.router.lifespan_context(app), AsyncSynapClient(synap_memory_url) as client:
        await client.queue.publish(queue, "task")
        assert [await asyncio.wait_for(seen.get(), PATIENCE) for _ in range(2)] == [0, 1]
    assert "restarted" in caplog.text


async def test_whatever_a_function_raises_it_is_called_again_and_ends_no_worker(
    synap_memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Outcome(BaseException):
        """No `Exception`."""

    seen: asyncio.Queue[int] = asyncio.Queue()

    async def work(message: QueueMessage) -> None:
        seen.put_nowait(message.retry_count)
        if not message.retry_count:
            raise Outcome

    async def other(client: AsyncSynapClient) -> None:
        raise Outcome

    queue = str(uuid.uuid4())
    app = FastAPI(lifespan=synap_lifespan(synap_memory_url, workers=[consumer(queue, work), other]))
    async with app.router.lifespan_context(app), AsyncSynapClient(synap_memory_url) as client:
        await client.queue.publish(queue, "task")
        assert [await asyncio.wait_for(seen.get(), PATIENCE) for _ in range(2)] == [0, 1]
    assert "restarted" in caplog.text


async def test_a_message_is_leased_for_longer_than_until_its_lease_is_renewed(
    synap_url: str, synap_client: AsyncSynapClient
) -> None:
    """However short the leases are that the queue gives otherwise."""
    queue = str(uuid.uuid4())
    leased: asyncio.Queue[float] = asyncio.Queue()

    async def work(message: QueueMessage) -> None:
        leased.put_nowait(message.deadline - time.time())

    await synap_client.queue.create(queue, ack_deadline=1)
    await synap_client.queue.publish(queue, "task")
    app = FastAPI(lifespan=synap_lifespan(synap_url, workers=[consumer(queue, work)]))
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(leased.get(), PATIENCE) > contrib.LEASE / 3


async def test_a_renewal_that_fails_is_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, synap_memory_url: str
) -> None:
    monkeypatch.setattr(contrib, "LEASE", 0.03)
    queue = str(uuid.uuid4())
    async with AsyncSynapClient(url=synap_memory_url) as client:
        tried = 0
        again = asyncio.Event()

        async def extend(*arguments: Any) -> None:
            nonlocal tried
            tried += 1
            if tried == 1:
                raise SynapError("SERVICE_UNAVAILABLE", "not now")
            again.set()

        monkeypatch.setattr(type(client.queue), "extend", extend)
        await client.queue.publish(queue, "task")

        async def work(message: QueueMessage) -> None:
            await again.wait()

        working = asyncio.ensure_future(consumer(queue, work)(client))
        await asyncio.wait_for(again.wait(), PATIENCE)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert "not now" in caplog.text
