"""A transport of kombu: AMQP's exchanges and queues on Synap's queues.

Direct, topic and fanout exchanges; priorities 0 to 9, 9 first, as with RabbitMQ; messages that expire. A message is
leased while it is not acknowledged, and redelivered when its consumer dies (`visibility_timeout`, by default 60 s,
renewed while the consumer lives). Rejected without requeue it is dropped, or with `dead_letter: True` goes to
`<queue>.dlq`.

    app.conf.broker_transport_options = {"visibility_timeout": 60, "dead_letter": True, "options": {"timeout": 10.0}}
"""

from __future__ import annotations

import collections
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Deque, Dict, Iterable, List, Optional, Set, Tuple
from urllib.parse import quote

from kombu.transport import base, virtual
from kombu.utils.json import loads

import synap
from synap import MessageNotFoundError, QueueMessage, QueueNotFoundError, SynapClient, SynapError
from synap.contrib.celery.bindings import Bindings
from synap.contrib.celery.channel import Channel
from synap.contrib.celery.fetcher import Fetched, Fetcher, as_outage
from synap.contrib.celery.leases import Leases

__all__ = ["Transport", "client_url"]

log = logging.getLogger("synap.contrib.celery")

PREFETCH = 100
"""Messages leased at once by a consumer without a prefetch count."""

Wanted = Dict[str, Any]
"""Channels by the name of the queue at the service."""
Waiting = Tuple[Any, str, Dict[str, Any]]
"""A channel, a queue and a message for it."""


def client_url(scheme: str, host: Optional[str], port: Optional[int]) -> str:
    """Return the client's URL for the parts of `synap://…` or `synaps://…`."""
    return f"{'https' if scheme.endswith('s') else 'http'}://{host or 'localhost'}:{port or 15500}"


def decoded(text: Any, codecs: Any) -> Dict[str, Any]:
    """Return the message that `_put` has encoded; raises an error of any kind for anything else.

    What passes can be made a `Message` of kombu, which reports errors in its body to its consumer.
    """
    message: Dict[str, Any] = loads(text)
    properties, body = message["properties"], message["body"]
    encoding = properties.get("body_encoding") or "utf-8"
    texts = (body, encoding, message.get("content-type") or "", message.get("content-encoding") or "")
    objects = (properties, message.get("headers") or {}, properties.setdefault("delivery_info", {}))
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, dict) for one in objects):
        raise TypeError("a part of it has another type")
    if encoding.lower() != "utf-8":
        codecs[encoding].decode(body)
    return message


class Transport(virtual.Transport):
    """A connection to the service: a client, its unacknowledged messages, and the channels."""

    Channel = Channel
    default_port = 15500
    driver_type = driver_name = "synap"
    connection_errors = (*virtual.Transport.connection_errors, synap.ConnectionError)
    channel_errors = (*virtual.Transport.channel_errors, SynapError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = client.transport_options
        vhost = (client.virtual_host or "").strip("/")
        self.prefix = f"{vhost}:" if vhost else ""
        self.dead_letter = bool(options.get("dead_letter", False))
        self.process = os.getpid()
        self._configuration = {
            "url": client_url(client.transport_cls, client.hostname, client.port),
            "api_key": client.password or None,
            **options.get("options", {}),
        }
        self.synap = SynapClient(**self._configuration)
        self.bindings = Bindings(self.synap, f"kombu:{quote(vhost, safe='')}:")
        self.leases = Leases(self.synap, self.bindings, float(options.get("visibility_timeout", 60)))
        self.declared: Set[str] = set()
        """Queues that this connection has declared."""
        self.temporary: Set[str] = set()
        self.settled = threading.Event()
        """Set when a message is settled, so that another may be delivered."""
        self._waiting: Deque[Waiting] = collections.deque()
        """Leased messages that are not delivered to a consumer yet."""
        self._fetcher: Optional[Fetcher] = None
        self._event_loop: Any = None

    def driver_version(self) -> str:
        """Return Synap's version."""
        return synap.__version__

    def establish_connection(self) -> Any:
        """Connect to the service, so that an error is raised here."""
        self.synap.connect()
        return super().establish_connection()

    def verify_connection(self, connection: Any) -> bool:
        """Return whether the service can be reached."""
        try:
            self.synap.health()
        except SynapError:
            return False
        return True

    def close_connection(self, connection: Any) -> None:
        """Requeue unacknowledged messages, and close the client."""
        super().close_connection(connection)
        self._leave_event_loop()
        self.leases.close()
        self.synap.close()

    def drain_events(self, connection: Any, timeout: Optional[float] = None) -> None:
        """Deliver messages to consumers, waiting up to `timeout` seconds for the first; raises `socket.timeout`."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self.settled.clear()
            left = 30.0 if until is None else max(0.0, until - time.monotonic())
            self._fetch(0.0 if self._waiting else left)
            if self._deliver_some():
                return
            if until is not None and time.monotonic() >= until:
                raise socket.timeout

    def _wanted(self) -> Tuple[Wanted, Wanted, int, bool]:
        """Return the queues, of remote control and of tasks, whose consumers may have messages, with their channels.

        Also the most messages to fetch, and whether some consumer is at its prefetch count.
        """
        control: Wanted = {}
        work: Wanted = {}
        most = PREFETCH
        held_back = False
        for channel in self.channels:
            if not channel._consumers:
                continue
            if not channel.qos.can_consume():
                held_back = True
                continue
            queues = {channel._name(queue): channel for queue in channel._active_queues}
            if self.temporary.issuperset(channel._active_queues):
                control.update(queues)
            else:
                work.update(queues)
                estimate = channel.qos.can_consume_max_estimate()
                most = most if estimate is None else min(most, estimate)
        return control, work, most, held_back

    def _fetch(self, wait: float) -> None:
        """Lease messages for the consumers that may have some, those of remote control first."""
        control, work, most, held_back = self._wanted()
        wanted = control if self._waiting else {**control, **work}  # tasks are waiting already
        if not wanted:
            if not self._waiting:
                self.settled.wait(min(wait, 1.0))
            return
        try:
            found = self.synap.queue.consume_many(
                list(wanted), max=max(1, most), timeout=0.0 if held_back else wait, ack_deadline=self.leases.seconds
            )
        except QueueNotFoundError:  # it was deleted; the next call creates it again
            return
        except SynapError as error:
            raise as_outage(error) from error.__cause__
        if held_back and not found and not self._waiting:
            self.settled.wait(min(wait, 0.2))  # a settled message lets its consumer have another
        self._enqueue([self.hold(message) for message in found], wanted)

    def _enqueue(self, taken: Iterable[Fetched], wanted: Wanted) -> None:
        """Queue messages for their consumers, those of temporary queues first."""
        first: List[Waiting] = []
        for one in taken:
            channel = wanted.get(one.queue)
            if channel is None:  # it has no consumer any more
                self.settle(one.tag, "requeue")
                continue
            raw = self.received(one)
            if raw is not None:
                queue = one.queue[len(self.prefix) :]
                (first if queue in self.temporary else self._waiting).append((channel, queue, raw))
        self._waiting.extendleft(reversed(first))

    def hold(self, message: QueueMessage[Any]) -> Fetched:
        """Renew the lease of a message from now on."""
        return Fetched(message.queue, self.leases.hold(message.queue, message.message_id), message)

    def received(self, taken: Fetched) -> Optional[Dict[str, Any]]:
        """Decode a message, or return None: one that has expired is acknowledged, one that isn't kombu's rejected."""
        found = taken.message
        try:
            expires = float(found.headers.get("expires", "inf"))
            message = decoded(found.message, self.Channel.codecs)
        except Exception as error:  # anybody may publish anything
            log.error(
                "message %s of queue %s is not kombu's and is rejected (%s)",
                found.message_id,
                found.queue,
                type(error).__name__,
            )
            self.settle(taken.tag, "drop")
            return None
        if expires <= time.time():
            self.settle(taken.tag, "ack")
            return None
        properties = message["properties"]
        properties["delivery_tag"] = taken.tag
        if found.retry_count:
            properties["delivery_info"]["redelivered"] = True
        return message

    def settle(self, tag: str, how: str) -> None:
        """Acknowledge, requeue or drop a message, unless its lease was lost."""
        held = self.leases.release(tag) if self.process == os.getpid() else None
        if held is None:
            return
        queue, message_id = held
        try:
            if how == "ack":
                self.synap.queue.ack(queue, message_id)
            else:
                self.synap.queue.nack(queue, message_id, requeue=how == "requeue")
        except (MessageNotFoundError, QueueNotFoundError):
            pass
        except SynapError as error:
            raise as_outage(error) from error.__cause__
        self.settled.set()

    def _deliver_some(self) -> bool:
        """Deliver waiting messages for up to 0.1 s, so that the event loop stays responsive."""
        began = time.monotonic()
        delivered = False
        while self._waiting and not (delivered and time.monotonic() - began > 0.1):
            _, queue, raw = self._waiting.popleft()
            delivered = True
            self._deliver(raw, queue)
        return delivered

    def requeue(self, channel: Any, queues: Iterable[str]) -> None:
        """Requeue messages that were leased for consumers which have ended."""
        if self._fetcher is not None:
            self._ask()
            with suppress(SynapError):  # the next call fails like this one, and raises in the event loop
                self._take()
        gone = [place for place in self._waiting if place[0] is channel and place[1] in queues]
        for place in gone:
            self._waiting.remove(place)
            self.settle(place[2]["properties"]["delivery_tag"], "requeue")

    # --------------------------------------------------------------------------------------- a worker's event loop

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver messages from Celery's event loop, without blocking it."""
        self._leave_event_loop()
        self._fetcher = Fetcher(self._configuration, self.leases)
        self._event_loop = loop
        loop.add_reader(self._fetcher.fileno(), self._on_readable)
        loop.on_tick.add(self._ask)

    def _leave_event_loop(self) -> None:
        loop, self._event_loop = self._event_loop, None
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is None or self.process != os.getpid():  # a fork shares what the loop polls with its parent
            return
        loop.on_tick.discard(self._ask)
        if fetcher.fileno() in loop.readers:
            loop.remove(fetcher.fileno())
        fetcher.close()

    def _ask(self) -> None:
        """Fetch what consumers may have now. Remote control is read however busy the processes are."""
        if self._fetcher is not None:
            control, work, most, _ = self._wanted()
            self._fetcher.ask("control", list(control), PREFETCH)
            self._fetcher.ask("work", [] if self._waiting else list(work), most)

    def _take(self) -> None:
        if self._fetcher is not None:
            wanted = {channel._name(queue): channel for channel in self.channels for queue in channel._active_queues}
            self._enqueue(self._fetcher.take(), wanted)

    def _on_readable(self) -> None:
        self._take()
        self._deliver_some()
        if self._waiting and self._fetcher is not None:
            self._fetcher.wake()

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL, with the password masked unless `include_password`."""
        return base.Transport.as_uri(self, uri, include_password, mask) if uri else "synap://"
