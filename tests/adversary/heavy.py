"""Heavy but legal requests, and what another client's ping has to wait meanwhile.

    python -m tests.adversary.heavy [NAME ...] [--seconds 4]

starts a service of its own for each request of the list, has one client send it again and again (bounded), and another
one ping all the time; prints a table with the percentiles of the pings' round trips, in milliseconds. The aim: p99.9
under 50 ms. On a busy machine round trips say little; there the longest turn of the service's event loop, in CPU time,
shows what a ping would have had to wait for.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import click

from synap.testing import ThrowawayServer
from tests.adversary.heavy_requests import ATTACKS, Attack

__all__ = ["main", "measure"]

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
    turn: float
    """The longest turn of its event loop, in seconds of CPU time."""
    collecting: float
    """The longest collection of garbage in one."""


def measure(attack: Attack, seconds: float, arguments: list[str] | None = None) -> Waits:
    """Attack a service of its own for so long, and ping it meanwhile."""
    watched = {"PYTHONPATH": str(Path(__file__).parent / "watched")}
    server = ThrowawayServer(arguments=[*attack.arguments, *(arguments or ())], environment=watched)
    with server:
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
    said = next(
        (line for line in server.output if line.startswith("longest turns: ")), "longest turns: 0; collecting: 0"
    )
    turns, collecting = said.removeprefix("longest turns: ").split("; collecting: ")
    p50, p99, p999 = (times[min(len(times) - 1, int(part * len(times)))] for part in (0.5, 0.99, 0.999))
    return Waits(
        len(times), rounds, p50, p99, p999, times[-1], memory, float(turns.split()[0]) / 1000, float(collecting) / 1000
    )


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
    heads = ("pings", "rounds", "p50", "p99", "p99.9", "most", "peak MB", "turn", "gc")
    click.echo(" " * 32 + "".join(f"{head:>8}" for head in heads))
    for attack in chosen:
        found = measure(attack, options.seconds)
        times = (found.p50, found.p99, found.p999, found.most)
        figures = [f"{found.pings}", f"{found.rounds}", *(f"{1000 * value:.1f}" for value in times)]
        figures += [f"{found.memory / 1e6:.0f}", f"{1000 * found.turn:.1f}", f"{1000 * found.collecting:.1f}"]
        click.echo(f"{attack.name:<32}" + "".join(f"{figure:>8}" for figure in figures))


if __name__ == "__main__":
    main()
