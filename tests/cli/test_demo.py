"""`synap demo`, with few files and a kill."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from typing import Callable, Dict, List

import pytest
from rich.console import Console

from synap import AsyncSynapClient, StreamEvent
from synap.demo import check, library, names
from synap.demo.display import LiveScreen, picture, summary
from synap.demo.progress import Progress, Worker
from synap.testing import ThrowawayServer
from tests.cli.conftest import Ended, Spawn

FIGURE = re.compile(r"^([a-z/]+) +(\S.*)$", re.MULTILINE)


def figures(said: str) -> Dict[str, str]:
    return dict(FIGURE.findall(said))


def event(kind: str, offset: int, **data: object) -> StreamEvent:
    return StreamEvent("id", offset, kind, {"retry": 0, **data}, 0)


def progress() -> Progress:
    made = Progress(3, "http://127.0.0.1:1", "in memory")
    for name in ("worker-1", "worker-2"):
        made.workers[name] = Worker(name, 1)
        made.on_event(event(names.JOINED, 0, worker=name))
    return made


def test_the_demo_loses_nothing_when_a_worker_is_killed(for_real: Callable[..., Ended]) -> None:
    ended = for_real("demo", "--files", "600", "--memory")
    said = ended.out.decode()
    assert ended.code == 0, said + ended.err
    shown = figures(said)
    assert shown["tasks"] == "600"
    assert shown["missing"] == "0"
    assert shown["wrong"] == "0"
    killed = re.fullmatch(r"worker-2 \(SIGKILL\), with (\d+) in hand", shown["killed"])
    assert killed is not None, said
    assert int(shown["redelivered"]) >= int(killed[1]) >= 1
    assert int(shown["operations"].replace(",", "")) >= 600 * 6


def test_the_demo_keeps_its_data_on_disk_unless_told_otherwise(for_real: Callable[..., Ended]) -> None:
    ended = for_real("demo", "--files", "60", "--workers", "2", "--no-kill", "--plain")
    assert ended.code == 0, ended.err
    assert figures(ended.out.decode())["tasks"] == "60"
    assert "killed" not in figures(ended.out.decode())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_of_the_demo_outlives_it(spawn: Spawn, number: signal.Signals) -> None:
    process = spawn("demo", "--memory", "--plain", stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if b"the workers hash" in line:
            break
    family = children(process.pid)
    assert len(family) >= 5, "a server and four workers"
    process.send_signal(number)
    process.wait(20)
    until = time.monotonic() + 20
    while any(os.path.isdir(f"/proc/{pid}") for pid in family):
        assert time.monotonic() < until, "some are still there"
        time.sleep(0.02)
    if number != signal.SIGKILL:
        assert process.returncode == (130 if number == signal.SIGINT else 143)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_a_reader_that_has_enough_ends_the_demo_without_a_word(spawn: Spawn) -> None:
    process = spawn("demo", "--memory", "--plain")
    assert process.stdout is not None
    assert process.stderr is not None
    while b"the workers hash" not in process.stdout.readline():
        assert process.poll() is None
    family = children(process.pid)
    process.stdout.close()
    assert process.wait(40) == 141
    assert process.stderr.read() == b""
    assert not any(os.path.isdir(f"/proc/{pid}") for pid in family)


def children(pid: int) -> List[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry))
    return found


def test_a_demo_whose_server_does_not_start_says_why(for_real: Callable[..., Ended]) -> None:
    ended = for_real("demo", "--files", "5", env={**os.environ, "SYNAP_FSYNC": "sometimes"})
    assert ended.code == 5
    assert ended.err.startswith("synap: [DEMO_FAILED]")
    assert "sometimes" in ended.err


async def test_the_check_finds_what_is_missing_and_what_is_wrong(synap_server: ThrowawayServer) -> None:
    files = library.files(3)
    (right, size), (wrong, other_size), (missing, _) = files
    async with AsyncSynapClient(url=synap_server.url) as client:
        await client.kv.set(names.key(right), {"sha256": library.digest(right), "size": size})
        await client.kv.set(names.key(wrong), {"sha256": "0" * 64, "size": other_size})
        await client.kv.delete(names.key(missing))
        verdict = await check.check(client, files)
    assert (verdict.checked, verdict.missing, verdict.wrong, verdict.good) == (3, [missing], [wrong], False)


def test_a_task_that_comes_back_counts_once() -> None:
    state = progress()
    state.on_event(event(names.STARTED, 1, worker="worker-1", path="a"))
    assert state.workers["worker-1"].holds == {"a"}
    state.on_event(event(names.HASHED, 2, worker="worker-1", path="a"))
    state.on_event(event(names.STARTED, 3, worker="worker-2", path="a", retry=1))
    state.on_event(event(names.HASHED, 4, worker="worker-2", path="a", retry=1))
    assert state.hashed == {"a"}
    assert [worker.taken_over for worker in state.workers.values()] == [0, 1]
    assert state.workers["worker-1"].holds == set()


def test_the_library_is_every_file_but_what_others_installed() -> None:
    files = library.files()
    paths = [path for path, _ in files]
    assert "json/decoder.py".replace("/", os.sep) in paths
    assert len(paths) == len(set(paths)) > 500
    assert not any("site-packages" in path or "__pycache__" in path for path in paths)
    few = library.files(10)
    assert len(few) == 10
    assert set(few) <= set(files)
    path, size = few[3]
    with open(os.path.join(library.root(), path), "rb") as file:
        content = file.read()
    assert (library.digest(path), size) == (hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize(("size", "name"), [(0, "tiny"), (1024, "tiny"), (1025, "small"), (10**6, "huge")])
def test_the_smaller_a_file_the_more_urgent(size: int, name: str) -> None:
    assert library.size_class(size).name == name
    priorities = [known.priority for known in library.CLASSES]
    assert priorities == sorted(priorities, reverse=True)


def test_the_picture_shows_tasks_rates_room_and_topics() -> None:
    state = progress()
    state.on_event(event(names.STARTED, 1, worker="worker-1", path="abc.py"))
    state.on_event(event(names.HASHED, 2, worker="worker-1", path="abc.py"))
    state.on_message("hashed.small", {})
    state.phase = "working on it"
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    with LiveScreen(console) as screen:
        screen.show(state)
        screen.finish(state, check.Verdict(3), 1)
    console.print(picture(state), summary(state, check.Verdict(3, ["lost.py"]), 1))
    said = console.export_text()
    for text in ("1/3", "worker-2", "files/s", "operations/s", "room progress", "small 1", "abc.py", "working on it"):
        assert text in said
    assert "lost.py" in said
    assert "redelivered" in said


def test_processes_of_the_demo_end_with_the_pipe() -> None:
    code = "from synap.demo.processes import lifeline; import os, time; lifeline(lambda: os._exit(7)); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 7
