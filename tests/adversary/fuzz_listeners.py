"""Throw nonsense at every listener of a service: `python -m tests.adversary.fuzz_listeners --minutes 10`.

Four services run under a memory cap (RLIMIT_AS) in processes of their own: without keys and durable, with keys, grants
and an audit log, the same with TLS, and a gateway to a Valkey Cluster. What is sent begins as something valid (HTTP
with a body of either kind and format, the native lane, also within a WebSocket, a WebSocket, server-sent events, the
console, signed in or not, a TLS handshake) and is then cut, doubled, changed and interleaved. Meanwhile their health is
asked for. At the end there must be no traceback, no growth, they must stop, and every lane and command must have been
reached on each; with `--slowest MS`, on a machine that does nothing else, no health may have taken longer.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import re
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from synap.commands import COMMANDS, Command
from synap.server import keyfile
from synap.server.grants import Quota
from synap.testing import ThrowawayServer
from synap.testing.cluster import ThrowawayCluster
from synap.wire.codec import CODECS
from synap.wire.frames import GZIP, RETRY, Kind, frame
from synap.wire.handshake import Hello, greet
from tests.helpers.certificates import Authority

__all__ = ["main"]

CAP = 1 << 30
"""Bytes of address space that the service may have beyond what it starts with."""
GROWTH = 64 << 20
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts anybody."""
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE
USER, ADMIN, GRANTED = (f"a-{name}-key-0123456789" for name in ("user", "admin", "granted"))
GRANTS = ["kv:*:a*", "queue:*:a", "queue:consume:b*", "stream:read:*", "pubsub:*:a.#", "stream:write:a"]
UPGRADE = (
    "GET /api/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PATHS = [
    *["/api/v1/command"] * 5,
    "/health",
    "/metrics",
    "/openapi.json",
    "/nowhere",
    "/api/v1/stream/subscribe?room=a",
    "/api/v1/admin/backup",
]
CONSOLE = [
    "/",
    "/console/session",
    "/console/session",
    "/console/console.js",
    "/console/../session",
    "/console/%2e%2e/",
]
SESSIONS = [os.urandom(16).hex() for _ in range(4)]
VALUES = ["x", 1, 2.5, None, True, [], {"a": [1, {"b": None}]}, "x" * 2000, "\u00e9\U0001f600", 2**64 - 1, [[[[]]]]]
ODD = [1, -1, "a", None, [], {}, "x" * 300, 1e308, True, ["a", 1], {"a": "b"}, 2**63, "\x00", 0.5]
NAMES = ["a", "a", "b", "a.b", "a.b.c"]
IDS = ["a", "1", "0" * 16]
KINDS: Dict[str, List[Any]] = {
    "key queue room topic name event_type": NAMES,
    "value message data if_value": VALUES,
    "keys queues topics": [["a"], ["a", "b"], ["a.*", "a.#"], ["b"] * 3],
    "message_id after ack": [*IDS, None],
    "ttl count limit max amount": [1, 2, 100],
    "from_offset to_offset offset lease ack_lease subscription_id": [0, 1, 3, -1],
    "timeout delay": [0, 0, 0.01],
    "metadata headers": [{}, {"a": "b"}],
    "pairs": [{"a": 1}, {"a": [], "b": "x"}],
    "prefix": ["", "a", "zz"],
    "pattern": ["#", "a.*", "*.b"],
    "config": [{}, {"max_depth": 100, "dead_letter": True}, {"ack_deadline": 0.01, "retry_delay": 1}],
    "message_ids": [IDS],
    "state": ["ready", "leased", "delayed"],
    "priority": [0, 9],
    "ack_deadline": [0.01, 30],
}
"""What fields may have, by their names."""
FIELDS = {field: values for fields, values in KINDS.items() for field in fields.split()}
NEEDED = (
    *(
        "key",
        "keys",
        "queue",
        "queues",
        "room",
        "topic",
        "topics",
        "value",
        "message",
        "data",
        "pairs",
        "prefix",
        "name",
    ),
    *("event_type", "message_id", "subscription_id", "ttl", "ack_deadline", "offset", "pattern", "config"),
)
TARGETS = [command for command in COMMANDS.values() if command.name != "admin.shutdown"]


class Target(NamedTuple):
    """A service, and what can be said to it."""

    server: ThrowawayServer
    keys: List[Optional[str]]
    tls: bool
    cookies: List[Tuple[str, str]]
    """What it gave for a key, and the token beside it."""

    def key(self, dice: random.Random) -> str:
        """Return the header with a key, if any."""
        key = dice.choice(self.keys)
        return "" if key is None else dice.choice([f"X-API-Key: {key}\r\n", f"Authorization: Bearer {key}\r\n"])


def asked(dice: random.Random) -> Tuple[Command, Any]:
    """Make a request that is mostly right."""
    command = dice.choice(TARGETS)
    payload = {}
    for field in command.payload.__struct_fields__:
        if field in NEEDED or dice.random() < 0.3:
            payload[field] = dice.choice(ODD if field not in FIELDS or dice.random() < 0.05 else FIELDS[field])
    return command, payload


def enveloped(dice: random.Random, format: str) -> bytes:
    """Put a request or a batch into an envelope."""
    number = dice.choice(
        [{}, {"request_id": "r"}, {"request_id": f"{dice.choice(SESSIONS)}:{dice.randrange(1, 10**9)}"}]
    )
    commands: List[Dict[str, Any]] = []
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        command, payload = asked(dice)
        commands.append({"command": command.name, "payload": payload})
    if len(commands) == 1:
        return CODECS[format].encode({**commands[0], **number})
    if dice.random() < 0.3:
        commands = [{**one, "number": place} for place, one in enumerate(commands, 1)]
    return CODECS[format].encode({"type": "batch", "commands": commands, "atomic": dice.random() < 0.3, **number})


def http(dice: random.Random, target: Target) -> List[bytes]:
    format, other = dice.choice(["json", "msgpack"]), dice.choice(["json", "msgpack"])
    method = dice.choice(["GET", "POST", "POST", "POST", "HEAD", "DELETE", "CONNECT"])
    path = dice.choice(PATHS) if method != "DELETE" else f"/api/v1/command?request_id={dice.choice(SESSIONS)}:1"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{target.key(dice)}Accept: application/{other}\r\n"
    head += f"Content-Type: application/{format}\r\n" if dice.random() < 0.9 else ""
    odd = ["", "", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Expect: 100-continue\r\n", "X: " + "y" * 5000 + "\r\n"]
    head += dice.choice([*odd, "Accept-Encoding: gzip\r\n", f"Synap-Done: {dice.randrange(50)}\r\n"])
    body = enveloped(dice, format)
    if dice.random() < 0.2:
        head, body = head + "Content-Encoding: gzip\r\n", gzip.compress(body)
    if dice.random() < 0.5:
        return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body]
    size = dice.choice([1, 100])
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x;e=%d\r\n%b\r\n" % (len(piece), dice.randrange(9), piece) for piece in pieces)
    return [(head + "Transfer-Encoding: chunked\r\n\r\n").encode(), chunks + b"0\r\nT: 1\r\n\r\n"]


def frames(dice: random.Random, format: str) -> List[bytes]:
    """Frames of the native lane."""
    made = []
    first = dice.randrange(1, 10**9)
    for number in range(first, first + dice.randrange(1, 19)):
        command, payload = asked(dice)
        if command.bundle:
            payload = {"commands": [{"command": "kv.get", "payload": {"key": "a"}}]}
        body, flags = CODECS[format].encode(payload), dice.choice([0, 0, 0, RETRY, GZIP])
        if flags == GZIP and dice.random() < 0.9:
            body = gzip.compress(body)
        kind = Kind.REQUEST if dice.random() < 0.9 else dice.choice([7, 8, 9, 10, dice.randrange(1, 14)])
        made.append(frame(kind, number, body if kind == Kind.REQUEST else b"", command.code, flags))
    return made


def native(dice: random.Random, target: Target) -> List[bytes]:
    format = dice.choice(["json", "msgpack"])
    session = dice.choice([*SESSIONS, os.urandom(16).hex()])
    said = greet("localhost", Hello(session, format, dice.random() < 0.3, dice.choice(target.keys)))
    return [said, b"".join(frames(dice, format))]


def framed(first: int, body: bytes) -> bytes:
    """A frame of a WebSocket."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))
    return bytes([first, 0x80 | 126]) + len(body).to_bytes(2, "big") + mask + masked


def websocket(dice: random.Random, target: Target) -> List[bytes]:
    head = UPGRADE + target.key(dice)
    if target.cookies and dice.random() < 0.3:
        cookie, token = dice.choice(target.cookies)
        head = f"{UPGRADE}Cookie: {cookie}\r\nSec-WebSocket-Protocol: synap.console, csrf.{token}\r\n"
    said = b""
    for _ in range(dice.randrange(1, 20)):
        kind = dice.choice([0x81, 0x81, 0x81, 0x82, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xFF])
        format = "msgpack" if kind == 0x82 else "json"
        said += framed(kind, enveloped(dice, format)[: 100 if kind in (0x89, 0x8A, 0x88) else None])
    return [f"{head}\r\n".encode(), said]


def within(dice: random.Random, target: Target) -> List[bytes]:
    """Native frames in a WebSocket."""
    format = dice.choice(["json", "msgpack"])
    head = f"{UPGRADE}{target.key(dice)}Sec-WebSocket-Protocol: synap.native\r\n"
    head += f"Synap-Session: {os.urandom(16).hex()}\r\nSynap-Format: {format}\r\n\r\n"
    kinds = [0x82] * 20 + [0x81, 0x02]
    return [head.encode(), b"".join(framed(dice.choice(kinds), one) for one in frames(dice, format))]


def events(dice: random.Random, target: Target) -> List[bytes]:
    odd = ["a", "a", "", "%00", "%ff", "a%0d%0aX:1", "-1", "9" * 30, "x" * 3000]
    query = "&".join(f"{name}={dice.choice(odd)}" for name in dice.sample(["from_offset", "replay", "name"], 2))
    if dice.random() < 0.5:
        query = dice.choice(["", "from_offset=0", "from_offset=-1", "name=a", "replay=true"])
    head = f"GET /api/v1/stream/subscribe?room={dice.choice(odd)}&{query} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"{target.key(dice)}Accept: text/event-stream\r\n"
    return [(head + dice.choice(["", f"Last-Event-ID: {dice.choice(odd)}\r\n"]) + "\r\n").encode()]


def console(dice: random.Random, target: Target) -> List[bytes]:
    method = dice.choice(["GET", "POST", "PUT", "DELETE", "HEAD"])
    key = json.dumps({"key": dice.choice(target.keys)}).encode()
    body = dice.choice([b"{}", b'{"key": "a"}', b'{"key": 1}', b"[", b'{"key": "%b"}' % (b"x" * 3000), key, key])
    cookie, token = dice.choice([*target.cookies, ("synap=a; b;;=", dice.choice(["", "a", "x" * 999]))])
    path = dice.choice([*CONSOLE, "/api/v1/command"])
    if path == "/api/v1/command":
        method, body = "POST", enveloped(dice, "json")
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nCookie: {cookie}\r\n"
    head += f"X-CSRF-Token: {token}\r\nContent-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body]


def noise(dice: random.Random, target: Target) -> List[bytes]:
    return [dice.randbytes(dice.randrange(1, 2000))]


SOURCES: List[Callable[[random.Random, Target], List[bytes]]]
SOURCES = [http, http, native, websocket, within, events, console, noise]


def spoilt(dice: random.Random, data: bytes) -> bytes:
    """Cut, double, change or leave what is to be sent."""
    way = dice.randrange(10) if data else 9
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


def connected(target: Target, stack: contextlib.ExitStack, *, tls: bool, patience: float) -> socket.socket:
    peer = stack.enter_context(socket.create_connection(("127.0.0.1", target.server.port), patience))
    return stack.enter_context(TRUSTING.wrap_socket(peer)) if tls else peer


def attack(target: Target, dice: random.Random) -> None:
    """Send one thing, in pieces, read some of what comes, and leave. With TLS it is within it, or breaks it."""
    breaks = target.tls and dice.random() < 0.2
    parts = [hello(dice)] if breaks else dice.choice(SOURCES)(dice, target)
    spoil = dice.randrange(len(parts))
    parts[spoil] = spoilt(dice, parts[spoil])
    size = dice.choice([100_000, 1000, 17])
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        peer = connected(target, stack, tls=target.tls and not breaks, patience=5)
        peer.settimeout(0.05)
        answered = dice.random() < 0.5
        for place, part in enumerate(parts):
            if place and answered:
                peer.recv(65_536)  # nothing comes in time where a body is waited for
            for at in range(0, min(len(part), size * 300), size):
                peer.sendall(part[at : at + size])
        end = dice.randrange(4)
        if end == 1:
            peer.recv(65_536)
        elif end == 2:
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65_536):
                pass
        elif end == 3:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def ask(target: Target, request: str) -> Tuple[bytes, float]:
    """Make a request that must be answered; returns the answer and its seconds, without those of a handshake."""
    with contextlib.ExitStack() as stack:
        peer = connected(target, stack, tls=target.tls, patience=10)
        began = time.perf_counter()
        peer.sendall(request.replace("\n", "\r\n").encode())
        answer = b""
        while piece := peer.recv(65_536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(f"{request!r} is answered by {answer[:200]!r}")
    return answer, time.perf_counter() - began


def health(target: Target) -> float:
    """Ask for the health; returns the seconds it took."""
    return ask(target, "GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n")[1]


def sign_in(target: Target) -> None:
    """Sign in at the console."""
    body = json.dumps({"key": ADMIN})
    head = "POST /console/session HTTP/1.1\nHost: localhost\nConnection: close\nContent-Type: application/json\n"
    answer, _ = ask(target, f"{head}Content-Length: {len(body)}\n\n{body}")
    cookie, token = re.search(rb"set-cookie: ([^;]+)", answer), re.search(rb'"csrf":"([^"]+)"', answer)
    if cookie is None or token is None:
        raise AssertionError(f"a sign-in is answered by {answer!r}")
    target.cookies[:] = [*target.cookies[-2:], (cookie[1].decode(), token[1].decode())]


def unreached(target: Target) -> List[str]:
    """Return the lanes and commands that were never used."""
    head = f"GET /metrics HTTP/1.1\nHost: localhost\nConnection: close\nX-API-Key: {ADMIN}\n\n"
    text = ask(target, head)[0].decode()
    used = set(re.findall(r'synap_(?:lane_uses|requests)_total{\w+="([\w.]+)"} [1-9]', text))
    return sorted({"http", "websocket", "events", "native", *(one.name for one in TARGETS)} - used)


def memory(pid: int) -> int:
    path = Path(f"/proc/{pid}/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def cap(pid: int) -> None:
    """Keep the service from more memory than `CAP` beyond what it has, where the system can."""
    if sys.platform == "linux":
        import resource

        taken = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_AS, (taken + CAP, taken + CAP))


def told(said: str) -> str:
    """Return the tracebacks of a log, each once with its number, or its end where it has none."""
    entries = re.split(r"^(?=\d{4}-\d\d-\d\d )", said, flags=re.M)
    found = Counter(entry.partition("\n")[2] for entry in entries if "Traceback" in entry)
    return "\n".join(f"{count} times: {text}" for text, count in found.most_common(5)) or said[-4000:]


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--slowest", type=float, metavar="MS", help="milliseconds that a health may take at most")
    options = parser.parse_args(arguments)
    dice = random.Random(options.seed)
    sys.stdout.write(f"seed {options.seed}\n")
    given = ["--handshake-timeout", "5", "--log-level", "warning", "--room-events", "100", "--memory-limit", "64MiB"]
    took: List[float] = []
    count = 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = Authority(folder / "authority").sign("localhost")
        keyfile.add(folder / "keys", "granted", GRANTED, GRANTS, Quota(bytes=1e9, connections=100, waiting=100))
        keyed = [*given, "--api-key", USER, "--admin-key", ADMIN, "--keys-file", str(folder / "keys")]
        keyed += ["--audit-log", str(folder / "audit")]
        secure = [*keyed[:-1], str(folder / "audit-tls"), "--tls-cert", own.cert, "--tls-key", own.key]
        keys: List[Optional[str]] = [USER, ADMIN, ADMIN, GRANTED, GRANTED, None]  # wrong ones slow their address down
        cluster = stack.enter_context(ThrowawayCluster())
        gateway = [*given, "--engine", cluster.url, "--durability", "none"]

        def start(arguments: List[str], keys: List[Optional[str]], data: Optional[Path] = None) -> Target:
            server = stack.enter_context(ThrowawayServer(data=data, arguments=arguments))
            return Target(server, keys, arguments is secure, [])

        targets = [
            start(given, [None], folder / "data"),
            start(keyed, keys),
            start(secure, keys),
            start(gateway, [None]),
        ]
        servers = [target.server for target in targets]

        def strike() -> None:
            nonlocal count
            if not count % 500:
                for target in targets[1:3]:
                    sign_in(target)
            attack(dice.choice(targets), dice)
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
                took += map(health, targets)
        grown = max(memory(server.pid) - before for server, before in zip(servers, warm))
        missed = {place: found for place, target in enumerate(targets) if (found := unreached(target))}
        codes = [server.stop() for server in servers]
        said = "".join(line for server in servers for line in server.output)
    median, worst = statistics.median(took or [0.0]) * 1000, max(took or [0.0]) * 1000
    figures = f"{len(took)} healths {median:.1f} ms median, {worst:.1f} ms at most, grown {grown >> 20} MiB"
    sys.stdout.write(f"{count} attacks, {figures}\n")
    faults = {
        "a traceback": "Traceback" in said,
        "growth": grown > GROWTH,
        f"exit codes {codes}": any(codes),
        f"what was never reached, by service: {missed}": bool(missed) and count >= 10_000,
        "a slow health": options.slowest is not None and worst > options.slowest,
    }
    wrong = [name for name, there in faults.items() if there]
    if wrong:
        sys.stdout.write(f"wrong: {', '.join(wrong)}; seed {options.seed}\n{told(said)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
