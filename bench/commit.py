"""`python -m bench.commit`: what a commit that is synced costs here, beside what the disk and SQLite alone take for it.

Contenders take turns, twenty commits each. Wall time includes the disk's; CPU is the process's, user and system. Set
`--directory` to a disk that counts: a file system in memory syncs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from queue import SimpleQueue
from typing import Any, Callable, Dict, List, Tuple

from synap.commands import COMMANDS, KvSet
from synap.host.base import Output, Session
from synap.storage.durable import open_host
from synap.storage.store import Store, create
from synap.wire.codec import JSON

__all__ = ["main"]

BYTES = 200
"""Bytes of a commit: a set of 100 bytes, with what belongs to it."""
WRITTEN = 8 * 1024 * 1024
"""Bytes of a file that is written before it is overwritten in place, as a write-ahead log is after some time."""
AT_ONCE = 20

Commit = Callable[[], object]


def plain(path: str, *, before: bool) -> Commit:
    """Write and sync, at the end of a growing file or in place."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if before:
        os.pwrite(file, bytes(WRITTEN), 0)
        os.fsync(file)
    body = os.urandom(BYTES)
    offset = 0

    def commit() -> None:
        nonlocal offset
        os.pwrite(file, body, offset)
        os.fdatasync(file)
        offset += BYTES

    return commit


def past_the_cache(path: str) -> Dict[str, Commit]:
    """Write the block that the bytes are in and sync, in place and past the system's cache; nothing where that can't be
    done.
    """
    plain(path, before=True)
    try:
        file = os.open(path, os.O_RDWR | os.O_DIRECT)
    except (AttributeError, OSError):
        return {}
    block = mmap.mmap(-1, mmap.PAGESIZE)  # memory that begins where a block may
    body = os.urandom(BYTES)
    offset = 0

    def commit() -> None:
        nonlocal offset
        at = offset % len(block)
        if at + BYTES > len(block):
            offset += len(block) - at
            at = 0
        block[at : at + BYTES] = body
        os.pwritev(file, [block], offset - at)
        os.fdatasync(file)
        offset += BYTES

    return {"write a block past the cache and fdatasync, in place": commit}


def sqlite(directory: str, *, before: bool) -> Commit:
    """Insert a row of the log as the service does, its write-ahead log growing or used again."""
    create(directory)
    store = Store(directory)
    body = bytearray(os.urandom(BYTES))
    seq = 0

    def commit(safe: bool = True) -> None:
        nonlocal seq
        seq += 1
        store.append(seq, body, safe=safe)

    if before:
        while store.file_sizes()[1] < WRITTEN:
            commit(safe=False)
        store.checkpoint()
    return commit


class Caller(Session):
    """A caller without a network."""

    answers = 0

    def deliver(self, output: List[Output]) -> None:
        self.answers += len(output)


def ours(directory: str, stack: contextlib.ExitStack) -> Commit:
    """Set a key, from the request's body to the answer, on a host that has an event loop's turns."""
    calls: SimpleQueue[Tuple[Callable[..., object], Tuple[Any, ...]]] = SimpleQueue()
    later: List[Callable[[], None]] = []
    durable = open_host(directory, call=lambda function, *given: calls.put((function, given)), soon=later.append)
    stack.callback(durable.close)
    host = durable.host
    caller = Caller(host, JSON)
    caller.session = "9" * 32
    command = next(command for command in COMMANDS.values() if command.payload is KvSet)
    number = 0

    def commit() -> None:
        nonlocal number
        number += 1
        host.execute(caller, number, command, b'{"key":"k%d","value":"%s"}' % (number % 1000, b"x" * 100))
        host.end_turn()
        while caller.answers < number or not calls.empty():
            function, given = calls.get()
            function(*given)
        host.confirm(caller, number)
        for function in later:
            function()
        later.clear()

    return commit


def measure(commits: Dict[str, Commit], rounds: int) -> None:
    walls: Dict[str, List[float]] = {name: [] for name in commits}
    cpu = dict.fromkeys(commits, 0.0)
    for _ in range(rounds):
        for name, commit in commits.items():
            began = time.process_time()
            for _ in range(AT_ONCE):
                before = time.perf_counter()
                commit()
                walls[name].append(time.perf_counter() - before)
            cpu[name] += time.process_time() - began
    sys.stdout.write(f"{'µs':52}{'p10':>7}{'median':>8}{'p99':>8}{'CPU':>6}\n")
    for name, times in walls.items():
        steps = [step * 1e6 for step in statistics.quantiles(times, n=100)]
        each = cpu[name] * 1e6 / rounds / AT_ONCE
        sys.stdout.write(f"{name:52}{steps[9]:7.0f}{steps[49]:8.0f}{steps[98]:8.0f}{each:6.0f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.commit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help=f"of {AT_ONCE} commits each (default: 100)")
    parser.add_argument("--directory", help="where to write (default: the system's place for temporary files)")
    given = parser.parse_args()
    base = tempfile.mkdtemp(prefix="bench-commit-", dir=given.directory)

    def place(name: str) -> str:
        os.mkdir(os.path.join(base, name))
        return os.path.join(base, name)

    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        measure(
            {
                f"write {BYTES} bytes and fdatasync, growing file": plain(os.path.join(base, "a"), before=False),
                f"write {BYTES} bytes and fdatasync, in place": plain(os.path.join(base, "b"), before=True),
                **past_the_cache(os.path.join(base, "f")),
                "SQLite commit, growing write-ahead log": sqlite(place("c"), before=False),
                "SQLite commit, write-ahead log used again": sqlite(place("d"), before=True),
                "set, from request to answer, without a network": ours(place("e"), stack),
            },
            given.rounds,
        )


if __name__ == "__main__":
    main()
