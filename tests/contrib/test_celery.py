"""Celery: what kombu's and Celery's tests don't ask, first of all that nothing is lost with a worker."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, ContextManager, Iterator, List

import pytest

from synap import RateLimitError, SynapClient, SynapError

celery = pytest.importorskip("celery")
kombu = pytest.importorskip("kombu")

from celery.contrib.testing.worker import start_worker
from celery.exceptions import ChordError
from celery.signals import setup_logging

import synap.contrib.celery
from synap.client.hooks import Call, add_hook
from synap.contrib import sharing
from synap.contrib.celery import backend, bindings
from synap.contrib.celery.bindings import Bindings
from synap.contrib.celery.fetcher import Fetcher
from synap.contrib.celery.leases import Leases
from synap.testing import ThrowawayServer
from synap.testing.reaper import kill_at_exit
from tests.helpers.patience import PATIENCE

GRACE = 10
"""Seconds that a worker has to end by itself, before it is killed."""
APP = """
import os
import time
import celery
import synap.contrib.celery
from synap import RateLimitError, SynapClient

app = celery.Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    task_acks_late=True, worker_prefetch_multiplier=4, broker_transport_options={"visibility_timeout": 1.5},
    broker_connection_retry_on_startup=True, result_backend_transport_options={"options": {"timeout": 120.0}},
)

@app.task
def work(prefix, number):
    with SynapClient() as client:
        client.kv.incr(f"{prefix}:{number}")
        client.kv.incr(f"{prefix}:worker:{os.getpid()}")
    return number

@app.task
def wait(started, until):
    with SynapClient() as client:
        client.kv.set(started, True)
        while not client.kv.exists(until):
            time.sleep(0.01)
"""


@pytest.fixture
def broker(synap_url: str) -> str:
    return f"{synap_url.replace('http://', 'synap://')}/{uuid.uuid4()}"


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Keep a worker in this process from configuring the process's logging."""

    def kept(**about: Any) -> None:
        """Do nothing: where somebody listens, Celery leaves it to them."""

    setup_logging.connect(kept)
    yield
    setup_logging.disconnect(kept)


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} seconds: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def worker(folder: Path, broker: str, url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel=warning"]
    command += options or ("--pool=solo", f"--hostname={uuid.uuid4()}@%h")
    environment = {**os.environ, "BROKER": broker, "SYNAP_URL": url, "PYTHONPATH": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    kill_at_exit(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def nothing_left(client: SynapClient, broker: str) -> bool:
    stats = client.queue.stats(f"{broker.rpartition('/')[2]}:celery")
    return stats.depth + stats.pending + stats.delayed == 0


def test_a_worker_killed_in_the_middle_takes_no_task_with_it(
    tmp_path: Path, broker: str, synap_url: str, sync_synap_client: SynapClient
) -> None:
    (tmp_path / "tasks.py").write_text(APP, "utf-8")
    app = celery.Celery("tasks", broker=broker, backend=broker)
    prefix, count = str(uuid.uuid4()), 60
    try:
        with worker(tmp_path, broker, synap_url) as doomed:
            results = [app.send_task("tasks.work", (prefix, number)) for number in range(count)]
            while not sync_synap_client.kv.exists(f"{prefix}:worker:{doomed.pid}"):
                assert doomed.poll() is None
                time.sleep(0.01)
            os.kill(doomed.pid, signal.SIGKILL)
            doomed.wait()
            with worker(tmp_path, broker, synap_url):
                assert sorted(result.get(timeout=PATIENCE) for result in results) == list(range(count))
                # A result is there before its task is acknowledged, and a task whose lease ran out comes once more.
                until("all tasks are acknowledged", lambda: nothing_left(sync_synap_client, broker))
        done = sync_synap_client.kv.mget(*(f"{prefix}:{number}" for number in range(count)))
        assert all(found.found for found in done), "every task ran, some of those that were in hand twice"
    finally:
        app.close()
        app.backend.result_consumer.stop()
        app.backend.client.close()


def test_a_worker_whose_processes_are_all_busy_is_pinged_and_revokes(
    tmp_path: Path, broker: str, synap_url: str, sync_synap_client: SynapClient
) -> None:
    (tmp_path / "tasks.py").write_text(APP, "utf-8")
    app = celery.Celery("tasks", broker=broker, backend=broker)
    kv, free, hostname = sync_synap_client.kv, str(uuid.uuid4()), f"{uuid.uuid4()}@here"
    options = ("--pool=prefork", "--concurrency=1", f"--hostname={hostname}")
    try:
        with worker(tmp_path, broker, synap_url, *options):
            running, waiting, last = [app.send_task("tasks.wait", (f"{free}:{n}", free)) for n in range(3)]
            until("it runs the first task", lambda: kv.exists(f"{free}:0"))

            def ask(command: str, *, timeout: float = PATIENCE, **arguments: Any) -> Any:
                answers = app.control.broadcast(
                    command, arguments=arguments, reply=True, destination=[hostname], timeout=timeout
                )
                return answers[0][hostname] if answers else None

            until("it listens to remote control, which hears nothing before", lambda: ask("ping", timeout=1))
            until("it has the others in hand", lambda: len(ask("reserved") or ()) == 2)
            assert ask("ping") == {"ok": "pong"}
            assert "ok" in ask("revoke", task_id=waiting.id)
            assert "ok" in ask("revoke", task_id=running.id, terminate=True)
            until("it has begun the last task", lambda: kv.exists(f"{free}:2"))
            assert ask("ping") == {"ok": "pong"}
            kv.set(free, True)
            last.get(timeout=PATIENCE)
            assert (running.state, waiting.state) == ("REVOKED", "REVOKED")
            assert not kv.exists(f"{free}:1"), "a task that was revoked while it waited is not begun"
    finally:
        app.close()
        app.backend.result_consumer.stop()
        app.backend.client.close()


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_whose_queue_is_deleted_goes_on(
    tmp_path: Path, broker: str, synap_url: str, sync_synap_client: SynapClient, pool: str
) -> None:
    (tmp_path / "tasks.py").write_text(APP, "utf-8")
    app = celery.Celery("tasks", broker=broker, backend=broker)
    prefix, queue = str(uuid.uuid4()), f"{broker.rpartition('/')[2]}:celery"
    try:
        with worker(tmp_path, broker, synap_url, f"--pool={pool}", "--concurrency=1") as process:
            for number in range(3):
                assert app.send_task("tasks.work", (prefix, number)).get(timeout=PATIENCE) == number
                sync_synap_client.queue.delete(queue)
                until("it listens again", lambda: queue in sync_synap_client.queue.list())
            assert process.poll() is None
    finally:
        app.close()
        app.backend.result_consumer.stop()
        app.backend.client.close()


def connection(broker: str, **options: Any) -> Any:
    return kombu.Connection(broker, transport_options=options)


def test_a_rejected_message_is_a_dead_letter_only_where_that_is_wanted(
    broker: str, sync_synap_client: SynapClient
) -> None:
    for keep in (False, True):
        name = f"q{uuid.uuid4()}"
        with connection(broker, dead_letter=keep) as broken:
            with broken.SimpleQueue(name) as queue:
                queue.put({"n": 1})
                queue.get(timeout=PATIENCE).reject()
        prefix = broker.rpartition("/")[2]
        assert (f"{prefix}:{name}.dlq" in sync_synap_client.queue.list()) is keep


def test_what_passes_is_an_error_that_celery_reconnects_after() -> None:
    with ThrowawayServer(arguments=["--rate-limit", "3"]) as server, SynapClient(url=server.url, retries=0) as client:
        broker = connection(server.url.replace("http://", "synap://"), options={"retries": 0})

        def refuses() -> bool:
            with contextlib.suppress(RateLimitError):
                while True:
                    client.kv.get("key")
            try:
                broker.drain_events(timeout=0)
            except broker.connection_errors:
                return True
            except socket.timeout:
                pass
            return False

        with broker, kombu.Consumer(broker, [kombu.Queue("q")], callbacks=[]):
            until("it is refused", refuses)


@pytest.mark.parametrize("how", ["ack", "requeue"])
def test_what_passes_while_a_message_is_settled_is_one_too(
    broker: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise RateLimitError("RATE_LIMIT_EXCEEDED", "not now")

    with connection(broker) as connected:
        queue = connected.SimpleQueue("q")
        queue.put("work")
        message = queue.get(timeout=PATIENCE)
        with monkeypatch.context() as patch:
            for name in ("ack", "nack"):
                patch.setattr(type(connected.transport.synap.queue), name, refused)
            with pytest.raises(connected.connection_errors):
                getattr(message, how)()
        queue.close()


def test_a_message_that_came_back_says_so_and_keeps_its_place(broker: str) -> None:
    with connection(broker) as first:
        queue = kombu.Queue("q")(first.default_channel)
        queue.declare()
        producer = kombu.Producer(first.default_channel)
        for number in range(3):
            producer.publish(number, routing_key="q")
        queue.get().requeue()
        again = queue.get()
        assert again.payload == 0
        assert again.delivery_info["redelivered"] is True
        again.ack()


def test_what_a_process_leaves_behind_is_swept_by_the_next_of_its_kind(
    broker: str, sync_synap_client: SynapClient
) -> None:
    exchange = kombu.Exchange("control", type="fanout")
    with connection(broker) as killed:
        kombu.Queue("mailbox", exchange, auto_delete=True)(killed.default_channel).declare()
        prefix = killed.transport.prefix
        bindings: Bindings = killed.transport.bindings
        assert bindings.of("control") == [("", None, "mailbox")]
        assert f"{prefix}mailbox" in sync_synap_client.queue.list()
        killed.transport.leases.drop_queue("mailbox")
        sync_synap_client.kv.delete(f"{bindings._prefix}alive:mailbox")  # as time would
        with connection(broker) as later:
            kombu.Queue("other", exchange, auto_delete=True)(later.default_channel).declare()
        assert f"{prefix}mailbox" not in sync_synap_client.queue.list()


def counting(calls: Counter[str]) -> Callable[[object], ContextManager[None]]:
    """Return a hook that counts calls by their command."""

    @contextlib.contextmanager
    def hook(about: object) -> Iterator[None]:
        if isinstance(about, Call):
            calls[about.command] += 1
        yield

    return hook


@pytest.mark.usefixtures("own_logging")
def test_many_tasks_cost_few_subscriptions_and_a_chord_is_looked_through_once(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group or chord of more than 10,000 was refused, and each part of a chord listed all of them."""
    monkeypatch.setattr(sharing, "TOGETHER", 7)
    calls: Counter[str] = Counter()

    def scan(client: SynapClient, prefix: str) -> Iterator[str]:
        calls["looked through"] += 1
        yield from bindings.scan(client, prefix)

    monkeypatch.setattr(backend, "scan", scan)
    remove = add_hook(counting(calls))
    app = celery.Celery("many", broker=broker, backend=broker)
    app.conf.update(broker_connection_retry_on_startup=True, result_backend_thread_safe=True)

    @app.task(shared=False)
    def number(number: int) -> int:
        return number

    @app.task(shared=False)
    def total(numbers: List[int]) -> int:
        return sum(numbers)

    @app.task(shared=False)
    def fail() -> None:
        raise ValueError("of its own")

    try:
        parts = [number.s(i) for i in range(30)]
        never = celery.group(parts)()  # whose results nobody waits for
        assert calls["pubsub.subscribe"] == 0
        with start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=PATIENCE):
            assert celery.chord(parts, total.s())().get(timeout=PATIENCE) == sum(range(30))
            assert calls["looked through"] == 1
            assert celery.group(parts)().get(timeout=PATIENCE) == list(range(30))
            assert never.get(timeout=PATIENCE) == list(range(30))
            failed = celery.chord([number.s(1), fail.s()], total.s())()
            assert isinstance(failed.get(timeout=PATIENCE, propagate=False), ChordError)
        assert calls["pubsub.subscribe"] < 30
        assert not app.backend.result_consumer._subscribed
        found = app.backend.client.kv.scan(count=10_000).keys
        assert not [key for key in found if never.id not in key and "celery-taskset-meta" in key and ".f" not in key]
    finally:
        remove()
        app.close()
        app.backend.client.close()


def test_tasks_that_are_given_up_while_they_are_subscribed_to_leave_no_subscription(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = celery.Celery("given-up", broker=broker, backend=broker)
    consumer = app.backend.result_consumer
    subscribed: List[Any] = []

    class Subscribing:
        """The client's, while another thread gives up tasks."""

        def subscribe(self, topics: List[str], callback: object) -> Any:
            given_up = ["a", "b"] if subscribed else ["a"]
            subscribed.append(set(topics))
            for task_id in given_up:
                consumer.cancel_for(task_id)
            return self

        def unsubscribe(self) -> None:
            subscribed.append("unsubscribed")

    with app.backend.client as client:
        monkeypatch.setattr(app.backend, "_client", SimpleNamespace(pubsub=Subscribing(), kv=client.kv))
        for expected in (["b"], []):
            for task_id in ("a", "b"):
                consumer.consume_from(task_id)
            consumer.drain_events(timeout=0)
            assert list(consumer._subscribed) == expected
            for task_id in expected:
                consumer.cancel_for(task_id)
            assert subscribed[-1] == "unsubscribed"
        assert subscribed.count("unsubscribed") == 2
    app.close()


FOREIGN: List[Any] = [
    {"hello": "from the console"},
    7,
    None,
    "no JSON",
    "[" * 100_000,
    "[1]",
    "{}",
    '{"properties": {}}',
    '{"properties": [], "body": "b"}',
    '{"properties": {}, "body": {"a": 1}}',
    '{"properties": {"delivery_info": null}, "body": "b"}',
    '{"properties": {"body_encoding": 1}, "body": "b"}',
    '{"properties": {"body_encoding": "rot13"}, "body": "b"}',
    '{"properties": {"body_encoding": "base64"}, "body": "b"}',
    '{"properties": {}, "body": "b", "headers": ["task"]}',
    '{"properties": {}, "body": "b", "content-type": {"a": 1}}',
    '{"properties": {"n": {"__type__": "unheard of", "__value__": 1}}, "body": "b"}',
]
"""What others may publish to a queue, none of which kombu has."""


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: repr(foreign)[:30])
def test_what_is_not_kombus_is_rejected_and_all_others_delivered(
    broker: str, foreign: Any, sync_synap_client: SynapClient
) -> None:
    name = f"{broker.rpartition('/')[2]}:q"
    got: List[Any] = []
    with connection(broker, dead_letter=True) as connected:
        queue = kombu.Queue("q")(connected.default_channel)
        queue.declare()
        producer = kombu.Producer(connected.default_channel)
        for number in range(4):
            if number % 2:
                sync_synap_client.queue.publish(name, foreign)
            producer.publish(number, routing_key="q")
        for message in (queue.get(), queue.get()):
            got.append(message.payload)
            message.ack()

        def receive(payload: object, message: Any) -> None:
            got.append(payload)
            message.ack()

        with kombu.Consumer(connected, [queue], callbacks=[receive]):
            while len(got) < 4:
                connected.drain_events(timeout=PATIENCE)
    assert got == [0, 1, 2, 3]
    stats = sync_synap_client.queue.stats(name)
    assert (stats.depth, stats.pending) == (0, 0)
    assert sync_synap_client.queue.stats(f"{name}.dlq").depth == 2


def test_a_message_whose_expiry_is_no_number_is_rejected_too(broker: str, sync_synap_client: SynapClient) -> None:
    with connection(broker) as connected:
        queue = kombu.Queue("q")(connected.default_channel)
        queue.declare()
        kombu.Producer(connected.default_channel).publish("work", routing_key="q")
        name = f"{broker.rpartition('/')[2]}:q"
        message = sync_synap_client.queue.consume(name)
        assert message is not None
        sync_synap_client.queue.ack(name, message.message_id)
        for expires in ("soon", "inf"):
            sync_synap_client.queue.publish(name, message.message, headers={"expires": expires})
        assert queue.get(no_ack=True).payload == "work"
        assert queue.get() is None


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_goes_on_after_a_message_that_is_not_celerys(
    tmp_path: Path, broker: str, synap_url: str, sync_synap_client: SynapClient, pool: str
) -> None:
    """It ended, and so did the next one: the message came back. What was fetched with it went undelivered."""
    (tmp_path / "tasks.py").write_text(APP, "utf-8")
    app = celery.Celery("tasks", broker=broker, backend=broker)
    prefix, queue = str(uuid.uuid4()), f"{broker.rpartition('/')[2]}:celery"
    try:
        results = []
        for number in range(3):
            results.append(app.send_task("tasks.work", (prefix, number)))
            sync_synap_client.queue.publish(queue, {"hello": number})
        with worker(tmp_path, broker, synap_url, f"--pool={pool}", "--concurrency=1") as process:
            assert [result.get(timeout=PATIENCE) for result in results] == [0, 1, 2]
            until("nothing is left", lambda: nothing_left(sync_synap_client, broker))
            assert process.poll() is None
    finally:
        app.close()
        app.backend.result_consumer.stop()
        app.backend.client.close()


def test_a_wrong_key_is_an_error_and_not_shown(broker: str) -> None:
    shown = kombu.Connection(broker.replace("synap://", "synap://:secret@")).as_uri()
    assert "secret" not in shown
    backend = synap.contrib.celery.SynapBackend(app=celery.Celery("x"), url="synap://:secret@localhost:1")
    assert backend.as_uri() == "synap://:**@localhost:1"


def test_waiting_for_nothing_ends_in_time(broker: str) -> None:
    with connection(broker) as waiting:
        consumer = kombu.Consumer(waiting, [kombu.Queue("empty")], callbacks=[print])
        with consumer, pytest.raises(socket.timeout):
            waiting.drain_events(timeout=0.2)


def test_leases_of_many_messages_are_not_renewed_one_by_one(synap_url: str) -> None:
    """A worker with 20,000 tasks for later sent as many requests, and lost leases before it came to them."""
    queue = str(uuid.uuid4())
    calls: Counter[str] = Counter()
    remove = add_hook(counting(calls))
    try:
        with SynapClient(url=synap_url) as client:
            client.queue.publish(queue, "there")
            there = client.queue.consume(queue, ack_deadline=60)
            assert there is not None
            leases = Leases(client, Bindings(client, "kombu:"), 3600)
            kept, *gone = [
                leases.hold(queue, name) for name in (there.message_id, *(str(uuid.uuid4()) for _ in "1234"))
            ]
            leases._renew()
            leases.close()
    finally:
        remove()
    assert calls["queue.publish"] == 1, "they are counted"
    assert calls["queue.extend"] == 0
    assert leases.release(kept), "it is held still"
    assert not any(leases.release(tag) for tag in gone), "those that the service doesn't know are not"


def test_messages_are_asked_for_again_after_an_error_that_was_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody: Any = {"url": f"http://127.0.0.1:{unused.getsockname()[1]}", "retries": 0, "timeout": 0.1}
        with SynapClient(**nobody) as client:
            leases = Leases(client, Bindings(client, "kombu:"), 60)
            fetcher = Fetcher(nobody, leases)
            try:
                for _ in range(2):
                    fetcher.ask("work", ["q"], 1)
                    ready, _, _ = select.select([fetcher.fileno()], [], [], PATIENCE)
                    assert ready
                    with pytest.raises(SynapError):
                        fetcher.take()
            finally:
                fetcher.close()
