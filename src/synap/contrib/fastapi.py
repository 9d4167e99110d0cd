"""FastAPI and Starlette: a client for an application's lifespan, rooms as server-sent events, background consumers.

    app = FastAPI(lifespan=synap_lifespan("http://localhost:15500"))

    @app.get("/users/{user}")
    async def user(user: str, synap: Synap) -> Any:
        return (await synap.kv.get(f"user:{user}")).value

    @app.get("/chat/{room}/events")
    async def events(room: str, request: Request, synap: Synap) -> StreamingResponse:
        return event_stream(request, synap, room)

Only the dependency `Synap` needs FastAPI itself; the rest works in Starlette too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from typing import Any, AsyncContextManager, AsyncIterator, Awaitable, Callable, Dict, Optional, Sequence

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import Annotated

from synap import (
    AsyncSynapClient,
    MessageNotFoundError,
    QueueMessage,
    QueueNotFoundError,
    StreamEvent,
    Subscription,
    SynapError,
)
from synap.contrib.sharing import WAIT, Outage, keep_leased, persistently
from synap.errors import http_status
from synap.lanes.io.aio import AsyncRaised, cancels_task

__all__ = ["Synap", "Worker", "consumer", "event_stream", "get_synap", "synap_lifespan"]

log = logging.getLogger("synap.contrib.fastapi")

Worker = Callable[[AsyncSynapClient], Awaitable[None]]
"""A background task of the application, which runs until it is cancelled."""

Lifespan = Callable[[Any], AsyncContextManager[None]]

STATE = "synap"
LEASE = 30.0
"""Seconds for which a message is leased, and its lease renewed."""


def synap_lifespan(
    url: Optional[str] = None,
    *,
    workers: Sequence[Worker] = (),
    lifespan: Optional[Lifespan] = None,
    options: Optional[Dict[str, Any]] = None,
) -> Lifespan:
    """Return a lifespan that opens a client as `app.state.synap` and closes it at shutdown.

    `url`, `options` (fields of `ClientConfig`): of the client. `workers`: background tasks such as
    `consumer("emails", send)`; one that raises is logged and restarted after a second. At shutdown they are cancelled
    and awaited. `lifespan`: your own, entered after the client is open.
    """

    @contextlib.asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        async with AsyncSynapClient(url=url, **(options or {})) as client:
            setattr(app.state, STATE, client)
            ending = asyncio.Event()
            tasks = [asyncio.ensure_future(_restarting(worker, client, ending)) for worker in workers]
            try:
                async with lifespan(app) if lifespan is not None else contextlib.AsyncExitStack():
                    yield
            finally:
                ending.set()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return run


def get_synap(connection: HTTPConnection) -> AsyncSynapClient:
    """Return the application's client; for `Depends` and for Starlette's endpoints."""
    client: AsyncSynapClient = getattr(connection.app.state, STATE)
    return client


Synap = Annotated[AsyncSynapClient, Depends(get_synap)]
"""The application's client, as a parameter of an endpoint."""


async def _restarting(worker: Worker, client: AsyncSynapClient, ending: asyncio.Event) -> None:
    while True:
        try:
            await worker(client)
            return
        except AsyncRaised as error:  # user code may raise anything: the application goes on
            if cancels_task(error):
                raise
            if ending.is_set():  # what it raised instead of its cancellation
                log.error("a worker ended with an error: %s", error, exc_info=error)
                return
            log.error("a worker ended with an error and is restarted: %s", error, exc_info=error)
            await asyncio.sleep(1)


# ---------------------------------------------------------------------------------------------- work


def consumer(queue: str, function: Callable[[QueueMessage], Awaitable[Any]], *, concurrency: int = 1) -> Worker:
    """Return a worker that calls a coroutine function for each message of a queue, `concurrency` (default 1) at a time.

    A message is acknowledged when the function returns, and requeued when it raises. Its lease is renewed meanwhile.
    """

    async def work(client: AsyncSynapClient) -> None:
        outage = Outage(log, f"consuming from queue {queue}")

        async def consume() -> None:
            while True:
                try:
                    message = await persistently(outage, client.queue.consume, queue, WAIT, LEASE)
                except QueueNotFoundError:  # it was deleted; the next call creates it again
                    continue
                if message is not None:
                    await _handle(client, queue, message, function)

        tasks = [asyncio.ensure_future(consume()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return work


async def _handle(
    client: AsyncSynapClient, queue: str, message: QueueMessage, function: Callable[[QueueMessage], Awaitable[Any]]
) -> None:
    outage = Outage(log, f"renewing a lease in queue {queue}")
    held = {message.message_id: message.message_id}
    renewal = asyncio.ensure_future(keep_leased(client, queue, LEASE, held, outage))
    try:
        try:
            await function(message)
        except BaseException as error:
            if cancels_task(error):  # the application ends
                with contextlib.suppress(SynapError):  # else it is redelivered when its lease ends
                    await client.queue.nack(queue, message.message_id)
                raise
            log.error("message %s of queue %s failed: %s", message.message_id, queue, error, exc_info=error)
            settle: Callable[..., Awaitable[object]] = client.queue.nack
        else:
            settle = client.queue.ack
        outage = Outage(log, f"settling message {message.message_id} of queue {queue}")
        await persistently(outage, settle, queue, message.message_id)
    except QueueNotFoundError:
        log.warning("the queue %s was deleted while message %s of it was handled", queue, message.message_id)
    except MessageNotFoundError:
        log.warning(
            "message %s of queue %s was not handled before its lease ended and is redelivered",
            message.message_id,
            queue,
        )
    finally:
        renewal.cancel()


# ---------------------------------------------------------------------------------------------- events


def event_stream(
    request: Request,
    client: AsyncSynapClient,
    room: str,
    *,
    from_offset: Optional[int] = None,
    replay: bool = False,
    heartbeat: float = 15.0,
    keep: Callable[[StreamEvent], bool] = lambda event: True,
) -> StreamingResponse:
    """Return a room as server-sent events, for a browser's `EventSource`.

    An event's offset is its `id`, its type the `event`, its data JSON; so a browser that reconnects continues after the
    last event it saw (`Last-Event-ID`). Otherwise the stream begins at `from_offset`, with `replay` at the oldest
    event, by default with the next one. `keep`: returns whether an event is sent, by default all are. `heartbeat`:
    seconds without an event after which a comment is sent, so that proxies keep the connection open, by default 15.

    A room's name that is refused is an `HTTPException` with status 422. While the service can't be reached the stream
    ends at once, and the browser, which would not come back after an error's status, tries again by itself.
    """
    last = request.headers.get("last-event-id", "")
    if last.isascii() and last.isdigit() and len(last) < 19:  # it is the caller's own text: an offset has 64 bits
        from_offset = int(last) + 1

    subscribe = functools.partial(client.stream.subscribe, room, from_offset=from_offset, replay=replay)
    return _Events(subscribe, functools.partial(_render, heartbeat=heartbeat, keep=keep))


class _Events(StreamingResponse):
    """Subscribes before it sends its head, while a refusal can still be its status."""

    def __init__(
        self,
        subscribe: Callable[[], Awaitable[Subscription[StreamEvent]]],
        render: Callable[[Subscription[StreamEvent]], AsyncIterator[str]],
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(), media_type="text/event-stream", headers=headers)
        self._subscribe = subscribe
        self._render = render
        self._subscription: Optional[Subscription[StreamEvent]] = None

    async def _lines(self) -> AsyncIterator[str]:
        if self._subscription is not None:
            yield ": open\n\n"
            async for text in self._render(self._subscription):
                yield text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                self._subscription = await stack.enter_async_context(await self._subscribe())
            except SynapError as error:
                if error.code in ("INVALID_PAYLOAD", "INVALID_REQUEST"):
                    raise HTTPException(http_status(error.code), error.message) from error
                if http_status(error.code) < 500:
                    raise
                log.warning("an event stream can't begin: %s", error)
            await super().__call__(scope, receive, send)


async def _render(
    subscription: Subscription[StreamEvent], heartbeat: float, keep: Callable[[StreamEvent], bool]
) -> AsyncIterator[str]:
    coming = asyncio.ensure_future(subscription.__anext__())
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=heartbeat)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                event = coming.result()
            except (StopAsyncIteration, SynapError):
                return  # the browser reconnects by itself, and gets the error then
            coming = asyncio.ensure_future(subscription.__anext__())
            if keep(event):
                yield _event(event)
    finally:
        coming.cancel()


def _event(event: StreamEvent) -> str:
    # A type is the publisher's own text: a line break in it would begin another field.
    event_type = event.event_type.replace("\r", " ").replace("\n", " ")
    return f"id: {event.offset}\nevent: {event_type}\ndata: {json.dumps(event.data, separators=(',', ':'))}\n\n"
