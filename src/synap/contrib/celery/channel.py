"""Channels of the transport: AMQP's queues, exchanges and bindings on Synap's queues and keys."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple

from kombu.transport import virtual
from kombu.utils.json import dumps

from synap import QueueNotFoundError, SynapClient, SynapError
from synap.contrib.celery.bindings import Binding, Bindings

if TYPE_CHECKING:
    from synap.contrib.celery.transport import Transport

MAX_RETRIES = 1_000_000
"""How often a message may be requeued: AMQP has no bound."""


class QoS(virtual.QoS):
    """Unacknowledged messages. The service requeues them, so that they keep their place."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue a message, or drop it."""
        self.channel._settle(delivery_tag, "requeue" if requeue else "drop")
        self._quick_ack(delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self.channel._settle(delivery_tag, "ack")
        super().ack(delivery_tag)

    def restore_unacked(self) -> List[Any]:
        """Requeue all unacknowledged messages; returns the errors, each with its message."""
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

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._auto_delete: Set[str] = set()

    @property
    def client(self) -> SynapClient:
        """The connection's client."""
        client: SynapClient = self.connection.synap
        return client

    def encode_body(self, body: Any, encoding: Optional[str] = None) -> Tuple[Any, Optional[str]]:
        """Leave text as it is, so that it is readable at the service; encode bytes."""
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
        """Declare a queue. An exclusive, auto-deleted or expiring one is deleted with its consumer."""
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
            bindings.unregister(abandoned)
        bindings.register(queue)
        self.connection.leases.keep(queue)
        self.connection.temporary.add(queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if queue not in self.connection.declared:
            self.client.queue.create(
                self._name(queue),
                max_retries=MAX_RETRIES,
                dead_letter=self.connection.dead_letter,
                max_depth=100_000_000,
            )
            self.connection.declared.add(queue)

    def _name(self, queue: str) -> str:
        return f"{self.connection.prefix}{queue}"

    def _depth(self, queue: str) -> Optional[int]:
        """Return how many messages of a queue are ready; None for a queue that doesn't exist."""
        try:
            return self.client.queue.stats(self._name(queue)).depth
        except QueueNotFoundError:
            return None

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._depth(queue) is not None

    def _size(self, queue: str) -> int:
        return self._depth(queue) or 0

    def _purge(self, queue: str) -> int:
        try:
            return self.client.queue.purge(self._name(queue))
        except QueueNotFoundError:
            return 0

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue and one of its bindings."""
        if args:
            exchange, routing_key, pattern, _ = args
            self.connection.bindings.remove(exchange, (routing_key, pattern, queue))
        self._drop(queue)
        if queue in self.connection.temporary:
            self.connection.leases.drop_queue(queue)
            self.connection.bindings.unregister(queue)
            self.connection.temporary.discard(queue)

    def _drop(self, queue: str) -> None:
        self.connection.declared.discard(queue)
        with suppress(QueueNotFoundError):
            self.client.queue.delete(self._name(queue))

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        """Delete a queue and its bindings, with `if_empty` only an empty one."""
        if if_empty and self._size(queue):
            return
        super().queue_delete(queue, if_unused=if_unused, if_empty=False, **kwargs)
        self._delete(queue)  # even if it was never bound here

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer, and delete its queue if that is auto-deleted."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self.connection.requeue(self, [queue])
        if queue in self._auto_delete and queue not in self._active_queues:
            self._auto_delete.discard(queue)
            self.queue_delete(queue)

    # ------------------------------------------------------------------------------------------ bindings

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Optional[str], queue: str) -> None:
        binding: Binding = (routing_key or "", pattern or None, queue)
        temporary = queue in self.connection.temporary
        self.connection.bindings.add(exchange, binding, temporary=temporary)
        if temporary:
            self.connection.leases.keep(queue, (exchange, binding))

    def get_table(self, exchange: str) -> List[Binding]:
        """Return the bindings of an exchange, those of other processes included."""
        bindings: Bindings = self.connection.bindings
        return bindings.of(exchange)

    def queue_unbind(
        self,
        queue: str,
        exchange: Optional[str] = None,
        routing_key: str = "",
        arguments: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        """Remove a binding."""
        self.state.binding_delete(queue, exchange, routing_key)
        routing_key, pattern, _ = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self.connection.bindings.remove(exchange, (routing_key or "", pattern or None, queue))

    # ------------------------------------------------------------------------------------------ messages

    def _put(self, queue: str, message: Dict[str, Any], **kwargs: Any) -> None:
        self._new_queue(queue)
        headers = {name: str(message["headers"][name]) for name in ("task", "id") if message["headers"].get(name)}
        expiration = message["properties"].get("expiration")
        if expiration is not None and "task" not in headers:  # workers check tasks themselves
            headers["expires"] = repr(time.time() + int(expiration) / 1000)
        self.client.queue.publish(
            self._name(queue), dumps(message), self._get_message_priority(message), headers or None
        )

    def _put_fanout(self, exchange: str, message: Dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        for queue in {queue for _, _, queue in self.get_table(exchange)}:
            self._put(queue, message)

    def _get(self, queue: str, timeout: Optional[float] = None) -> Dict[str, Any]:
        self._new_queue(queue)
        while True:
            found = self.client.queue.consume(self._name(queue), 0, self.connection.leases.seconds)
            if found is None:
                raise Empty
            message: Optional[Dict[str, Any]] = self.connection.received(self.connection.hold(found))
            if message is not None:
                return message

    def _settle(self, tag: str, how: str) -> None:
        if self.connection is not None:
            self.connection.settle(tag, how)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Begin to consume a queue."""
        self._new_queue(queue)
        if no_ack:  # acknowledge on delivery: the service has no other mode
            deliver = callback

            def callback(message: Any) -> Any:
                self._settle(message.delivery_tag, "ack")
                return deliver(message)

        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return a message, or None."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self._settle(message.delivery_tag, "ack")
        return message
