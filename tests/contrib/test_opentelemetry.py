"""OpenTelemetry: spans as the conventions have them, and traces that go on at the consumer."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import Any, Dict, Iterator, List

import pytest

from synap import AsyncSynapClient, SynapClient, SynapError

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from synap.contrib.opentelemetry import instrument, processing
from synap.worker import Message, Worker
from tests.helpers.patience import PATIENCE


class Telemetry:
    """What was exported so far."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._metrics])

    def spans(self, *names: str) -> List[ReadableSpan]:
        """Return the spans of these names, one each."""
        found = {span.name: span for span in self._spans.get_finished_spans()}
        return [found[name] for name in names]

    def figures(self) -> Dict[str, Any]:
        """Return the sums and counts by name of the metric."""
        data = self._metrics.get_metrics_data()
        assert data is not None
        figures: Dict[str, Any] = {}
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: Any = metric.data.data_points
                    figures[metric.name] = sum(getattr(p, "count", None) or p.value for p in points)
        return figures


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    told = Telemetry()
    end = instrument(tracer_provider=told.tracers, meter_provider=told.meters)
    yield told
    end()
    told.tracers.shutdown()
    told.meters.shutdown()


@pytest.fixture
def client(telemetry: Telemetry, synap_url: str) -> Iterator[SynapClient]:
    with SynapClient(url=synap_url) as client:
        yield client


def links_to(span: ReadableSpan, other: ReadableSpan) -> bool:
    return [link.context.span_id for link in span.links] == [other.context.span_id]


def test_a_call_is_a_span_and_a_measurement_without_keys_or_values(
    client: SynapClient, telemetry: Telemetry, synap_url: str
) -> None:
    client.kv.set("secret-key", "secret-value")
    client.kv.get("secret-key")
    [span] = telemetry.spans("kv.get")
    assert span.kind is SpanKind.CLIENT
    assert span.attributes == {
        "db.system.name": "synap",
        "db.operation.name": "kv.get",
        "server.address": "127.0.0.1",
        "server.port": int(synap_url.rpartition(":")[2]),
    }
    assert telemetry.figures()["db.client.operation.duration"] == 2
    assert all("secret" not in str(span.attributes) for span in telemetry.spans("kv.set", "kv.get"))


def test_an_error_is_told_by_its_code(client: SynapClient, telemetry: Telemetry) -> None:
    key = str(uuid.uuid4())
    client.kv.set(key, "text")
    with pytest.raises(SynapError):
        client.kv.incr(key)
    [span] = telemetry.spans("kv.incr")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "WRONG_TYPE"


def test_over_a_queue_the_consumers_spans_link_to_the_producers(client: SynapClient, telemetry: Telemetry) -> None:
    queue = str(uuid.uuid4())
    headers = {"source": "test"}
    client.queue.publish(queue, 1, headers=headers)
    assert headers == {"source": "test"}, "the caller's headers stay his own"
    message = client.queue.consume(queue)
    assert message is not None
    assert message.headers["source"] == "test"
    with processing(message, queue):
        client.queue.ack(queue, message.message_id)
    sent, received, processed, acked = telemetry.spans(
        f"send {queue}", f"receive {queue}", f"process {queue}", f"ack {queue}"
    )
    assert sent.kind is SpanKind.PRODUCER
    assert processed.kind is SpanKind.CONSUMER
    assert links_to(received, sent)
    assert links_to(processed, sent)
    assert acked.parent is not None
    assert acked.parent.span_id == processed.context.span_id
    for span in (sent, received, processed):
        assert (span.attributes or {})["messaging.message.id"] == str(message.message_id)
        assert (span.attributes or {})["messaging.destination.name"] == queue
    figures = telemetry.figures()
    assert figures["messaging.client.sent.messages"] == figures["messaging.client.consumed.messages"] == 1
    assert figures["messaging.process.duration"] == 1


def test_messages_that_are_consumed_together_link_to_their_producers(client: SynapClient, telemetry: Telemetry) -> None:
    queue = str(uuid.uuid4())
    assert client.queue.consume_many([queue]) == []
    for number in range(3):
        client.queue.publish(queue, number)
    assert [message.message for message in client.queue.consume_many([queue])] == [0, 1, 2]
    assert client.queue.consume_many([queue, f"{queue}-2"]) == []
    received, several = telemetry.spans(f"receive {queue}", "queue receive")
    assert not several.links
    assert len(received.links) == 3
    assert (received.attributes or {})["messaging.batch.message_count"] == 3
    assert telemetry.figures()["messaging.client.consumed.messages"] == 3


def test_a_span_of_messages_is_named_by_their_queue(client: SynapClient, telemetry: Telemetry) -> None:
    """Without its name from the caller, it was `process ` and nothing, and one queue of `consume_many` had none."""
    queue = f"mails-{uuid.uuid4()}"
    client.queue.publish(queue, 1)
    (message,) = client.queue.consume_many([queue], timeout=PATIENCE)
    with processing(message):
        client.queue.ack(queue, message.message_id)
    send, receive, process = telemetry.spans(f"send {queue}", f"receive {queue}", f"process {queue}")
    assert links_to(receive, send)
    assert links_to(process, send)


async def test_a_workers_handler_goes_on_with_the_producers_trace(telemetry: Telemetry, synap_url: str) -> None:
    queue = f"mails-{uuid.uuid4()}"
    async with AsyncSynapClient(url=synap_url) as client:
        worker = Worker(client)

        @worker.handles(queue)
        async def send_mail(mail: int, message: Message) -> None:
            with processing(message):
                await client.kv.exists("mail")

        await worker.enqueue(send_mail, 1)
        assert (await worker.run_once()).done == 1
    sent, processed = telemetry.spans(f"send {queue}", f"process {queue}")
    assert links_to(processed, sent)


def test_over_a_room_and_a_topic_callbacks_are_spans_that_link_to_the_producers(
    client: SynapClient, telemetry: Telemetry
) -> None:
    name = str(uuid.uuid4())
    seen = threading.Semaphore(0)
    client.stream.subscribe(name, lambda event: seen.release(), replay=True)
    client.pubsub.subscribe([f"{name}.topic"], lambda topic, message: seen.release())
    client.stream.publish(name, "kind", 1)
    client.pubsub.publish(f"{name}.topic", 2)
    assert seen.acquire(timeout=PATIENCE)
    assert seen.acquire(timeout=PATIENCE)
    while telemetry.figures().get("messaging.process.duration") != 2:  # taken when the callback is left
        time.sleep(0.01)
    for place in (name, f"{name}.topic"):
        sent, processed = telemetry.spans(f"send {place}", f"process {place}")
        assert links_to(processed, sent)


async def test_the_async_client_and_its_coroutine_callbacks_too(telemetry: Telemetry, synap_url: str) -> None:
    room = str(uuid.uuid4())
    done = asyncio.Event()
    async with AsyncSynapClient(url=synap_url) as client:

        async def on_event(event: Any) -> None:
            await client.kv.set(f"{room}:seen", event.offset)
            done.set()

        await client.stream.subscribe(room, on_event)
        await client.stream.publish(room, "kind", 1)
        await asyncio.wait_for(done.wait(), PATIENCE)
        await client.ping()
    sent, processed, inside = telemetry.spans(f"send {room}", f"process {room}", "kv.set")
    assert links_to(processed, sent)
    assert inside.parent is not None
    assert inside.parent.span_id == processed.context.span_id


def test_a_client_made_before_or_after_has_no_hooks(synap_url: str) -> None:
    told = Telemetry()
    with SynapClient(url=synap_url) as before:
        end = instrument(tracer_provider=told.tracers, meter_provider=told.meters)
        before.kv.get("k")
        end()
    with SynapClient(url=synap_url) as after:
        after.kv.get("k")
    assert not told._spans.get_finished_spans()
    told.tracers.shutdown()
    told.meters.shutdown()
