"""Heavy but legal requests: what is prepared for each, and what is then done again and again."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from websockets.sync.client import connect

from synap.commands import BATCH, COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import GZIP, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.adversary.blunt_client import Client, websocket

__all__ = ["ATTACKS", "Attack"]

Prepare = Callable[[ThrowawayServer], Callable[[], None]]


class Attack(NamedTuple):
    """`prepare` fills a service, and returns what is then done again and again."""

    name: str
    prepare: Prepare
    arguments: tuple[str, ...] = ()
    """Of `synap serve`."""


def _batch(item: dict[str, Any], count: int, **flags: int) -> Prepare:
    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        client = Client(server)
        client.call("kv.mset", pairs=[{"key": f"key-{number:06}", "value": number} for number in range(10_000)])
        request = client.write("batch", commands=[item] * count, **flags)
        return lambda: client.again(request)

    return prepare


def _distinct(count: int) -> Prepare:
    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        client = Client(server)
        items = [{"command": f"kv.gett{number}", "payload": {}} for number in range(count)]
        request = client.write("batch", commands=items)
        return lambda: client.again(request)

    return prepare


def _patterns(server: ThrowawayServer) -> Callable[[], None]:
    subscriber, publisher = Client(server), Client(server)
    import itertools

    words = ["#.a", "#.b", "#.c", "#.d", "a.#", "b.#", "#.#", "*.#"]
    patterns = [".".join(parts) for parts in itertools.islice(itertools.product(words, repeat=5), 16_000)]
    for at in range(0, len(patterns), 8000):
        subscriber.call("pubsub.subscribe", topics=patterns[at : at + 8000])
    topic = ".".join("abcd"[number % 4] for number in range(12))
    request = publisher.write("pubsub.publish", topic=topic, message=1)
    subscriber.socket.setblocking(False)
    return lambda: publisher.again(request, 10)


def _publish(client: Client, queue: str, count: int, **fields: Any) -> None:
    item = {"command": "queue.publish", "payload": {"queue": queue, "message": 1, **fields}}
    request = client.write("batch", commands=[item] * 10_000)
    for _ in range(count // 10_000):
        client.again(request)


def _redrive(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    client.call("queue.create", queue="q.dlq", config={"max_depth": 10_000_000})
    _publish(client, "q.dlq", 200_000)
    redrive = client.write("queue.redrive", queue="q")

    def again() -> None:
        client.again(redrive)
        time.sleep(0.5)

    return again


def _purge(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    _publish(client, "q", 1_000_000)

    def again() -> None:
        client.call("queue.purge", queue="q")
        _publish(client, "q", 100_000)

    return again


def _mset(count: int, *, delete: bool = False) -> Prepare:
    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        client = Client(server)
        keys = [f"key-{number:06}" for number in range(count)]
        put = client.write("kv.mset", pairs=[{"key": key, "value": 1} for key in keys])
        gone = client.write("kv.del", keys=keys)

        def again() -> None:
            client.again(put)
            if delete:
                client.again(gone)

        return again

    return prepare


def _clear(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    puts = [
        client.write("kv.mset", pairs=[{"key": f"key-{at + number:06}", "value": 1} for number in range(10_000)])
        for at in range(0, 100_000, 10_000)
    ]
    clear = client.write("kv.clear", prefix="")

    def again() -> None:
        for put in puts:
            client.again(put)
        client.again(clear)

    return again


def _history(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    item = {"command": "stream.publish", "payload": {"room": "r", "event_type": "t", "data": {"text": "x" * 3000}}}
    for _ in range(10):
        client.call("batch", commands=[item] * 1000)
    request = client.write("stream.history", room="r", limit=10_000)
    return lambda: client.again(request)


def _gzipped_history(server: ThrowawayServer) -> Callable[[], None]:
    again = _history(server)
    client = Client(server, gzipped=True)
    request = client.write("stream.history", room="r", limit=10_000)
    del again
    return lambda: client.again(request)


def _mget(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("kv.set", key="k", value={"text": "x" * 3000})
    request = client.write("kv.mget", keys=["k"] * 10_000)
    return lambda: client.again(request)


def _pipelined(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("kv.set", key="k", value="x" * 10)
    chunk = client.write("kv.get", key="k") * 20_000

    def again() -> None:
        client.send(chunk)
        client.read(20_000)

    return again


def _many_connections(connections: int, requests: int) -> Prepare:
    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        clients = [Client(server) for _ in range(connections)]
        chunk = clients[0].write("kv.incr", key="k") * requests

        def again() -> None:
            for client in clients:
                client.send(chunk)
            for client in clients:
                client.read(requests)

        return again

    return prepare


def _metrics(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    for at in range(0, 100_000, 10_000):
        items = [{"command": "queue.create", "payload": {"queue": f"q{at + number}"}} for number in range(10_000)]
        client.call("batch", commands=items)

    def again() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        connection.close()

    return again


def _lists(server: ThrowawayServer) -> Callable[[], None]:
    _metrics(server)
    client = Client(server)
    for at in range(0, 100_000, 10_000):
        items = [
            {"command": "stream.publish", "payload": {"room": f"r{at + number}", "event_type": "t", "data": 1}}
            for number in range(10_000)
        ]
        client.call("batch", commands=items)

    def again() -> None:
        client.call("queue.list")
        client.call("stream.rooms")

    return again


def _stats(server: ThrowawayServer) -> Callable[[], None]:
    _metrics(server)
    client = Client(server)
    request = client.write("admin.stats")
    return lambda: client.again(request)


def _websocket_frames(server: ThrowawayServer) -> Callable[[], None]:
    connection = websocket(server)
    body = b'{"command":"kv.get","payload":{"key":"k"}}'
    one = bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body
    chunk = one * 20_000
    drain = threading.Thread(target=_drain, args=(connection,), daemon=True)
    drain.start()
    return lambda: connection.sendall(chunk)


def _drain(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def _bodies(server: ThrowawayServer) -> Callable[[], None]:
    """Large values in the other format: they are translated for each reader."""
    import msgpack

    writer = socket.create_connection(("127.0.0.1", server.port))
    writer.sendall(greet("x", Hello(os.urandom(16).hex(), "msgpack", False, None)))
    writer.recv(65536)
    value = {f"key {number}": [number, "text", 1.5] for number in range(200_000)}
    body = msgpack.packb({"key": "k", "value": value})
    writer.sendall(frame(Kind.REQUEST, 1, body, COMMANDS["kv.set"].code))
    writer.recv(65536)
    reader = Client(server)
    request = reader.write("kv.get", key="k")
    return lambda: reader.again(request)


def _foreign_events(server: ThrowawayServer) -> Callable[[], None]:
    """A value of very many parts is pushed to those who read the other format."""
    subscribers = [Client(server, format="msgpack") for _ in range(3)]
    codes = COMMANDS["stream.subscribe"].code, COMMANDS["pubsub.subscribe"].code
    for one in subscribers:
        one.send(frame(Kind.REQUEST, 1, b"\x81\xa4room\xa1r", codes[0]))
        one.send(frame(Kind.REQUEST, 2, b"\x81\xa6topics\x91\xa1t", codes[1]))
        one.read(2)
    publisher = Client(server)
    value = b"[" + b",".join([b"[]"] * 1_000_000) + b"]"
    event = b'{"room":"r","event_type":"t","data":%b}' % value
    message = b'{"topic":"t","message":%b}' % value

    def again() -> None:
        publisher.again(frame(Kind.REQUEST, 1, event, COMMANDS["stream.publish"].code))
        publisher.again(frame(Kind.REQUEST, 2, message, COMMANDS["pubsub.publish"].code))
        for one in subscribers:
            one.read(2)

    return again


def _value(body: bytes, format: str = "json") -> Prepare:
    """A large value of very many parts, written and read."""

    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        connection = Client(server, format=format)
        request = frame(Kind.REQUEST, 1, body, COMMANDS["kv.set"].code)
        return lambda: connection.again(request)

    return prepare


def _too_many(server: ThrowawayServer) -> Callable[[], None]:
    """Ten megabytes in which there are more keys, commands or headers than are allowed, and values of a wrong kind."""
    client = Client(server)
    texts, lists = (b"[%b]" % b",".join([one] * (10_000_000 // (len(one) + 1))) for one in (b'"a"', b"[]"))
    items = b"[%b]" % b",".join([b'{"command":"a"}'] * 600_000)
    headers = b"{%b}" % b",".join(b'"%x":""' % number for number in range(800_000))
    large = lists[:9_000_001] + b"[]]"
    requests = [
        (COMMANDS["kv.del"], b'{"keys":%b}' % texts),
        (BATCH, b'{"commands":%b}' % items),
        (COMMANDS["queue.publish"], b'{"queue":"q","message":1,"headers":%b}' % headers),
        (COMMANDS["kv.set"], b'{"key":5,"value":%b}' % lists),
        (COMMANDS["kv.get"], b'{"key":%b}' % lists),
        (BATCH, b'{"atomic":true,"commands":[{"command":"kv.set","payload":{"key":"k","value":%b}}]}' % large),
    ]

    def again() -> None:
        for command, body in requests:
            client.again(frame(Kind.REQUEST, 1, body, command.code))

    return again


def _peek(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    _publish(client, "q", 200_000, delay=10_000)
    _publish(client, "q", 200_000)
    last = json.loads(client.call("queue.publish", queue="q", message=1).body)["message_id"]

    def again() -> None:
        client.call("queue.peek", queue="q", state="delayed", limit=1000)
        client.call("queue.peek", queue="q", after=last)

    return again


def _delete(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    item = {"command": "stream.publish", "payload": {"room": "r", "event_type": "t", "data": 1, "metadata": {"a": "b"}}}
    request = client.write("batch", commands=[item] * 10_000)

    def again() -> None:
        for _ in range(10):
            client.again(request)
        client.call("stream.delete", room="r")
        _publish(client, "q", 100_000)
        client.call("queue.delete", queue="q")

    return again


def _unsubscribe(server: ThrowawayServer) -> Callable[[], None]:
    """10,000 patterns end at once, by a command and with their connection; and 10,000 subscriptions with theirs."""

    def again() -> None:
        client = Client(server)
        topics = [f"a{number}.*.c" for number in range(10_000)]
        told = client.call("pubsub.subscribe", topics=topics)
        client.call("pubsub.unsubscribe", subscription_id=json.loads(told.body)["subscription_id"])
        client.call("pubsub.subscribe", topics=topics)
        client.socket.close()
        client = Client(server)
        for _ in range(10):
            client.send(*(client.write("stream.subscribe", room=f"r{number % 7}") for number in range(1000)))
            client.read(1000)
        client.socket.close()

    return again


def _long_patterns(server: ThrowawayServer) -> Callable[[], None]:
    """A subscription to 10,000 patterns of 120 words, and a listing with a pattern that takes long to match them."""
    words = ["a"] * 117
    topics = [".".join(["*", f"{number:04}", *words, "*"]) for number in range(10_000)]

    def again() -> None:
        client = Client(server)
        client.call("pubsub.subscribe", topics=topics)
        client.call("pubsub.topics", pattern="#.a.#.a.#.a.#.b")
        client.socket.close()

    return again


def _cursors(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("stream.publish", room="r", event_type="t", data=1)
    items = [
        {"command": "stream.commit", "payload": {"room": "r", "name": f"n{number}", "offset": 0}}
        for number in range(10_000)
    ]
    client.call("batch", commands=items)
    request = client.write("stream.cursors", room="r")
    return lambda: client.again(request)


def _leases(server: ThrowawayServer) -> Callable[[], None]:
    """Leases of 100,000 messages end at the same moment."""
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000, "max_retries": 1000})
    _publish(client, "q", 100_000)

    def again() -> None:
        for _ in range(100):
            client.call("queue.consume_many", queues=["q"], max=1000, ack_deadline=1)
        time.sleep(1)

    return again


def _expiry(server: ThrowawayServer) -> Callable[[], None]:
    """200,000 keys expire within a second."""
    client = Client(server)

    def again() -> None:
        for at in range(0, 200_000, 10_000):
            client.call(
                "kv.mset", pairs=[{"key": f"key-{at + number:06}", "value": 1, "ttl": 1} for number in range(10_000)]
            )
        time.sleep(1)

    return again


def _retention(server: ThrowawayServer) -> Callable[[], None]:
    """A room with 100,000 events, all of which are too old a second later."""
    client = Client(server)
    item = {"command": "stream.publish", "payload": {"room": "r", "event_type": "t", "data": 1}}
    request = client.write("batch", commands=[item] * 10_000)

    def again() -> None:
        for _ in range(10):
            client.again(request)
        time.sleep(2)

    return again


def _idle(server: ThrowawayServer) -> Callable[[], None]:
    """100,000 queues that go since nobody has used them."""
    client = Client(server)
    rounds = iter(range(1000))

    def again() -> None:
        number = next(rounds)
        for at in range(0, 100_000, 10_000):
            client.send(*(client.write("queue.consume", queue=f"q{number}-{at + one}") for one in range(10_000)))
            client.read(10_000)
        time.sleep(2)

    return again


def _scan(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    for at in range(0, 200_000, 10_000):
        client.call("kv.mset", pairs=[{"key": f"key-{at + number:06}", "value": 1} for number in range(10_000)])
    request = client.write("kv.scan", prefix="key-", count=10_000)
    return lambda: client.again(request)


def _atomic(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    items = [{"command": "queue.publish", "payload": {"queue": "q", "message": number}} for number in range(5000)]
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    request = client.write("batch", commands=items, atomic=True)
    return lambda: client.again(request)


def _inflated(server: ThrowawayServer) -> Callable[[], None]:
    """Ten megabytes of little, which come as some kilobytes, and of much, which come as five megabytes."""
    client = Client(server)
    texts = ["x" * 9_900_000, os.urandom(4_900_000).hex()]
    requests = [client.write("kv.set", key="k", value=text, flags=GZIP) for text in texts]
    bodies = [gzip.compress(json.dumps({"command": "kv.exists", "payload": {"key": text}}).encode()) for text in texts]

    def again() -> None:
        for request in requests:
            client.again(request)
        for body in bodies:
            _post(server, body, {"Content-Encoding": "gzip"})

    return again


NOTHING: Mapping[str, str] = {}


def _post(server: ThrowawayServer, body: bytes, more: Mapping[str, str] = NOTHING, format: str = "json") -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/api/v1/command", body, {"Content-Type": f"application/{format}", **more})
    connection.getresponse().read()
    connection.close()


def _http_lists(format: str, *, gzipped: bool = False) -> Prepare:
    """Long lists over HTTP: an `mget` and a history of 30 MB, and a batch."""

    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        import msgpack

        _history(server)
        _mget(server)
        encode = msgpack.packb if format == "msgpack" else lambda content: json.dumps(content).encode()
        get = {"command": "kv.get", "payload": {"key": "k"}}
        bodies = [
            encode({"command": "kv.mget", "payload": {"keys": ["k"] * 10_000}}),
            encode({"command": "stream.history", "payload": {"room": "r", "limit": 10_000}}),
            encode({"type": "batch", "commands": [get] * 10_000}),
        ]

        def again() -> None:
            for body in bodies:
                _post(server, body, {"Accept-Encoding": "gzip"} if gzipped else {}, format)

        return again

    return prepare


def _websocket_lists(server: ThrowawayServer) -> Callable[[], None]:
    """An `mget` of 30 MB, and a text of 9.9 MB that is stored, over a WebSocket."""
    _mget(server)
    with_server = f"ws://127.0.0.1:{server.port}/api/v1/ws"
    connection = connect(with_server, proxy=None, max_size=None, compression=None)
    asked = json.dumps({"command": "kv.mget", "payload": {"keys": ["k"] * 10_000}})
    stored = json.dumps({"command": "kv.set", "payload": {"key": "other", "value": "x" * 9_900_000}})

    def again() -> None:
        for request in (asked, stored):
            connection.send(request)
            connection.recv()

    return again


def _guarded(server: ThrowawayServer) -> Callable[[], None]:
    """Batches of commands that are written to the audit log."""
    client = Client(server)
    make = {"command": "queue.create", "payload": {"queue": "q"}}
    request = client.write("batch", commands=[make] * 10_000)
    return lambda: client.again(request)


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("nothing", lambda server: lambda: time.sleep(0.1)),
        Attack("batch of 10,000 gets", _batch({"command": "kv.get", "payload": {"key": "key-000001"}}, 10_000)),
        Attack("batch of 10,000 incr", _batch({"command": "kv.incr", "payload": {"key": "n"}}, 10_000)),
        Attack("atomic batch of 5,000", _atomic),
        Attack("10,000 misspelt commands", _batch({"command": "kv.gett", "payload": {}}, 10_000)),
        Attack("10,000 distinct misspelt", _distinct(10_000)),
        Attack("10,000 wrong fields", _batch({"command": "kv.get", "payload": {"kay": 1}}, 10_000)),
        Attack("8,000 scans, gzipped", _batch({"command": "kv.scan", "payload": {"count": 10_000}}, 8_000, flags=GZIP)),
        Attack("16,000 # patterns", _patterns),
        Attack("10,000 patterns of 120 words", _long_patterns),
        Attack("redrive of 200,000", _redrive),
        Attack("purge of 1,000,000", _purge),
        Attack("mset of 10,000", _mset(10_000)),
        Attack("del of 10,000", _mset(10_000, delete=True)),
        Attack("clear of 100,000", _clear),
        Attack("history of 30 MB", _history),
        Attack("history of 30 MB, gzipped", _gzipped_history),
        Attack("mget of 30 MB", _mget),
        Attack("metrics with 100,000 queues", _metrics),
        Attack("stats with 100,000 queues", _stats),
        Attack("20,000 gets pipelined", _pipelined),
        Attack("30 connections that pipeline", _many_connections(30, 2_000)),
        Attack("200 connections that pipeline", _many_connections(200, 300)),
        Attack("small WebSocket frames", _websocket_frames),
        Attack("8 MB in the other format", _bodies),
        Attack("3 MB pushed in the other format", _foreign_events),
        Attack("3,400,000 lists in a value", _value(b'{"key":"k","value":[%b[]]}' % (b"[]," * 3_399_999))),
        Attack("1,200,000 objects in a value", _value(b'{"key":"k","value":[%b{}]}' % (b'{"a":1},' * 1_199_999))),
        Attack(
            "10,000,000 lists, MessagePack",
            _value(
                b"\x82\xa3key\xa1k\xa5value\xdd" + (10_000_000).to_bytes(4, "big") + b"\x90" * 10_000_000, "msgpack"
            ),
        ),
        Attack("10 MB of too many items", _too_many),
        Attack("lists of 100,000 names", _lists),
        Attack("peek into 400,000", _peek),
        Attack("delete of a queue and a room", _delete),
        Attack("10,000 subscriptions end", _unsubscribe),
        Attack("10,000 cursors", _cursors),
        Attack("scan of 200,000 keys", _scan),
        Attack("100,000 leases end", _leases),
        Attack("200,000 keys expire", _expiry),
        Attack("100,000 events too old", _retention, ("--room-age", "1s")),
        Attack("100,000 idle queues go", _idle, ("--idle-queues", "1s")),
        Attack("10 MB, inflated", _inflated),
        Attack("lists of 30 MB, HTTP", _http_lists("json")),
        Attack("lists of 30 MB, HTTP, gzipped", _http_lists("json", gzipped=True)),
        Attack("lists, HTTP and MessagePack", _http_lists("msgpack")),
        Attack("list of 30 MB, WebSocket", _websocket_lists),
        Attack("10,000 lines of the audit log", _guarded, ("--audit-log", os.devnull)),
    )
}
