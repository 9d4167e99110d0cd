"""What integrations share: a client for all threads of a process, which values count, calls of many keys, and outages.

Frameworks create a cache or session object for each thread, or for each request; connections are shared by them.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Hashable,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
    TypeVar,
)

from synap import (
    AsyncSynapClient,
    MessageNotFoundError,
    QueueNotFoundError,
    Subscription,
    SynapClient,
    SynapError,
    TopicMessage,
)

T = TypeVar("T")

TOGETHER = 1000
"""Keys, or topics, of one call: a service takes 10,000, and answers 64 MiB."""
WAIT = 30.0
"""Seconds that one call waits for messages; it is repeated until there is one."""
PAUSE = 1.0
"""Seconds until a call that failed is tried again."""

_lock = threading.Lock()
_clients: Dict[Tuple[Optional[str], Hashable], SynapClient] = {}


def _frozen(value: Any) -> Hashable:
    """Return something equal for equal options that a dictionary takes as a key."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(inner)) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    frozen: Hashable = value
    return frozen


def shared_client(url: Optional[str], options: Mapping[str, Any]) -> SynapClient:
    """Return this process's client for `url` and `options`, the fields of `ClientConfig`, creating it on first use.

    Raises `INVALID_REQUEST` for an option that doesn't exist or can't be used.
    """
    key = (url, _frozen(options))
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = SynapClient(url=url, **options)
    return client


def slices(all_of_them: Iterable[T]) -> Iterator[List[T]]:
    """Yield as many as go into one call, none where there are none."""
    items = list(all_of_them)
    return (items[first : first + TOGETHER] for first in range(0, len(items), TOGETHER))


def close_shared_clients() -> None:
    """Close all of them, as happens at exit. A later `shared_client` creates a new one."""
    with _lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        client.close()


def _forked() -> None:
    """In a forked child: another thread of its parent may have the lock."""
    global _lock
    _lock = threading.Lock()


atexit.register(close_shared_clients)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forked)


def is_counter(value: object) -> bool:
    """Return whether a cache stores `value` as an integer, so that the service can count, and not pickled.

    A bool is none, and neither are integers beyond 64 bits.
    """
    return type(value) is int and -(2**63) <= value < 2**63


class Outage:
    """Logs what is wrong once for as long as it is tried again, and once that it works again."""

    def __init__(self, log: Any, what: str) -> None:
        self._log = log
        self._what = what
        self._said: Set[str] = set()

    def goes_on(self, error: SynapError) -> None:
        """Note an error; raises it where it is for good, since the client is closed."""
        if error.details.get("closed"):
            raise error
        if error.code not in self._said:
            self._said.add(error.code)
            self._log.error("%s failed, retrying: %s", self._what, error)

    def over(self) -> None:
        """Note a success."""
        if self._said:
            self._said.clear()
            self._log.warning("%s works again", self._what)


async def persistently(outage: Outage, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Repeat a call about a queue until it is answered, also that the message or the queue is gone.

    So no error ends a consumer, whose other messages are being handled. Raises where the client is closed.
    """
    while True:
        try:
            result = await call(*arguments)
        except (MessageNotFoundError, QueueNotFoundError):
            outage.over()
            raise
        except SynapError as error:
            outage.goes_on(error)
            await asyncio.sleep(PAUSE)
        else:
            outage.over()
            return result


async def keep_leased(
    client: AsyncSynapClient, queue: str, seconds: float, held: Dict[str, str], outage: Outage
) -> None:
    """Renew the leases of messages of a queue until cancelled; `held` has the id of each with its newest lease.

    Who has lost one is told so by its acknowledgement.
    """
    while True:
        await asyncio.sleep(seconds / 3)
        for message_id in list(held.values()):
            try:
                await client.queue.extend(queue, message_id, seconds)
                outage.over()
            except (MessageNotFoundError, QueueNotFoundError):
                held.pop(message_id, None)
            except SynapError as error:
                outage.goes_on(error)


async def topic_messages(
    client: AsyncSynapClient, topic: str, outage: Outage, subscription: Optional[Subscription[TopicMessage]] = None
) -> AsyncIterator[Any]:
    """Yield a topic's messages until the client is closed; where a subscription ends with an error, make another."""
    while True:
        try:
            async with subscription or await client.pubsub.subscribe([topic]) as subscribed:
                outage.over()
                async for _, message in subscribed:
                    yield message
            return
        except SynapError as error:
            if error.details.get("closed"):
                return
            outage.goes_on(error)
        subscription = None
        await asyncio.sleep(PAUSE)
