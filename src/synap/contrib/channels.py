"""A layer for Django Channels.

    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "synap.contrib.channels.SynapChannelLayer",
            "CONFIG": {"url": "http://localhost:15500", "options": {"api_key": "…"}},
        }
    }

Channels that a process creates with `new_channel` (one for each WebSocket), and groups, are pub/sub topics: subscribed
processes get the message, and each gets a group's message once, however many of its channels are members. Other
channels, on which workers listen, are queues: one worker gets each message, it is kept until then, and `ChannelFull` is
raised while `capacity` messages are ready.

Channels may be used from any event loop, short-lived ones of `async_to_sync` included. So the connection lives in an
event loop of its own, on a thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import itertools
import logging
import math
import os
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, Callable, Coroutine, Dict, Mapping, Optional, Set, TypeVar, Union

from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from synap import (
    AsyncSynapClient,
    MessageNotFoundError,
    PeekedMessage,
    QueueMessage,
    QueueNotFoundError,
    SynapError,
    TimeoutError,
)
from synap.client.retry import is_transient
from synap.contrib.inboxes import Inboxes
from synap.contrib.sharing import PAUSE, WAIT, Outage, topic_messages

__all__ = ["SynapChannelLayer"]

log = logging.getLogger("synap.contrib.channels")

T = TypeVar("T")


class _Background:
    """An event loop on a thread, and a client in it."""

    def __init__(self, url: Optional[str], options: Mapping[str, Any]) -> None:
        self.process = os.getpid()
        self.client = AsyncSynapClient(url=url, **{**options, "format": "msgpack"})
        self.outage = Outage(log, "receiving from channels and groups")
        self._hearing: Set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="synap channel layer", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in that loop and await its result; cancelling this cancels the coroutine."""
        return await asyncio.wrap_future(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin to run a coroutine in that loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def hear(self, topic: str, arrived: Callable[[Any], None]) -> asyncio.Task[None]:
        """Subscribe to a topic; returns a task that hands its messages on until it is cancelled."""
        subscription = await self.client.pubsub.subscribe([topic])

        async def hand_on() -> None:
            async for message in topic_messages(self.client, topic, self.outage, subscription):
                try:
                    arrived(message)
                except Exception:  # anybody may publish anything
                    log.exception("a message of topic %s can't be handed on", topic)

        task = asyncio.ensure_future(hand_on())
        self._hearing.add(task)
        task.add_done_callback(self._hearing.discard)
        return task

    async def _end(self) -> None:
        await self.client.close()
        await asyncio.gather(*self._hearing, return_exceptions=True)

    def close(self) -> None:
        """Close the client and end the thread."""
        if self._loop.is_closed() or self.process != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _expires(found: Union[QueueMessage[Any], PeekedMessage]) -> float:
    """Return when a message expires; 0 for one that no layer has published."""
    try:
        expires = float(found.headers["expires"])
    except (KeyError, ValueError):  # anybody may publish anything
        return 0.0
    return 0.0 if math.isnan(expires) or not isinstance(found.message, dict) else expires


class SynapChannelLayer(BaseChannelLayer):
    """Send messages between the processes of a Channels application.

    `url`, `options` (fields of `ClientConfig`): of the client. `prefix`: of the names of topics and queues, by default
    'asgi'. `expiry`: seconds after which an undelivered message is dropped, by default 60. `capacity`: messages that a
    channel buffers, by default 100; `channel_capacity`: the same by a pattern of channel names. `group_expiry`: seconds
    after which a channel from which nobody receives leaves its groups, by default a day. Messages are what MessagePack
    can hold, `bytes` included.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        prefix: str = "asgi",
        expiry: float = 60,
        capacity: int = 100,
        channel_capacity: Optional[Mapping[Any, int]] = None,
        group_expiry: float = 86_400,
        options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.client_prefix = uuid.uuid4().hex
        self._prefix = prefix
        self._url = url
        self._options = options or {}
        self._group_expiry = group_expiry
        self._lock = threading.Lock()
        self._background: Optional[_Background] = None
        self._reset()

    def _reset(self) -> None:
        self._inboxes = Inboxes(self.get_capacity, self.expiry, self._group_expiry, self._emptied)
        self._subscriptions: Dict[str, asyncio.Task[asyncio.Task[None]]] = {}
        self._queues: Set[str] = set()

    def _running(self) -> _Background:
        """Return the background loop, starting it first; a forked child gets its own."""
        with self._lock:
            if self._background is None or self._background.process != os.getpid():
                self._reset()
                self._background = _Background(self._url, self._options)
                atexit.register(self._background.close)
            return self._background

    # ------------------------------------------------------------------------------------------ channels

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel of this process; its messages are buffered from now on."""
        background = self._running()
        await background.run(self._subscribe(background, self._topic("channel", f"{self.client_prefix}!"), None))
        return f"{prefix}.{self.client_prefix}!{uuid.uuid4().hex}"

    async def send(self, channel: str, message: Mapping[str, Any]) -> None:
        """Send a message to a channel; raises `ChannelFull` while its queue is at capacity."""
        self.require_valid_channel_name(channel)
        background = self._running()
        if "!" in channel:
            owner = self.non_local_name(channel).rpartition(".")[2]
            await background.run(
                background.client.pubsub.publish(self._topic("channel", owner), [channel, dict(message)])
            )
            return
        try:
            await background.run(self._publish(background.client, channel, dict(message)))
        except SynapError as error:
            if error.code == "QUEUE_FULL":
                raise ChannelFull from error
            raise

    async def receive(self, channel: str) -> Any:
        """Return the next message of a channel, waiting for one."""
        self.require_valid_channel_name(channel)
        background = self._running()
        if "!" not in channel:
            return await background.run(self._consume(background.client, channel))
        assert self.non_local_name(channel).endswith(f"{self.client_prefix}!"), "the channel is another process's"
        with self._inboxes.receiving(channel) as inbox:
            await background.run(self._subscribe(background, self._topic("channel", f"{self.client_prefix}!"), None))
            return await inbox.get()

    def _topic(self, kind: str, name: str) -> str:
        return f"{self._prefix}.{kind}.{name.replace('.', ':')}"  # dots separate words, and a word may not be empty

    # ------------------------------------------------------------------------------------------ queues

    async def _ready(self, client: AsyncSynapClient, channel: str) -> str:
        """Return the name of a channel's queue, which has its capacity then."""
        queue = f"{self._prefix}.channel.{channel}"
        if queue not in self._queues:
            await client.queue.create(
                queue, max_depth=self.get_capacity(channel), dead_letter=False, max_retries=1_000_000
            )
            self._queues.add(queue)
        return queue

    async def _publish(self, client: AsyncSynapClient, channel: str, message: Dict[str, Any]) -> None:
        queue = await self._ready(client, channel)
        headers = {"expires": repr(time.time() + self.expiry)}
        try:
            await client.queue.publish(queue, message, headers=headers)
        except SynapError as error:
            if error.code != "QUEUE_FULL" or not await self._drop_expired(client, queue):
                raise
            await client.queue.publish(queue, message, headers=headers)

    async def _drop_expired(self, client: AsyncSynapClient, queue: str) -> bool:
        """Drop the oldest messages of a queue as far as they have expired; returns whether there were any."""
        now = time.time()
        try:
            oldest = (await client.queue.peek(queue, limit=1000)).messages
            expired = sum(1 for _ in itertools.takewhile(lambda one: _expires(one) <= now, oldest))
            if not expired:
                return False
            for found in await client.queue.consume_many([queue], max=expired, timeout=0):
                if _expires(found) <= now:
                    await client.queue.ack(queue, found.message_id)
                else:  # workers have come meanwhile: it is the next one's
                    await client.queue.nack(queue, found.message_id)
        except SynapError:  # such as a key that may only publish
            return False
        return True

    async def _consume(self, client: AsyncSynapClient, channel: str) -> Any:
        outage = Outage(log, f"receiving from channel {channel}")
        while True:
            try:
                queue = await self._ready(client, channel)
                found = await client.queue.consume(queue, WAIT)
                outage.over()
                if found is None:
                    continue
                await client.queue.ack(queue, found.message_id)
            except MessageNotFoundError:
                continue  # its lease expired, so another worker has it
            except QueueNotFoundError:
                self._queues.discard(queue)  # it was deleted
                continue
            except SynapError as error:
                if not is_transient(error) and not isinstance(error, TimeoutError):
                    raise
                outage.goes_on(error)
                self._queues.clear()  # which a service that keeps nothing has lost
                await asyncio.sleep(PAUSE)
                continue
            expires = _expires(found)
            if expires > time.time():
                return found.message
            if not expires:
                log.error("message %s of queue %s is no channel layer's and is dropped", found.message_id, queue)

    # ------------------------------------------------------------------------------------------ topics

    async def _subscribe(self, background: _Background, topic: str, group: Optional[str]) -> None:
        """Subscribe this process to a topic, unless it is. Runs in the background loop, like the methods below."""

        def arrived(item: Any) -> None:
            if group is None:
                channel, message = item
                if not isinstance(channel, str) or not isinstance(message, dict):
                    raise TypeError("no message of a channel layer")
                if not self._inboxes.put(channel, message):
                    log.info("channel %s is over capacity", channel)
                return
            if not isinstance(item, dict):
                raise TypeError("no message of a channel layer")
            full, members = self._inboxes.put_all(group, item)
            if full:
                log.info("%d of %d channels over capacity in group %s", full, members, group)

        def ended(task: asyncio.Task[asyncio.Task[None]]) -> None:  # whether or not somebody still waits for it
            failed = task.cancelled() or task.exception() is not None
            if failed and self._subscriptions.get(topic) is task:
                del self._subscriptions[topic]

        task = self._subscriptions.get(topic)
        if task is None:
            task = asyncio.ensure_future(background.hear(topic, arrived))
            self._subscriptions[topic] = task
            task.add_done_callback(ended)
        await asyncio.shield(task)

    async def _unsubscribe(self, topic: str, group: Optional[str] = None) -> None:
        """Unsubscribe this process from a topic, unless its group has members again."""
        member = group is not None and self._inboxes.has_members(group)
        task = None if member else self._subscriptions.pop(topic, None)
        if task is not None:
            hearing = await task
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    def _emptied(self, group: str) -> None:
        """Unsubscribe from a group whose last member was abandoned."""
        if self._background is not None:
            self._background.begin(self._unsubscribe(self._topic("group", group), group))

    # ------------------------------------------------------------------------------------------ groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this process to a group.

        Raises `RuntimeError` for a channel of another process, or one that workers share.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if not self.non_local_name(channel).endswith(f"{self.client_prefix}!"):
            raise RuntimeError(
                f"only channels that new_channel() made in this process can be in a group, not {channel}"
            )
        background = self._running()
        self._inboxes.join(group, channel)
        await background.run(self._subscribe(background, self._topic("group", group), group))

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group, if it is a member."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        background = self._running()
        if self._inboxes.leave(group, channel):
            await background.run(self._unsubscribe(self._topic("group", group), group))

    async def group_send(self, group: str, message: Mapping[str, Any]) -> None:
        """Send a message to all channels of a group. Channels at capacity don't get it."""
        self.require_valid_group_name(group)
        background = self._running()
        await background.run(background.client.pubsub.publish(self._topic("group", group), dict(message)))

    # ------------------------------------------------------------------------------------------ the layer itself

    async def flush(self) -> None:
        """Remove all channels and groups of this process, and purge its queues."""
        background = self._running()

        async def forget() -> None:
            for topic in list(self._subscriptions):
                await self._unsubscribe(topic)
            for queue in list(self._queues):  # others come while this waits
                with suppress(QueueNotFoundError):
                    await background.client.queue.purge(queue)

        await background.run(forget())
        self._inboxes.clear()

    async def close(self) -> None:
        """Close the connection and remove all channels and groups. Using the layer again opens another."""
        with self._lock:
            background, self._background = self._background, None
        if background is not None:
            atexit.unregister(background.close)
            await asyncio.get_running_loop().run_in_executor(None, background.close)
