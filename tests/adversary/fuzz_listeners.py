"""Throw nonsense at every listener of a service: `python -m tests.adversary.fuzz_listeners --minutes 10`.

Two services, one of them with TLS, run under a memory cap (RLIMIT_AS) in processes of their own. What is sent begins as
something valid (HTTP with a body of either kind, the native lane, also within a WebSocket, a WebSocket, server-sent
events, the console, a TLS handshake) and is then cut, doubled, changed and interleaved. Meanwhile their health is asked
for. At the end there must be no traceback, no growth, and they must stop; with `--slowest MS`, on a machine that does
nothing else, no health may have taken longer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import List, Optional

from synap.commands import COMMANDS
from synap.testing import ThrowawayServer
from synap.wire.frames import frame
from synap.wire.handshake import Hello, greet
from tests.helpers.certificates import Authority

__all__ = ["attack", "main"]

CAP = 1 << 30
"""Bytes of address space that the service may have beyond what it starts with."""
GROWTH = 64 << 20
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts anybody."""
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE
WS = (
    b"GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
WITHIN = WS[:-2] + b"Sec-WebSocket-Protocol: synap.native\r\nSynap-Session: %b\r\nSynap-Format: %b\r\n\r\n"
PATHS = [
    "/api/v1/command",
    "/health",
    "/metrics",
    "/openapi.json",
    "/nowhere",
    "/api/v1/stream/subscribe?room=a",
    "/api/v1/admin/backup",
]
CONSOLE = ["/", "/console/session", "/console/console.js", "/console/../session", "/console/%2e%2e/"]


def payload(dice: random.Random) -> bytes:
    command = dice.choice(list(COMMANDS.values()))
    odd = [1, -1, "a", None, [], {}, "x" * 300, 1e308]
    fields = {field: dice.choice(odd) for field in command.payload.__struct_fields__}
    name = "kv.get" if command.admin else command.name
    return json.dumps({"command": name, "payload": fields, "request_id": "r"}).encode()


def http(dice: random.Random) -> bytes:
    method = dice.choice(["GET", "POST", "HEAD", "DELETE", "CONNECT"])
    head = f"{method} {dice.choice(PATHS)} HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/json\r\n" if dice.random() < 0.8 else ""
    head += dice.choice(
        ["", "", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Expect: 100-continue\r\n", "X: " + "y" * 5000]
    )
    body = payload(dice)
    if dice.random() < 0.5:
        return (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    chunks = b"".join(b"%x;e=%d\r\n%b\r\n" % (1, dice.randrange(9), body[at : at + 1]) for at in range(len(body)))
    return (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunks + b"0\r\nT: 1\r\n\r\n"


def native(dice: random.Random) -> bytes:
    said = greet("localhost", Hello(os.urandom(16).hex(), dice.choice(["json", "msgpack"]), dice.random() < 0.3, None))
    for number in range(1, dice.randrange(2, 20)):
        said += frame(dice.randrange(1, 14), number, payload(dice), dice.randrange(128), dice.randrange(4))
    return said


def framed(first: int, body: bytes) -> bytes:
    """A frame of a WebSocket."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))
    return bytes([first, 0x80 | 126]) + len(body).to_bytes(2, "big") + mask + masked


def websocket(dice: random.Random) -> bytes:
    kinds = [0x81, 0x82, 0x01, 0x00, 0x89, 0x8A, 0x88, 0xFF]
    return WS + b"".join(framed(dice.choice(kinds), payload(dice)) for _ in range(dice.randrange(1, 20)))


def within(dice: random.Random) -> bytes:
    """Native frames in a WebSocket."""
    format = dice.choice([b"json", b"msgpack"])
    said = WITHIN % (os.urandom(16).hex().encode(), format)
    for number in range(1, dice.randrange(2, 20)):
        one = frame(dice.randrange(1, 14), number, payload(dice), dice.randrange(128), dice.randrange(4))
        said += framed(dice.choice([0x82, 0x82, 0x82, 0x81, 0x02]), one)
    return said


def events(dice: random.Random) -> bytes:
    odd = ["a", "", "%00", "%ff", "a%0d%0aX:1", "-1", "9" * 30, "x" * 3000]
    query = "&".join(f"{name}={dice.choice(odd)}" for name in dice.sample(["room", "from_offset", "replay", "name"], 3))
    head = f"GET /api/v1/stream/subscribe?{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    return (head + f"Last-Event-ID: {dice.choice(odd)}\r\n\r\n").encode()


def console(dice: random.Random) -> bytes:
    method = dice.choice(["GET", "POST", "PUT", "DELETE", "HEAD"])
    body = dice.choice([b"{}", b'{"key": "a"}', b'{"key": 1}', b"[", b'{"key": "%b"}' % (b"x" * 3000)])
    head = (
        f"{method} {dice.choice(CONSOLE)} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nCookie: synap=a; b;;=\r\n"
    )
    head += f"X-CSRF-Token: {dice.choice(['', 'a', 'x' * 999])}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(1, 2000))


SOURCES: List[Callable[[random.Random], bytes]] = [http, native, websocket, within, events, console, noise]


def spoilt(dice: random.Random, data: bytes) -> bytes:
    """Cut, double, change or leave what is to be sent."""
    way = dice.randrange(6)
    if way == 0:
        return data[: dice.randrange(len(data) + 1)]
    if way == 1:
        at = dice.randrange(len(data))
        return data[:at] + dice.randbytes(dice.randrange(8)) + data[at + dice.randrange(8) :]
    if way == 2:
        return data * dice.randrange(1, 4)
    if way == 3:
        at, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
        return data[:end] + data[at:end] * dice.randrange(1, 50) + data[end:]
    if way == 4:
        changed = bytearray(data)
        for _ in range(dice.randrange(1, 10)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)
    return data


def hello(dice: random.Random) -> bytes:
    """The beginning of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        TRUSTING.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read() + dice.randbytes(dice.randrange(300))


def attack(port: int, dice: random.Random, *, tls: bool = False) -> None:
    """Send one thing, in pieces, read some of what comes, and leave. With TLS it is within it, or breaks it."""
    breaks = tls and dice.random() < 0.4
    data = spoilt(dice, hello(dice) if breaks else dice.choice(SOURCES)(dice))
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        if tls and not breaks:
            peer = stack.enter_context(TRUSTING.wrap_socket(peer))
        peer.settimeout(0.05)
        size = dice.choice([len(data) or 1, 1000, 17])
        for at in range(0, min(len(data), size * 300), size):
            peer.sendall(data[at : at + size])
        if dice.random() < 0.5:
            peer.recv(65_536)


def health(port: int, *, tls: bool = False) -> float:
    """Ask for the health; returns the seconds it took, without those of a handshake."""
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        if tls:
            peer = stack.enter_context(TRUSTING.wrap_socket(peer))
        began = time.perf_counter()
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := peer.recv(65_536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(f"health says {answer[:200]!r}")
    return time.perf_counter() - began


def memory(pid: int) -> int:
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def cap(pid: int) -> None:
    """Keep the service from more memory than `CAP` beyond what it has, where the system can."""
    if sys.platform == "linux":
        import resource

        taken = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (taken + CAP, taken + CAP))


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--slowest", type=float, metavar="MS", help="milliseconds that a health may take at most")
    options = parser.parse_args(arguments)
    dice = random.Random(options.seed)
    sys.stdout.write(f"seed {options.seed}\n")
    given = ["--handshake-timeout", "5", "--log-level", "warning"]
    took: List[float] = []
    count = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = Authority(folder / "authority").sign("localhost")
        plain = stack.enter_context(ThrowawayServer(data=folder / "data", arguments=given))
        tls = stack.enter_context(ThrowawayServer(arguments=[*given, "--tls-cert", own.cert, "--tls-key", own.key]))
        servers = (plain, tls)

        def strike() -> None:
            nonlocal count
            server = tls if dice.random() < 0.25 else plain
            attack(server.port, dice, tls=server is tls)
            count += 1

        for server in servers:
            cap(server.pid)
        for _ in range(400):
            strike()
        warm = [memory(server.pid) for server in servers]
        end = time.monotonic() + options.minutes * 60
        while time.monotonic() < end:
            strike()
            if not count % 20:
                took += [health(server.port, tls=server is tls) for server in servers]
        grown = max(memory(server.pid) - before for server, before in zip(servers, warm))
        codes = [server.stop() for server in servers]
        said = "".join(line for server in servers for line in server.output)
    median, worst = statistics.median(took or [0.0]) * 1000, max(took or [0.0]) * 1000
    figures = f"{len(took)} healths {median:.1f} ms median, {worst:.1f} ms at most, grown {grown >> 20} MiB"
    sys.stdout.write(f"{count} attacks, {figures}\n")
    faults = {
        "a traceback": "Traceback" in said,
        "growth": grown > GROWTH,
        f"exit codes {codes}": any(codes),
        "a slow health": options.slowest is not None and worst > options.slowest,
    }
    wrong = [name for name, there in faults.items() if there]
    if wrong:
        sys.stdout.write(f"wrong: {', '.join(wrong)}; seed {options.seed}\n{said[-4000:]}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
