"""Heavy but legal requests, and what another client's ping has to wait meanwhile.

    python -m tests.adversary.heavy [NAME ...] [--seconds 4]

starts a service of its own for each request of the list, has one client send it again and again (bounded), and another
one ping all the time; prints a table with the percentiles of the pings' round trips, in milliseconds. The aim: p99.9
under 50 ms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from synap.commands import BATCH, COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import GZIP, MAX_ANSWER, Frame, FrameReader, Kind, frame
from synap.wire.handshake import Hello, greet

__all__ = ["ATTACKS", "main", "measure"]

AIM = 0.050
PINGER = """
import os, socket, sys, time
from synap.wire.frames import MAX_ANSWER, FrameReader, Kind, frame
from synap.wire.handshake import Hello, greet
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
connection.sendall(greet("x", Hello(os.urandom(16).hex(), "json", False, None)))
data = b""
while b"\\r\\n\\r\\n" not in data:
    data += connection.recv(65536)
ping = frame(Kind.PING, 1)
end = time.monotonic() + float(sys.argv[2])
times = []
print("ready", flush=True)
sys.stdin.readline()
while time.monotonic() < end:
    began = time.perf_counter()
    connection.sendall(ping)
    got = connection.recv(65536)
    if not got:
        break
    while len(got) < 12 or len(got) < 12 + int.from_bytes(got[:4], "big"):
        got += connection.recv(65536)
    times.append(time.perf_counter() - began)
    time.sleep(0.001)
print(*times)
"""


class Client:
    """A native connection that says exactly what it is told, and reads or doesn't."""

    def __init__(self, server: ThrowawayServer, *, gzipped: bool = False) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.settimeout(60)
        self.reader = FrameReader(MAX_ANSWER)
        self.frames: list[Frame] = []
        self.number = 0
        self.socket.sendall(greet("x", Hello(os.urandom(16).hex(), "json", gzipped, None)))
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)

    def write(self, command: str, flags: int = 0, **payload: Any) -> bytes:
        """Build a request."""
        self.number += 1
        body = json.dumps(payload).encode()
        if flags & GZIP:
            body = gzip.compress(body)
        code = BATCH.code if command == "batch" else COMMANDS[command].code
        return frame(Kind.REQUEST, self.number, body, code, flags)

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def read(self, count: int = 1) -> list[Frame]:
        """Read so many frames."""
        while len(self.frames) < count:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self.frames += self.reader.feed(data)
        told, self.frames = self.frames[:count], self.frames[count:]
        return told

    def call(self, command: str, **payload: Any) -> Frame:
        """Send a request and read its answer."""
        self.send(self.write(command, **payload))
        return self.read()[0]

    def again(self, request: bytes, count: int = 1) -> None:
        """Send a request that was built before, and read its answer."""
        self.send(*[request] * count)
        self.read(count)


Prepare = Callable[[ThrowawayServer], Callable[[], None]]


class Attack(NamedTuple):
    """`prepare` fills a service, and returns what is then done again and again."""

    name: str
    prepare: Prepare


def _batch(item: dict[str, Any], count: int, **flags: int) -> Prepare:
    def prepare(server: ThrowawayServer) -> Callable[[], None]:
        client = Client(server)
        for at in range(0, 10_000, 10_000):
            pairs = [{"key": f"key-{at + number:06}", "value": number} for number in range(10_000)]
            client.call("kv.mset", pairs=pairs)
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


def _redrive(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("queue.create", queue="q", config={"max_depth": 10_000_000})
    client.call("queue.create", queue="q.dlq", config={"max_depth": 10_000_000})
    item = {"command": "queue.publish", "payload": {"queue": "q.dlq", "message": 1}}
    for _ in range(8):
        client.call("batch", commands=[item] * 25_000)
    redrive = client.write("queue.redrive", queue="q")

    def again() -> None:
        client.again(redrive)
        time.sleep(0.5)

    return again


def _purge(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    item = {"command": "queue.publish", "payload": {"queue": "q", "message": 1}}

    def again() -> None:
        for _ in range(4):
            client.call("batch", commands=[item] * 25_000)
        client.call("queue.purge", queue="q")

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
    client.call("kv.set", key="k", value={"text": "x" * 300})
    request = client.write("kv.mget", keys=["k"] * 100_000)
    return lambda: client.again(request)


def _pipelined(server: ThrowawayServer) -> Callable[[], None]:
    client = Client(server)
    client.call("kv.set", key="k", value="x" * 10)
    chunk = client.write("kv.get", key="k") * 20_000

    def again() -> None:
        client.send(chunk)
        client.read(20_000)

    return again


def _many_connections(server: ThrowawayServer) -> Callable[[], None]:
    clients = [Client(server) for _ in range(30)]
    chunk = clients[0].write("kv.incr", key="k") * 2_000

    def again() -> None:
        for client in clients:
            client.send(chunk)
        for client in clients:
            client.read(2_000)

    return again


def _metrics(server: ThrowawayServer) -> Callable[[], None]:
    import http.client

    client = Client(server)
    for at in range(0, 100_000, 10_000):
        items = [{"command": "queue.create", "payload": {"queue": f"q{at + number}"}} for number in range(10_000)]
        client.call("batch", commands=items)

    def again() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        connection.close()
        client.call("queue.list")

    return again


def _stats(server: ThrowawayServer) -> Callable[[], None]:
    _metrics(server)
    client = Client(server)
    request = client.write("admin.stats")
    return lambda: client.again(request)


def _websocket_frames(server: ThrowawayServer) -> Callable[[], None]:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    connection.recv(65536)
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


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("nothing", lambda server: lambda: time.sleep(0.1)),
        Attack("batch of 100,000 gets", _batch({"command": "kv.get", "payload": {"key": "key-000001"}}, 100_000)),
        Attack("batch of 100,000 incr", _batch({"command": "kv.incr", "payload": {"key": "n"}}, 100_000)),
        Attack("100,000 misspelt commands", _batch({"command": "kv.gett", "payload": {}}, 100_000)),
        Attack("50,000 distinct misspelt", _distinct(50_000)),
        Attack("100,000 wrong fields", _batch({"command": "kv.get", "payload": {"kay": 1}}, 100_000)),
        Attack("8,000 scans, gzipped", _batch({"command": "kv.scan", "payload": {"count": 10_000}}, 8_000, flags=GZIP)),
        Attack("16,000 # patterns", _patterns),
        Attack("redrive of 200,000", _redrive),
        Attack("purge of 100,000", _purge),
        Attack("mset of 100,000", _mset(100_000)),
        Attack("del of 100,000", _mset(100_000, delete=True)),
        Attack("clear of 100,000", _clear),
        Attack("history of 30 MB", _history),
        Attack("history of 30 MB, gzipped", _gzipped_history),
        Attack("mget of 30 MB", _mget),
        Attack("metrics with 100,000 queues", _metrics),
        Attack("stats with 100,000 queues", _stats),
        Attack("20,000 gets pipelined", _pipelined),
        Attack("30 connections that pipeline", _many_connections),
        Attack("small WebSocket frames", _websocket_frames),
        Attack("8 MB in the other format", _bodies),
    )
}


class Waits(NamedTuple):
    """Round trips of pings beside an attack, in seconds."""

    pings: int
    rounds: int
    p50: float
    p99: float
    p999: float
    most: float
    memory: int
    """Bytes that the service took at most."""


def measure(attack: Attack, seconds: float, arguments: list[str] | None = None) -> Waits:
    """Attack a service of its own for so long, and ping it meanwhile."""
    with ThrowawayServer(arguments=arguments or []) as server:
        again = attack.prepare(server)
        command = [sys.executable, "-c", PINGER, str(server.port), str(seconds)]
        pinger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert pinger.stdin is not None
        assert pinger.stdout is not None
        pinger.stdout.readline()
        pinger.stdin.write("go\n")
        pinger.stdin.flush()
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            again()
            rounds += 1
        output, _ = pinger.communicate(timeout=120)
        times = sorted(map(float, output.split()))
        memory = _peak(server.pid)
    p50, p99, p999 = (times[min(len(times) - 1, int(part * len(times)))] for part in (0.5, 0.99, 0.999))
    return Waits(len(times), rounds, p50, p99, p999, times[-1], memory)


def _peak(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="requests of the list; all, where none is named")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each")
    options = parser.parse_args()
    chosen = [attack for name, attack in ATTACKS.items() if not options.names or any(n in name for n in options.names)]
    click.echo(f"{'':<30} {'pings':>6} {'rounds':>6} {'p50':>8} {'p99':>8} {'p99.9':>8} {'most':>8} {'peak MB':>8}")
    for attack in chosen:
        found = measure(attack, options.seconds)
        millis = " ".join(f"{1000 * value:8.1f}" for value in (found.p50, found.p99, found.p999, found.most))
        click.echo(f"{attack.name:<30} {found.pings:6} {found.rounds:6} {millis} {found.memory / 1e6:8.0f}")


if __name__ == "__main__":
    main()
