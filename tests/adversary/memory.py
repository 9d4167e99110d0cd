"""What fills memory without being a large value, and how much the service's process takes of it.

    python -m tests.adversary.memory [NAME ...] [--limit 128]

starts a service of its own with that `--memory-limit` (MiB) for each attack of the list, sends it until it is refused
(or twice the limit was sent), and prints the most memory that the process held. The aim: the limit and 64 MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click

from synap.commands import COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import HEADER, Kind, frame
from tests.adversary.blunt_client import Client, websocket
from tests.helpers.patience import PATIENCE

__all__ = ["ATTACKS", "BESIDE", "MIB", "Filled", "fill", "main", "peak"]

MIB = 1024 * 1024
BESIDE = 64 * MIB
"""What the process may take beside the limit: Python, the program, and what estimates are off by."""
ROUND = 2000
"""Commands in one batch."""


class Filled(NamedTuple):
    """How an attack ended: bytes the process held at most, as it began, and whether something was refused."""

    peak: int
    before: int
    refused: bool


_opened: list[socket.socket] = []
"""Connections of the attack under way, to be closed when it is over."""


def _client(server: ThrowawayServer, format: str = "json") -> Client:
    client = Client(server, format=format)
    _opened.append(client.socket)
    return client


Command = tuple[str, dict[str, Any]]
Attack = Callable[[ThrowawayServer, int], bool]
"""Attacks a service with that limit (bytes); returns whether it was refused something."""


def _commands(make: Callable[[int], Command]) -> Attack:
    """Send commands in batches until one is refused for want of memory."""

    def attack(server: ThrowawayServer, limit: int) -> bool:
        client = _client(server)
        sent = 0
        for at in itertools.count(0, ROUND):
            items = [{"command": command, "payload": payload} for command, payload in map(make, range(at, at + ROUND))]
            request = client.write("batch", commands=items)
            sent += len(request)
            client.send(request)
            results = json.loads(client.read()[0].body)["results"]
            if any((one.get("error") or {}).get("code") == "MEMORY_LIMIT" for one in results):
                return True
            if sent > 2 * limit:
                return False
        raise AssertionError

    return attack


def _singly(make: Callable[[int], Command], most: int = 10_000) -> Attack:
    """Send commands one by one, some thousands on a connection, until one is refused."""

    def attack(server: ThrowawayServer, limit: int) -> bool:
        clients: list[Client] = []
        for at in range(0, limit // 100, most):
            client = _client(server)
            clients.append(client)
            client.send(*(client.write(command, **payload) for command, payload in map(make, range(at, at + most))))
            client.send(client.write("kv.get", key="k"))
            while True:
                [told] = client.read()
                if told.kind == Kind.ERROR and b"MEMORY_LIMIT" in told.body:
                    return True
                if told.kind == Kind.ANSWER and told.id == client.number:
                    break
        return False

    return attack


def _answers(server: ThrowawayServer, limit: int) -> bool:
    """Answers that nobody reads, on many connections."""
    _client(server).call("kv.set", key="k", value="x" * 3_000_000)
    clients = [_client(server) for _ in range(2 * limit // 4_000_000 + 8)]
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(client.write("kv.mget", keys=["k"] * 3))
    return _some_ended(clients)


def _frames(server: ThrowawayServer, limit: int) -> bool:
    """Bodies that never become whole."""
    clients = [_client(server) for _ in range(2 * limit // 2_700_000 + 8)]
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(HEADER.pack(3_000_000, Kind.REQUEST, 0, COMMANDS["kv.set"].code, 1) + b"x" * 2_700_000)
    return _some_ended(clients)


def _bodies(server: ThrowawayServer, limit: int) -> bool:
    head = (
        b"POST /api/v1/command HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 3000000\r\n\r\n"
    )
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2 * limit // 2_700_000 + 8)]
    for connection in connections:
        _opened.append(connection)
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.sendall(head + b"x" * 2_700_000)
    return True


def _some_ended(clients: list[Client]) -> bool:
    """Say whether a connection was ended, or its request refused."""
    ended = 0
    for client in clients:
        client.socket.settimeout(0.2)
        try:
            while data := client.socket.recv(1 << 20):
                ended += b'"SERVICE_UNAVAILABLE"' in data
            ended += 1
        except TimeoutError:
            pass
        except OSError:
            ended += 1
    return ended > 0


def _translations(*, leave: bool) -> Attack:
    """Large values that are wanted in the other format on many connections, which stay or are closed at once."""

    def attack(server: ThrowawayServer, limit: int) -> bool:
        count = limit // 24  # a quarter of the limit as JSON: one answer fits what may be in flight
        body = b"\x82\xa3key\xa1k\xa5value\xdd" + count.to_bytes(4, "big") + b"\xc2" * count  # six times as JSON
        _client(server, format="msgpack").again(frame(Kind.REQUEST, 1, body, COMMANDS["kv.set"].code))
        clients = [_client(server) for _ in range(60)]
        for client in clients:
            client.send(client.write("kv.get", key="k"))
            if leave:
                client.socket.close()
        ended = 0
        for client in [_client(server)] if leave else clients:
            with contextlib.suppress(OSError, EOFError):
                if leave:
                    client.send(client.write("kv.get", key="k"))
                ended -= client.read()[0].kind == Kind.ANSWER
            ended += 1
        return leave or ended > 0

    return attack


def _translations_over_websocket(server: ThrowawayServer, limit: int) -> bool:
    """The same, all of them asked for over one WebSocket."""
    count = limit // 24
    body = b"\x82\xa3key\xa1k\xa5value\xdd" + count.to_bytes(4, "big") + b"\xc2" * count
    _client(server, format="msgpack").again(frame(Kind.REQUEST, 1, body, COMMANDS["kv.set"].code))
    connection = websocket(server)
    _opened.append(connection)
    connection.settimeout(PATIENCE)
    asked = b'{"command":"kv.get","payload":{"key":"k"}}'
    connection.sendall((bytes([0x81, 0x80 | len(asked)]) + b"\0\0\0\0" + asked) * 500)
    before = b""
    while data := connection.recv(1 << 20):
        if b"SERVICE_UNAVAILABLE" in before + data:
            return True
        before = data[-30:]
    return True


def _gzipped(server: ThrowawayServer, limit: int) -> bool:
    """Large answers that are compressed for who asked for them."""
    client = _client(server)
    client.call("kv.set", key="k", value="x" * (limit // 24))
    body = json.dumps({"command": "kv.mget", "payload": {"keys": ["k"] * 8}}).encode()
    head = (
        b"POST /api/v1/command HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Accept-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    for connection in connections:
        _opened.append(connection)
        connection.settimeout(PATIENCE)
        connection.sendall(head + body)
    return any(b" 503 " in connection.recv(20) for connection in connections)


def _left(server: ThrowawayServer, limit: int) -> bool:
    """Bodies of which a part came when their connection was closed."""
    for _ in range(limit // 250_000):
        client = _client(server)
        head = HEADER.pack(2_000_000, Kind.REQUEST, 0, COMMANDS["kv.set"].code, 1)
        client.send(head + b'{"key":"k","value":"' + b"x" * 500_000)
        client.send(b"x" * 500_000)
        client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while client.socket.recv(1 << 16):
                pass
        client.socket.close()
    return True


def _value(body: bytes, format: str) -> Attack:
    def attack(server: ThrowawayServer, limit: int) -> bool:
        client = _client(server, format=format)
        client.send(HEADER.pack(len(body), Kind.REQUEST, 0, COMMANDS["kv.set"].code, 1) + body)
        client.read()
        return True

    return attack


ATTACKS: dict[str, Attack] = {
    "small keys": _commands(lambda n: ("kv.set", {"key": f"k{n}", "value": 1})),
    "small keys with a ttl": _commands(lambda n: ("kv.set", {"key": f"k{n}", "value": 1, "ttl": 1000})),
    "long names of keys": _commands(lambda n: ("kv.set", {"key": f"{n:01000}", "value": 1})),
    "small messages": _commands(lambda n: ("queue.publish", {"queue": f"q{n % 100}", "message": 1})),
    "headers": _commands(
        lambda n: ("queue.publish", {"queue": f"q{n % 100}", "message": 1, "headers": {f"h{i}": "v" for i in range(9)}})
    ),
    "delayed messages": _commands(lambda n: ("queue.publish", {"queue": f"q{n % 100}", "message": 1, "delay": 1000})),
    "empty queues": _commands(lambda n: ("queue.create", {"queue": f"q{n}"})),
    "rooms of one event": _commands(lambda n: ("stream.publish", {"room": f"r{n}", "event_type": "t", "data": 1})),
    "small events": _commands(lambda n: ("stream.publish", {"room": f"r{n % 100}", "event_type": "t", "data": 1})),
    "metadata": _commands(
        lambda n: (
            "stream.publish",
            {"room": "r", "event_type": "t", "data": 1, "metadata": {f"m{i}": "v" for i in range(9)}},
        )
    ),
    "names of durable subscriptions": _commands(
        lambda n: (
            ("stream.commit", {"room": f"r{n // 5000}", "name": f"n{n}", "offset": -1})
            if n % 5000
            else ("stream.publish", {"room": f"r{n // 5000}", "event_type": "t", "data": 1})
        )
    ),
    "patterns": _singly(lambda n: ("pubsub.subscribe", {"topics": [f"a{n}.*.{i}" for i in range(10)]}), 2000),
    "subscriptions to rooms": _singly(lambda n: ("stream.subscribe", {"room": f"r{n % 7}"})),
    "waiting consumers": _singly(lambda n: ("queue.consume", {"queue": f"q{n % 100}", "timeout": 3600}), 9000),
    "remembered answers": _singly(lambda n: ("kv.incr", {"key": f"k{n % 7}"})),
    "answers that nobody reads": _answers,
    "bodies that never end": _frames,
    "bodies that never end, HTTP": _bodies,
    "bodies whose connections end": _left,
    "values in the other format": _translations(leave=False),
    "values in the other format, for nobody": _translations(leave=True),
    "values in the other format, one WebSocket": _translations_over_websocket,
    "answers to compress": _gzipped,
    "3,000,000 lists in a value": _value(
        b"\x82\xa3key\xa1k\xa5value\xdd" + (3_000_000).to_bytes(4, "big") + b"\x90" * 3_000_000, "msgpack"
    ),
    "350,000 objects in a value": _value(b'{"key":"k","value":[%b{}]}' % (b'{"a":1},' * 349_999), "json"),
}


def fill(attack: Attack, limit: int) -> Filled:
    """Attack a service of its own with that limit, and say how it ended."""
    arguments = ["--memory-limit", str(limit), "--transit-limit", str(max(limit // 4, 16 * MIB))]
    with ThrowawayServer(arguments=arguments) as server:
        before = peak(server.pid)
        try:
            refused = attack(server, limit)
            with contextlib.suppress(EOFError):  # it may be too much beside what others have not read
                _client(server).call("kv.get", key="k")
            _client(server).call("kv.exists", key="k")
            return Filled(peak(server.pid), before, refused)
        finally:
            while _opened:
                _opened.pop().close()


def peak(pid: int) -> int:
    """Return the most memory that a process has held so far."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _chosen(names: list[str]) -> Iterator[str]:
    return (name for name in ATTACKS if not names or any(part in name for part in names))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="attacks of the list; all, where none is named")
    parser.add_argument("--limit", type=int, default=128, help="MiB")
    options = parser.parse_args()
    limit = options.limit * MIB
    click.echo(f"{'MiB':<34} {'limit':>8} {'before':>8} {'peak':>8} {'beside':>8}")
    for name in _chosen(options.names):
        found = fill(ATTACKS[name], limit)
        beside = (found.peak - limit) / MIB
        said = "" if found.refused else "  (nothing was refused)"
        said += "  TOO MUCH" if found.peak > limit + BESIDE else ""
        figures = f"{options.limit:8} {found.before / MIB:8.0f} {found.peak / MIB:8.0f} {beside:8.0f}"
        click.echo(f"{name:<34} {figures}{said}")


if __name__ == "__main__":
    main()
