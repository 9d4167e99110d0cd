"""A transport of kombu: AMQP's exchanges and queues on Synap's queues.

Direct, topic and fanout exchanges; priorities 0 to 9, 9 first, as with RabbitMQ; messages that expire. A message is
leased while it is not acknowledged, and comes back when its consumer dies (`visibility_timeout`, 60 s, renewed as long
as the consumer lives). Rejected without requeue it is dropped, or with `dead_letter: True` in `<queue>.dlq`.

    app.conf.broker_transport_options = {"visibility_timeout": 60, "dead_letter": True, "options": {"timeout": 10.0}}
"""

from __future__ import annotations

import collections
import os
import socket
import threading
import time
import uuid
from queue import Empty
from typing import Any, Deque, Dict, Iterable, List, Optional, Set, Tuple
from urllib.parse import quote

from kombu.transport import base, virtual
from kombu.utils.json import dumps, loads

import synap
from synap import MessageNotFoundError, QueueMessage, QueueNotFoundError, SynapClient, SynapError
from synap.contrib.celery.bindings import Binding, Bindings
from synap.contrib.celery.intake import Intake, Taken
from synap.contrib.celery.leases import Leases

__all__ = ["Channel", "QoS", "Transport", "client_url"]

OFTEN = 1_000_000
"""How often a message may go back to its queue: with AMQP there is no bound."""
AT_ONCE = 100
"""Messages taken at once by a consumer without a prefetch count."""

Wanted = Dict[str, Any]
"""Channels by the name of the queue at the service."""
Waiting = Tuple[Any, str, Dict[str, Any]]
"""A channel, a queue and a message for it."""


def client_url(scheme: str, host: Optional[str], port: Optional[int]) -> str:
    """Return the client's URL for the parts of `synap://…` or `synaps://…`."""
    return f"{'https' if scheme.endswith('s') else 'http'}://{host or 'localhost'}:{port or 15500}"


class QoS(virtual.QoS):
    """Messages in hand. Giving one back is the service's business, so that it keeps its place."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back to its queue, or drop it."""
        self.channel._settle(delivery_tag, "requeue" if requeue else "drop")
        self._quick_ack(delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self.channel._settle(delivery_tag, "ack")
        super().ack(delivery_tag)

    def restore_unacked(self) -> List[Any]:
        """Give back whatever is in hand; returns what went wrong, by message."""
        self._flush()
        errors = []
        while self._delivered:
            tag, message = self._delivered.popitem()
            try:
                self.channel._settle(tag, "requeue")
            except SynapError as error:
                errors.append((error, message))
        return errors


class Channel(virtual.Channel):
    """A channel. All channels of a connection share its client."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: Transport, **about: Any) -> None:
        super().__init__(connection, **about)
        self._auto_delete: Set[str] = set()

    @property
    def client(self) -> SynapClient:
        """The connection's client."""
        client: SynapClient = self.connection.synap
        return client

    def encode_body(self, body: Any, encoding: Optional[str] = None) -> Tuple[Any, Optional[str]]:
        """Leave text as it is, so that it can be read at the service; bytes have to be encoded."""
        if isinstance(body, str):
            return body, "utf-8"
        encoded: Tuple[Any, Optional[str]] = super().encode_body(body, encoding)
        return encoded

    # ------------------------------------------------------------------------------------------ queues

    def queue_declare(
        self,
        queue: Optional[str] = None,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Optional[Dict[str, Any]] = None,
    ) -> Any:
        """Declare a queue. One that is exclusive, auto-deleted or expires is temporary: it goes with its consumer."""
        queue = queue or f"amq.gen-{uuid.uuid4()}"
        arguments = arguments or {}
        if not passive and (exclusive or auto_delete or "x-expires" in arguments):
            if auto_delete or exclusive:
                self._auto_delete.add(queue)
            self._begin_temporary(queue)
        return super().queue_declare(queue=queue, passive=passive)

    def _begin_temporary(self, queue: str) -> None:
        bindings: Bindings = self.connection.bindings
        for abandoned in bindings.abandoned():
            self._drop(abandoned)
            bindings.end(abandoned)
        bindings.begin(queue)
        self.connection.leases.read(queue)
        self.connection.temporary.add(queue)

    def _new_queue(self, queue: str, **about: Any) -> None:
        if queue not in self.connection.declared:
            self.client.queue.create(
                self._name(queue), max_retries=OFTEN, dead_letter=self.connection.dead_letter, max_depth=100_000_000
            )
            self.connection.declared.add(queue)

    def _name(self, queue: str) -> str:
        return f"{self.connection.prefix}{queue}"

    def _has_queue(self, queue: str, **about: Any) -> bool:
        try:
            self.client.queue.stats(self._name(queue))
        except QueueNotFoundError:
            return False
        return True

    def _size(self, queue: str) -> int:
        try:
            return self.client.queue.stats(self._name(queue)).depth
        except QueueNotFoundError:
            return 0

    def _purge(self, queue: str) -> int:
        try:
            return self.client.queue.purge(self._name(queue))
        except QueueNotFoundError:
            return 0

    def _delete(self, queue: str, *about: Any, **more: Any) -> None:
        """Take one binding of a queue away, and the queue itself."""
        if about:
            exchange, *binding = about
            routing_key, pattern, _ = binding
            self.connection.bindings.remove(exchange, (routing_key, pattern, queue))
        self._drop(queue)
        if queue in self.connection.temporary:
            self.connection.leases.left(queue)
            self.connection.bindings.end(queue)
            self.connection.temporary.discard(queue)

    def _drop(self, queue: str) -> None:
        self.connection.declared.discard(queue)
        try:
            self.client.queue.delete(self._name(queue))
        except QueueNotFoundError:
            pass

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **about: Any) -> None:
        """Delete a queue and its bindings."""
        if if_empty and self._size(queue):
            return
        super().queue_delete(queue, if_unused=if_unused, if_empty=False, **about)
        self._delete(queue)  # also one that was never bound here

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer, and delete its queue where that is to be."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self.connection.give_back(self, [queue])
        if queue in self._auto_delete and queue not in self._active_queues:
            self._auto_delete.discard(queue)
            self.queue_delete(queue)

    # ------------------------------------------------------------------------------------------ bindings

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Optional[str], queue: str) -> None:
        binding: Binding = (routing_key or "", pattern or None, queue)
        temporary = queue in self.connection.temporary
        self.connection.bindings.add(exchange, binding, temporary=temporary)
        if temporary:
            self.connection.leases.bound(queue, exchange, binding)

    def get_table(self, exchange: str) -> List[Binding]:
        """Return the bindings of an exchange, whoever made them."""
        bindings: Bindings = self.connection.bindings
        return bindings.of(exchange)

    def queue_unbind(
        self,
        queue: str,
        exchange: Optional[str] = None,
        routing_key: str = "",
        arguments: Optional[Dict[str, Any]] = None,
        **about: Any,
    ) -> None:
        """Take a binding away."""
        self.state.binding_delete(queue, exchange, routing_key)
        routing_key, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self.connection.bindings.remove(exchange, (routing_key or "", pattern or None, queue))

    # ------------------------------------------------------------------------------------------ messages

    def _put(self, queue: str, message: Dict[str, Any], **about: Any) -> None:
        self._new_queue(queue)
        headers = {name: str(message["headers"][name]) for name in ("task", "id") if message["headers"].get(name)}
        expiration = message["properties"].get("expiration")
        if expiration is not None and "task" not in headers:  # of tasks, workers know and record that they expired
            headers["expires"] = repr(time.time() + int(expiration) / 1000)
        self.client.queue.publish(
            self._name(queue), dumps(message), self._get_message_priority(message), headers or None
        )

    def _put_fanout(self, exchange: str, message: Dict[str, Any], routing_key: str, **about: Any) -> None:
        for queue in {queue for _, _, queue in self.get_table(exchange)}:
            self._put(queue, message)

    def _get(self, queue: str, timeout: Optional[float] = None) -> Dict[str, Any]:
        self._new_queue(queue)
        while True:
            found = self.client.queue.consume(self._name(queue), 0, self.connection.leases.seconds)
            if found is None:
                raise Empty
            message: Optional[Dict[str, Any]] = self.connection.received(self.connection.in_hand(found))
            if message is not None:
                return message

    def _settle(self, tag: str, how: str) -> None:
        if self.connection is not None:
            self.connection.settle(tag, how)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **about: Any) -> None:
        """Begin to consume a queue."""
        self._new_queue(queue)
        if no_ack:  # nobody will acknowledge it, and the service wants it acknowledged
            told = callback

            def callback(message: Any) -> Any:
                self._settle(message.delivery_tag, "ack")
                return told(message)

        super().basic_consume(queue, no_ack, callback, consumer_tag, **about)

    def basic_get(self, queue: str, no_ack: bool = False, **about: Any) -> Any:
        """Take a message, None where there is none."""
        message = super().basic_get(queue, no_ack=no_ack, **about)
        if message is not None and no_ack:
            self._settle(message.delivery_tag, "ack")
        return message


class Transport(virtual.Transport):
    """A connection to the service: a client, what it has in hand, and the channels."""

    Channel = Channel
    default_port = 15500
    driver_type = driver_name = "synap"
    connection_errors = (*virtual.Transport.connection_errors, synap.ConnectionError)
    channel_errors = (*virtual.Transport.channel_errors, SynapError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )

    def __init__(self, client: Any, **about: Any) -> None:
        super().__init__(client, **about)
        told = client.transport_options
        vhost = (client.virtual_host or "").strip("/")
        self.prefix = f"{vhost}:" if vhost else ""
        self.dead_letter = bool(told.get("dead_letter", False))
        self.process = os.getpid()
        self._configuration = {
            "url": client_url(client.transport_cls, client.hostname, client.port),
            "api_key": client.password or None,
            **told.get("options", {}),
        }
        self.synap = SynapClient(**self._configuration)
        self.bindings = Bindings(self.synap, f"kombu:{quote(vhost, safe='')}:")
        self.leases = Leases(self.synap, self.bindings, float(told.get("visibility_timeout", 60)))
        self.declared: Set[str] = set()
        """Queues that this connection has seen to."""
        self.temporary: Set[str] = set()
        self.room = threading.Event()
        """Set when a message is settled, so that another may be taken."""
        self._waiting: Deque[Waiting] = collections.deque()
        """Messages in hand that no consumer was given yet."""
        self._intake: Optional[Intake] = None
        self._event_loop: Any = None

    def driver_version(self) -> str:
        """Return Synap's version."""
        return synap.__version__

    def establish_connection(self) -> Any:
        """Reach the service, so that what is wrong shows."""
        self.synap.connect()
        return super().establish_connection()

    def verify_connection(self, connection: Any) -> bool:
        """Say whether the service can be reached."""
        try:
            self.synap.health()
        except SynapError:
            return False
        return True

    def close_connection(self, connection: Any) -> None:
        """Give back what is in hand, and close the client."""
        super().close_connection(connection)
        self._leave_event_loop()
        self.leases.close()
        self.synap.close()

    def drain_events(self, connection: Any, timeout: Optional[float] = None) -> None:
        """Deliver messages to consumers, waiting up to `timeout` seconds for the first; raises `socket.timeout`."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self.room.clear()
            left = 30.0 if until is None else max(0.0, until - time.monotonic())
            self._fetch(0.0 if self._waiting else left)
            if self._deliver_some():
                return
            if until is not None and time.monotonic() >= until:
                raise socket.timeout

    def _wanted(self) -> Tuple[Wanted, Wanted, int, bool]:
        """Return the queues of remote control and those of tasks that may have messages, with their channels.

        Also how many messages may come, and whether a consumer may have none for now.
        """
        control: Wanted = {}
        work: Wanted = {}
        most = AT_ONCE
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
        """Take messages in hand for the consumers that may have some. Temporary queues, remote control's, go first."""
        control, work, most, held_back = self._wanted()
        wanted = control if self._waiting else {**control, **work}  # there is work at hand
        if not wanted:
            if not self._waiting:
                self.room.wait(min(wait, 1.0))
            return
        found = self.synap.queue.consume_many(
            list(wanted), max=max(1, most), timeout=0.0 if held_back else wait, ack_deadline=self.leases.seconds
        )
        if held_back and not found and not self._waiting:
            self.room.wait(min(wait, 0.2))  # whatever is settled lets the others have messages again
        self._arrange([self.in_hand(message) for message in found], wanted)

    def _arrange(self, taken: Iterable[Taken], wanted: Wanted) -> None:
        """Put messages in line for their consumers, those of temporary queues first."""
        first: List[Waiting] = []
        for one in taken:
            channel = wanted.get(one.queue)
            if channel is None:  # nobody consumes it any longer
                self.settle(one.tag, "requeue")
                continue
            raw = self.received(one)
            if raw is not None:
                queue = one.queue[len(self.prefix) :]
                (first if queue in self.temporary else self._waiting).append((channel, queue, raw))
        self._waiting.extendleft(reversed(first))

    def in_hand(self, message: QueueMessage[Any]) -> Taken:
        """Take a message in hand, whose lease is renewed from now on."""
        return Taken(message.queue, self.leases.hold(message.queue, message.message_id), message)

    def received(self, taken: Taken) -> Optional[Dict[str, Any]]:
        """Return what was published, None where it has expired, and is done with then."""
        found = taken.message
        if float(found.headers.get("expires", "inf")) <= time.time():
            self.settle(taken.tag, "ack")
            return None
        message: Dict[str, Any] = loads(found.message)
        properties = message["properties"]
        properties["delivery_tag"] = taken.tag
        if found.retry_count:
            properties.setdefault("delivery_info", {})["redelivered"] = True
        return message

    def settle(self, tag: str, how: str) -> None:
        """Say to the service what becomes of a message. One that isn't ours any longer is somebody else's by now."""
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
        self.room.set()

    def _deliver_some(self) -> bool:
        """Hand over what is in hand, for as long as that takes no time: who works meanwhile is asked in between."""
        began = time.monotonic()
        delivered = False
        while self._waiting and not (delivered and time.monotonic() - began > 0.1):
            _, queue, raw = self._waiting.popleft()
            delivered = True
            self._deliver(raw, queue)
        return delivered

    def give_back(self, channel: Any, queues: Iterable[str]) -> None:
        """Give back what was taken for consumers that are there no longer."""
        if self._intake is not None:
            self._ask()
            try:
                self._take()
            except SynapError:  # the next call fails like this one, and the event loop is told then
                pass
        gone = [place for place in self._waiting if place[0] is channel and place[1] in queues]
        for place in gone:
            self._waiting.remove(place)
            self.settle(place[2]["properties"]["delivery_tag"], "requeue")

    # --------------------------------------------------------------------------------------- a worker's event loop

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have messages delivered by Celery's event loop, which never waits for them."""
        self._leave_event_loop()
        self._intake = Intake(self._configuration, self.leases)
        self._event_loop = loop
        loop.add_reader(self._intake.fileno(), self._on_readable)
        loop.on_tick.add(self._ask)

    def _leave_event_loop(self) -> None:
        loop, self._event_loop = self._event_loop, None
        intake, self._intake = self._intake, None
        if intake is None or self.process != os.getpid():  # a fork shares what the loop polls with its parent
            return
        loop.on_tick.discard(self._ask)
        if intake.fileno() in loop.readers:
            loop.remove(intake.fileno())
        intake.close()

    def _ask(self) -> None:
        """Say what consumers may have now. Remote control is read whatever the processes are busy with."""
        if self._intake is not None:
            control, work, most, _ = self._wanted()
            self._intake.ask("control", list(control), AT_ONCE)
            self._intake.ask("work", [] if self._waiting else list(work), most)

    def _take(self) -> None:
        if self._intake is not None:
            wanted = {channel._name(queue): channel for channel in self.channels for queue in channel._active_queues}
            self._arrange(self._intake.take(), wanted)

    def _on_readable(self) -> None:
        self._take()
        self._deliver_some()
        if self._waiting and self._intake is not None:
            self._intake.wake()

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL as it may be shown."""
        return base.Transport.as_uri(self, uri, include_password, mask) if uri else "synap://"
