"""What each function of the cluster's library costs a node, without a client's and the network's share.

python -m bench.cluster_functions
python -m bench.cluster_functions --instructions     # needs valgrind; what else the machine does plays no part

One primary and no replica; 100 calls a write, so that reading and writing sockets hardly counts; queues of up to 100
messages. For each function: µs of the node's main thread for each request, and how many commands the function calls for
it. `10 a call` is what a gateway does under load: it joins what one turn asks of one queue. Each request is remembered,
and its answer dropped again by HDEL, sixteen at a time; that is part of the figures. With `--instructions` the node
runs under callgrind, and what it executes is counted instead.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import hiredis

from synap.cluster import functions
from synap.cluster.calls import pack
from synap.cluster.memory import TOGETHER
from synap.cluster.places import Places
from synap.cluster.queues import ACK, CONSUME, PUBLISH
from synap.testing.cluster import ClusterNode, ThrowawayCluster, valkey_binary

VALUE = b'"' + b"v" * 98 + b'"'
WIDTH = DEPTH = 100
SESSION = secrets.token_hex(16).encode()
KIN = SESSION[:24]
INC = b"0123456789abcdef"


class Callgrind:
    """Counts the instructions of a node that valgrind runs."""

    def __init__(self, folder: str) -> None:
        self.binary = os.path.join(folder, "server")
        self._out = os.path.join(folder, "counted")
        self._dumps = 0
        self._total = 0
        command = ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={self._out}", valkey_binary())
        with open(self.binary, "w", encoding="utf-8") as script:
            script.write(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        os.chmod(self.binary, 0o700)

    def executed(self, node: ClusterNode) -> int:
        """Return how many instructions it has executed since it was first asked."""
        assert node.process is not None
        dump = ("callgrind_control", "--dump", str(node.process.pid))
        subprocess.run(dump, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._dumps += 1
        while True:
            try:
                with open(f"{self._out}.{self._dumps}", encoding="utf-8") as file:
                    totals = re.search(r"^totals: (\d+)", file.read(), re.MULTILINE)
            except FileNotFoundError:
                totals = None
            if totals is not None:
                self._total += int(totals[1])
                return self._total
            time.sleep(0.01)


class Bench:
    """A node with the library, the keys of a partition, and a connection that pipelines."""

    def __init__(self, node: ClusterNode, number: int, callgrind: Optional[Callgrind] = None) -> None:
        self.node = node
        self.callgrind = callgrind
        self.number = number
        self.places = Places()
        self.session = self.places.memory(0, SESSION)
        self.figures: Dict[str, List[Tuple[float, float]]] = {}
        self._reader = hiredis.Reader()
        self._socket = socket.create_connection(("127.0.0.1", node.port))
        self._requests = 0

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def fresh(self, count: int = 1) -> List[bytes]:
        """Return numbers of requests that were never used."""
        first = self._requests
        self._requests += count
        return [b"%d" % number for number in range(first + 1, first + count + 1)]

    def run(self, commands: Sequence[bytes]) -> List[Any]:
        """Send commands, so many under way at a time, and return their answers."""
        answers: List[Any] = []
        for first in range(0, len(commands), WIDTH):
            some = commands[first : first + WIDTH]
            self._socket.sendall(b"".join(some))
            wanted = len(answers) + len(some)
            while len(answers) < wanted:
                answer = self._reader.gets()
                if answer is False:
                    data = self._socket.recv(1 << 20)
                    if not data:
                        raise ConnectionError("the node ended the connection")
                    self._reader.feed(data)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    answers.append(answer)
        return answers

    def measure(self, name: str, calls: Sequence[bytes], each: int, remembered: Sequence[bytes] = ()) -> List[Any]:
        """Make calls that carry `each` requests, and drop what was remembered; note what a request cost."""
        drops = [
            pack(("HDEL", self.session, *remembered[first : first + TOGETHER]))
            for first in range(0, len(remembered), TOGETHER)
        ]
        every = max(1, len(calls) // max(1, len(drops)))
        sent: List[bytes] = []
        places: List[int] = []
        for place, call in enumerate(calls):
            places.append(len(sent))
            sent.append(call)
            if drops and place >= every and place % every == 0:
                sent.append(drops.pop(0))
        sent += drops
        commands, spent = self._commands(), self._spent()
        answers = self.run(sent)
        spent = self._spent() - spent
        made = self._commands() - commands
        requests = len(calls) * each
        self.figures.setdefault(name, []).append((spent / requests, (made - len(sent)) / requests))
        return [answers[place] for place in places]

    def _spent(self) -> float:
        """Return what the node has spent: µs of its main thread, or instructions."""
        if self.callgrind is not None:
            return self.callgrind.executed(self.node)
        figures = self._info("cpu")
        return 1e6 * (float(figures["used_cpu_user_main_thread"]) + float(figures["used_cpu_sys_main_thread"]))

    def _commands(self) -> int:
        """Return how many commands were executed, those that functions call among them, but not INFO."""
        found = self._info("commandstats")
        return sum(int(text.split(",")[0][6:]) for name, text in found.items() if name != "cmdstat_info")

    def _info(self, section: str) -> Dict[str, str]:
        lines = self.node.ask("INFO", section).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)


def call(function: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    """Pack a call of a function."""
    packed: bytes = pack(("FCALL", functions.name(function), len(keys), *keys, *arguments))
    return packed


def in_groups(
    bench: Bench,
    function: str,
    kinds: Tuple[bytes, ...],
    queues: Sequence[str],
    head: Sequence[bytes],
    own: Sequence[Any],
    each: int,
) -> Tuple[List[bytes], List[bytes]]:
    """Return calls that ask queues for `own`, a hundred of each, and the numbers they are remembered under."""
    numbers = bench.fresh(len(own))
    calls = []
    for first in range(0, len(own), each):
        queue = queues[first // DEPTH]
        keys = (*bench.places.queue(0, kinds, queue), bench.session)
        arguments = [*head]
        for number, one in zip(numbers[first : first + each], own[first : first + each]):
            arguments += (b"%d" % len(keys), number, b"0", *one)
        calls.append(call(function, keys, arguments))
    return calls, numbers


def queue_functions(bench: Bench, each: int) -> None:
    """Measure publish, consume, acknowledge, the two in one, and nack, with `each` requests a call."""
    number = bench.number
    run = secrets.token_hex(2)
    queues = [f"jobs-{run}-{place}" for place in range(number // DEPTH)]
    name = "" if each == 1 else f", {each} a call"

    def publish() -> None:
        own = [(b"5", b"0", VALUE)] * number
        bench.measure(
            "queue.publish" + name, *_with(in_groups(bench, "syn_q_publish", PUBLISH, queues, (), own, each), each)
        )

    def consume(title: str, settled: Sequence[Tuple[bytes, bytes, bytes]]) -> List[Tuple[bytes, bytes, bytes]]:
        lone = each == 1 and not settled[0][0]  # as `waiting` sends it
        own = [(b"600000", KIN, b"1", *(() if lone else one[:2])) for one in settled]
        head = (b"",)
        answers = bench.measure(
            title + name, *_with(in_groups(bench, "syn_q_consume", CONSUME, queues, head, own, each), each)
        )
        given = [
            (answer.split(b" ", 6) if inc is None else [*one.split(b" "), inc])
            for answer in answers
            for inc, ones in [(None, [answer]) if isinstance(answer, bytes) else (answer[-2], answer[1:-2:3])]
            for one in ones
        ]
        return [(one[5] + b"-" + one[0], one[2], KIN) for one in given]

    def ack(held: Sequence[Tuple[bytes, bytes, bytes]]) -> None:
        answers = bench.measure(
            "queue.ack" + name, *_with(in_groups(bench, "syn_q_ack", ACK, queues, (), held, each), each)
        )
        assert all(one == 1 for answer in answers for one in (answer if isinstance(answer, list) else [answer]))

    nothing = [(b"", b"", b"")] * number
    publish()
    ack(consume("queue.consume", nothing))
    publish()
    held = consume("queue.consume", nothing)
    publish()
    held = consume("queue.consume(ack=…)", held)
    if each == 1:
        numbers = bench.fresh(number)
        calls = [
            call(
                "syn_q_nack",
                (bench.session, *bench.places.whole_queue(0, queues[place // DEPTH])),
                (request, b"0", queues[place // DEPTH].encode(), *one, b"1", b""),
            )
            for place, (request, one) in enumerate(zip(numbers, held))
        ]
        bench.measure("queue.nack, back to its place", calls, 1, numbers)
        held = consume("queue.consume", nothing)
    ack(held)


def _with(grouped: Tuple[List[bytes], List[bytes]], each: int) -> Tuple[List[bytes], int, List[bytes]]:
    return grouped[0], each, grouped[1]


def key_functions(bench: Bench) -> None:
    """Measure set and incr of keys that are there, and get."""
    places, number = bench.places, bench.number
    index = places.index(0)
    names = [f"user:{place % 1000:08d}" for place in range(number)]

    def sets(arguments: Sequence[bytes]) -> Tuple[List[bytes], int, List[bytes]]:
        numbers = bench.fresh(number)
        calls = [
            call(
                "syn_set",
                (bench.session, places.key(0, name), *index),
                (request, b"0", name.encode(), VALUE, *arguments),
            )
            for request, name in zip(numbers, names)
        ]
        return calls, 1, numbers

    bench.run(sets(())[0][:1000])
    bench.measure("kv.set", *sets(()))
    bench.measure("kv.set with a ttl", *sets((b"600000", b"", b"", b"")))
    numbers = bench.fresh(number)
    calls = [
        call("syn_incr", (bench.session, places.key(0, "n"), *index), (request, b"0", b"n", b"1"))
        for request in numbers
    ]
    bench.measure("kv.incr", calls, 1, numbers)
    gets = [pack(("FCALL_RO", functions.name("syn_get"), 1, places.key(0, name), "")) for name in names]
    bench.measure("kv.get", gets, 1)


def room_functions(bench: Bench) -> None:
    """Measure the publish of an event, which nobody follows."""
    keys = (bench.session, *bench.places.room(0, "room"))
    numbers = bench.fresh(bench.number)
    calls = [
        call("syn_s_publish", keys, (request, b"0", b"room", INC, b"100000", b"86400000", VALUE)) for request in numbers
    ]
    bench.measure("stream.publish", calls, 1, numbers)


def main() -> None:
    """Measure all of them some times over, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_functions", description=__doc__)
    parser.add_argument("--number", type=int, help="requests of each kind a round (10,000; of instructions 400)")
    parser.add_argument("--rounds", type=int, help="of which the medians count (3; of instructions 1)")
    parser.add_argument("--instructions", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        callgrind = Callgrind(folder) if given.instructions else None
        number = given.number or (400 if callgrind else 10_000)
        figures = measure_all(callgrind, number, given.rounds or (1 if callgrind else 3))
    for name, found in figures.items():
        spent, commands = (statistics.median(column) for column in zip(*found))
        cost = f"{spent:9,.0f} instructions" if given.instructions else f"{spent:6.1f} µs of the node"
        sys.stdout.write(f"{name:32} {cost}  {commands:5.1f} commands\n")


def measure_all(callgrind: Optional[Callgrind], number: int, rounds: int) -> Dict[str, List[Tuple[float, float]]]:
    """Measure all functions, and return what was found by their names."""
    binary = None if callgrind is None else callgrind.binary
    with ThrowawayCluster(1, node_timeout=120_000, binary=binary) as cluster:
        node = cluster.members[0]
        node.ask("FUNCTION", "LOAD", functions.SOURCE)
        bench = Bench(node, number, callgrind)
        parts: List[Callable[[], None]] = [
            lambda: key_functions(bench),
            lambda: room_functions(bench),
            *(lambda each=each: queue_functions(bench, each) for each in (1, 10)),
        ]
        for _ in range(rounds):
            for part in parts:
                part()
        bench.close()
    return bench.figures


if __name__ == "__main__":
    main()
