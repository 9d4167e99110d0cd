"""OpenTelemetry: a span and metrics for each call, and traces from producers to consumers.

    instrument()  # once, before clients are created

Every call of a client created afterwards is a span, named by OpenTelemetry's semantic conventions: for messaging
`send emails`, for key-value `kv.get`. The context (W3C `traceparent`, or what the application's propagator writes)
travels in the headers of a queue's message and in the metadata of events and topic messages. The span of a consumer
links to its producer's: `receive` for messages of `consume`, `process` around the callback of a subscription, and
around your own block:

    message = client.queue.consume("emails", timeout=30)
    with processing(message, "emails"):
        send(message.message)

Keys, values and messages are never recorded. Messages published in a batch carry no context: the batch is one span.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Mapping, Optional, Tuple

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

from synap import QueueMessage, StreamEvent, SynapError, __version__
from synap.client.hooks import Call, Delivery, add_hook
from synap.config import Target

__all__ = ["instrument", "processing"]

SYSTEM = "synap"
NAME = "synap.contrib.opentelemetry"
SENDS = {"queue.publish": "headers", "stream.publish": "metadata", "pubsub.publish": "metadata"}
"""Commands that send a message, and the field of their payload that carries the context."""
RECEIVES = ("queue.consume", "queue.consume_many")
SETTLES = ("queue.ack", "queue.nack")
DESTINATION_FIELDS = ("queue", "room", "topic")


class _Instruments:
    """The tracer and the instruments of the meter."""

    def __init__(self, tracers: Optional[TracerProvider], meters: Optional[MeterProvider]) -> None:
        self.tracer = trace.get_tracer(NAME, __version__, tracers)
        meter = metrics.get_meter(NAME, __version__, meters)
        self.database = meter.create_histogram("db.client.operation.duration", "s", "Duration of calls.")
        self.messaging = meter.create_histogram("messaging.client.operation.duration", "s", "Duration of calls.")
        self.process = meter.create_histogram("messaging.process.duration", "s", "Duration of processing a message.")
        self.sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages sent.")
        self.consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages received.")


_instruments: Optional[_Instruments] = None


def instrument(
    *, tracer_provider: Optional[TracerProvider] = None, meter_provider: Optional[MeterProvider] = None
) -> Callable[[], None]:
    """Trace and measure all clients created from now on; returns a function that stops this for new ones.

    `tracer_provider`, `meter_provider`: by default the application's global ones.
    """
    global _instruments
    instruments = _instruments = _Instruments(tracer_provider, meter_provider)

    def hook(about: Any) -> ContextManager[Any]:
        if isinstance(about, Call):
            return _call(instruments, about)
        return _delivery(instruments, about)

    return add_hook(hook)


def _server(target: Target) -> Dict[str, Any]:
    if target.host:
        return {"server.address": target.host, "server.port": target.port}
    return {}


# ---------------------------------------------------------------------------------------------- calls


@contextlib.contextmanager
def _call(instruments: _Instruments, call: Call) -> Iterator[None]:
    group, _, method = call.command.partition(".")
    messaging = group in ("queue", "stream", "pubsub")
    attributes = _server(call.target)
    destination = _destination(call.payload)
    kind = SpanKind.CLIENT
    if messaging:
        operation, kind, operation_type = _operation(call.command, method)
        attributes.update({"messaging.system": SYSTEM, "messaging.operation.name": method})
        if operation_type:
            attributes["messaging.operation.type"] = operation_type
        if destination:
            attributes["messaging.destination.name"] = destination
        name = f"{operation} {destination}" if destination else f"{group} {operation}"
    else:
        attributes.update({"db.system.name": SYSTEM, "db.operation.name": call.command})
        name = call.command
    measured = dict(attributes)
    began = time.perf_counter()
    with instruments.tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        field = SENDS.get(call.command)
        if field is not None:
            _inject(call.payload, field)
        try:
            yield
        except BaseException as error:
            measured["error.type"] = _fail(span, error)
            raise
        else:
            if field is not None:
                identity = getattr(call.result, "message_id", "") or getattr(call.result, "event_id", "")
                span.set_attribute("messaging.message.id", str(identity))
                instruments.sent.add(1, measured)
            elif call.command in RECEIVES:
                count = _received(span, call.result)
                if count:
                    instruments.consumed.add(count, measured)
        finally:
            histogram = instruments.messaging if messaging else instruments.database
            histogram.record(time.perf_counter() - began, measured)


def _operation(command: str, method: str) -> Tuple[str, SpanKind, str]:
    """Return name, kind and type of the operation of a command by the messaging conventions."""
    if command in SENDS:
        return "send", SpanKind.PRODUCER, "send"
    if command in RECEIVES:
        return "receive", SpanKind.CLIENT, "receive"
    if command in SETTLES:
        return method, SpanKind.CLIENT, "settle"
    return method, SpanKind.CLIENT, ""


def _destination(payload: Any) -> str:
    for field in DESTINATION_FIELDS:
        name = getattr(payload, field, None)
        if isinstance(name, str):
            return name
    queues: List[str] = getattr(payload, "queues", [])  # of `consume_many`
    return queues[0] if len(queues) == 1 else ""


def _inject(payload: Any, field: str) -> None:
    """Add the context to a copy of the headers, since the caller may reuse theirs."""
    carrier: Dict[str, str] = {}
    propagate.inject(carrier)
    if carrier:
        setattr(payload, field, {**(getattr(payload, field) or {}), **carrier})


def _received(span: Span, result: Any) -> int:
    """Link the span to the producers of the messages that `consume` or `consume_many` got; returns how many."""
    messages: List[Any] = [] if result is None else getattr(result, "messages", [result])
    for message in messages:
        producer = _context_of(message.headers)
        if producer is not None:
            span.add_link(producer, {"messaging.message.id": str(message.message_id)})
    if len(messages) == 1:
        span.set_attribute("messaging.message.id", str(messages[0].message_id))
    elif messages:
        span.set_attribute("messaging.batch.message_count", len(messages))
    return len(messages)


def _fail(span: Span, error: BaseException) -> str:
    """Record an error on a span; returns its type, of low cardinality as the conventions demand."""
    kind = error.code if isinstance(error, SynapError) else type(error).__qualname__
    span.set_attribute("error.type", kind)
    if isinstance(error, Exception):
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))
    return kind


def _context_of(carrier: Optional[Mapping[str, str]]) -> Optional[trace.SpanContext]:
    """Return the producer's span context, None where the message carries none."""
    found = trace.get_current_span(propagate.extract(carrier or {}, context.Context())).get_span_context()
    return found if found.is_valid else None


# ---------------------------------------------------------------------------------------------- processing


def processing(item: Any, queue: str = "") -> ContextManager[Span]:
    """Trace a block as the processing of a message: a span that links to the sender's.

    `item`: a `QueueMessage`, or the message of a worker's handler (`queue` is where it came from, if that is to be
    another name than the message's own), a `StreamEvent` or a `TopicMessage`.
    """
    instruments = _instruments or _Instruments(None, None)
    if isinstance(item, QueueMessage):
        destination, carrier, identity = queue or item.queue, item.headers, str(item.message_id)
    elif isinstance(item, StreamEvent):
        destination, carrier, identity = item.room, item.metadata, item.event_id
    else:
        destination, carrier, identity = item.topic, item.metadata, item.message_id
    return _processing(instruments, destination, carrier, identity, {})


@contextlib.contextmanager
def _processing(
    instruments: _Instruments,
    destination: str,
    carrier: Optional[Mapping[str, str]],
    identity: str,
    server: Mapping[str, Any],
) -> Iterator[Span]:
    producer = _context_of(carrier)
    attributes: Dict[str, Any] = {
        **server,
        "messaging.system": SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": destination,
    }
    measured = dict(attributes)
    began = time.perf_counter()
    with instruments.tracer.start_as_current_span(
        f"process {destination}",
        kind=SpanKind.CONSUMER,
        attributes={**attributes, "messaging.message.id": identity},
        links=[] if producer is None else [Link(producer)],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            measured["error.type"] = _fail(span, error)
            raise
        finally:
            instruments.process.record(time.perf_counter() - began, measured)


def _delivery(instruments: _Instruments, delivery: Delivery) -> ContextManager[Any]:
    item = delivery.item
    destination = delivery.room or item.topic
    identity = item.event_id if delivery.room else item.message_id
    instruments.consumed.add(1, {"messaging.system": SYSTEM, "messaging.destination.name": destination})
    return _processing(instruments, destination, item.metadata, identity, _server(delivery.target))
