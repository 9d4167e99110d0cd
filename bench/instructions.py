"""How many instructions a call costs client and service, with no network between them: `python -m bench.instructions`.

Counted by valgrind, so what else the machine does matters little. It needs `valgrind` and a C compiler (Debian's
packages `valgrind` and `gcc`), takes a minute or two, and prints, for each operation of `bench.hotpath`, what both
sides take for one, and for one command of a batch. `--tree` counts in another checkout: `git worktree add ../before
5676e89`. `--limits` counts what keys, grants, quotas and the audit log make of the service's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Tuple

import click

__all__ = ["Counts", "counts"]

Counts = Dict[Tuple[str, int], Tuple[float, float]]
"""(client, service) by operation and calls under way."""

BATCH = 100
"""Commands of a batch, half of them writes. What is printed is for one of them."""
HERE = pathlib.Path(__file__).resolve()
SWITCH = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; }
void toggle(void) { CALLGRIND_TOGGLE_COLLECT; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def counts(tree: str, calls: int, limits: bool = False) -> Counts:
    """Count in a checkout. Raises `subprocess.CalledProcessError` where valgrind or the compiler fails.

    With `limits` the names are those of `bench.hotpath.kinds`, each with its operation.
    """
    found: Counts = {}
    with tempfile.TemporaryDirectory(prefix="synap-bench-") as folder:
        source = pathlib.Path(folder, "switch.c")
        source.write_text(SWITCH)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/switch.so", str(source)], check=True)
        options = ["--instr-atstart=no", "--collect-atstart=no", f"--callgrind-out-file={folder}/counts"]
        subprocess.run(
            [
                "valgrind",
                "-q",
                "--tool=callgrind",
                *options,
                sys.executable,
                str(HERE),
                f"{folder}/switch.so",
                str(calls),
                "limits" if limits else "calls",
            ],
            check=True,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": f"{tree}/src{os.pathsep}{tree}", "PYTHONHASHSEED": "0"},
            stderr=subprocess.DEVNULL,
        )
        whole: Dict[Tuple[str, int], Dict[str, float]] = {}
        for file in pathlib.Path(folder).glob("counts.*"):
            text = file.read_text()
            name = re.search(r"Client Request: ([\w ,:]+)/(\d+)/(\w+)/(\d+)", text)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.M)
            if name and total:
                one = whole.setdefault((name[1], int(name[2])), {})
                one[name[3]] = int(total[1]) / int(name[4])
        for key, parts in sorted(whole.items(), key=lambda item: (item[0][1], item[0][0])):
            found[key] = parts["both"] - parts["service"], parts["service"]
    return found


async def _count(hotpath: Any, switch: Any, calls: int, limits: bool) -> None:
    """Make the calls, in the tree that `hotpath` is of, and dump what is counted after each kind."""
    counting: List[str] = []

    def deliver(pipe: Any) -> None:
        pipe._under_way = False
        data, receive = pipe._client.take(), pipe._service.protocol.data_received
        if data and counting == ["service"]:
            switch.toggle()
            receive(data)
            switch.toggle()
        elif data:
            receive(data)
        answers = pipe._service.take()
        if answers:
            hotpath._receive(pipe._client.protocol, answers)

    hotpath.Pipe._deliver = deliver
    if not limits:
        cases = [(name, operation, width) for name, operation in hotpath.OPERATIONS.items() for width in (1, 100)]
        cases.append(("batch", _batch, BATCH))
        await _each(hotpath, hotpath.PLAIN, switch, cases, calls, counting)
        return
    with tempfile.TemporaryDirectory(prefix="synap-bench-") as folder:
        for kind, config in hotpath.kinds(folder).items():
            cases = [(f"{kind}: {name}", hotpath.OPERATIONS[name], 100) for name in ("get", "set")]
            await _each(hotpath, config, switch, cases, calls, counting)


async def _batch(client: Any, number: int) -> None:
    sets = [{"command": "kv.set", "payload": {"key": f"key-{one}", "value": "x" * 100}} for one in range(BATCH // 2)]
    await client.batch([*sets, *({"command": "kv.get", "payload": {"key": f"key-{one}"}} for one in range(BATCH // 2))])


async def _each(
    hotpath: Any, config: Any, switch: Any, cases: List[Tuple[str, Any, int]], calls: int, counting: List[str]
) -> None:
    async with hotpath._connected(config) as side:
        for _, operation, width in cases * 3:  # CPython specialises what it runs often
            await side.slice(operation, 1 if operation is _batch else width, calls // width)
        gc.collect()
        gc.disable()
        switch.begin()
        for name, operation, width in cases:
            for what in ("service", "both"):
                counting[:] = [what]
                switch.zero()
                if what == "both":
                    switch.toggle()
                await side.slice(operation, 1 if operation is _batch else width, calls // width)
                if what == "both":
                    switch.toggle()
                counting.clear()
                switch.dump(f"{name}/{width}/{what}/{calls}".encode())
        gc.enable()


def _inside(switch: str, calls: str, what: str) -> None:
    """Run under valgrind, in the tree that is counted."""
    sys.path[0] = os.getcwd()
    hotpath = importlib.import_module("bench.hotpath")
    native = importlib.import_module("synap.server.native")
    vars(native)["SECONDS"] = float("inf")  # turns end by what they hold, not by the time it takes under valgrind
    with contextlib.suppress(ImportError):  # as with those of a batch, which an older tree executes in one go
        vars(importlib.import_module("synap.host.jobs"))["SLICE"] = float("inf")
    asyncio.run(_count(hotpath, ctypes.PyDLL(switch), int(calls), what == "limits"))


@click.command()
@click.option("--tree", default=str(HERE.parent.parent), show_default="this one", help="The checkout to count in.")
@click.option("--calls", type=click.IntRange(100), default=1000, show_default=True, help="Calls of each kind.")
@click.option("--limits", is_flag=True, help="Count what each kind of limit makes of the service's part.")
def main(tree: str, calls: int, limits: bool) -> None:
    """Count the instructions of a call."""
    found = counts(str(pathlib.Path(tree).resolve()), calls // 100 * 100, limits)
    for (name, width), (client, service) in found.items():
        click.echo(
            f"{name:<{42 if limits else 8}} {width:>3} under way   client {client:9,.0f}   service {service:9,.0f}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].endswith(".so"):
        _inside(*sys.argv[1:])
    else:
        main()
