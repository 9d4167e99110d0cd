"""What is left of a client in a forked child, and in a process that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, List, Tuple
from unittest.mock import patch

import pytest

import synap
from synap import SynapClient, SynapError
from synap import commands as c
from synap.host import inprocess
from synap.host.inprocess import LocalHost
from synap.host.registry import open_engine
from synap.storage import checkpointing
from synap.storage.store import Store
from tests.helpers.forks import alone, forks, in_a_fork
from tests.helpers.patience import PATIENCE, impatient
from tests.helpers.scripted import Peer, ScriptedService


def numbered(peer: Peer) -> None:
    """Answer every request with the number of its connection."""
    peer.hello()
    while True:
        peer.answer(peer.request(), {"value": peer.number, "exists": True})


@forks
@alone
def test_a_forked_child_makes_a_connection_of_its_own() -> None:
    with ScriptedService(numbered) as service:
        with SynapClient(url=service.url) as client:
            ours = client.kv.incr("n")
            theirs = in_a_fork(lambda: client.kv.incr("n"))
            assert theirs == str(ours + 1)
            assert client.kv.incr("n") == ours


@forks
@alone
def test_a_forked_child_goes_on_with_a_copy_of_the_memory() -> None:
    with SynapClient(url="memory://") as client, SynapClient(url="memory://forked") as named:
        client.kv.set("key", 1)
        named.kv.set("key", 10)

        def child() -> Any:
            waited = client.queue.consume("queue", timeout=0.2)
            return client.kv.incr("key"), named.kv.incr("key"), waited

        assert in_a_fork(child) == "(2, 11, None)"
        assert client.kv.incr("key") == 2
        assert named.kv.incr("key") == 11


@forks
@alone
def test_a_forked_child_can_fork_while_other_threads_work() -> None:
    with SynapClient(url="memory://") as client:
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                client.kv.incr("n")

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert [in_a_fork(lambda: client.kv.incr("own")) for _ in range(5)] == ["1"] * 5
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("url", ["memory://", "memory://opened", "file://"])
def test_an_engine_is_not_opened_while_the_process_forks(url: str, tmp_path: Path) -> None:
    begin = LocalHost.begin
    excluded: List[bool] = []

    def watched(*arguments: Any, **options: Any) -> None:
        excluded.append(inprocess._registry.locked() or inprocess._slow.locked())  # a fork takes both
        begin(*arguments, **options)

    with patch.object(LocalHost, "begin", watched):
        with SynapClient(f"{url}{tmp_path}" if url == "file://" else url) as client:
            client.kv.set("key", 1)
    assert excluded == [True]


def forks_outside(tmp_path: Path, module: Any, name: str) -> None:
    """Fork while a log's thread is within a function, and assert that it is not in the child."""
    inside, goes_on, pause = threading.Event(), threading.Event(), threading.Event()
    function = getattr(module, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        inside.set()
        assert goes_on.wait(PATIENCE)
        try:
            return function(*arguments, **options)
        finally:
            inside.clear()

    def go_on_where_it_forks() -> None:
        while not inprocess._registry.locked():
            pause.wait(0.001)
        goes_on.set()

    with SynapClient(f"file://{tmp_path / name}", fsync="no") as client:
        client.connect()
        with patch.object(checkpointing, "CHECKPOINT_PAGES", 1), patch.object(module, name, watched):
            client.kv.set("a", 1)
            assert inside.wait(PATIENCE)
            helper = threading.Thread(target=go_on_where_it_forks, daemon=True)
            helper.start()
            assert in_a_fork(inside.is_set) == "False"
            helper.join()
        assert client.kv.get("a").value == 1


@forks
@alone
def test_no_thread_of_a_log_is_within_sqlite_when_a_process_forks(tmp_path: Path) -> None:
    # It has locks for the whole process, which a child would find taken for ever.
    forks_outside(tmp_path, Store, "append")
    forks_outside(tmp_path, checkpointing, "connect")


@forks
@alone
def test_a_process_forks_while_a_directory_is_opened(tmp_path: Path) -> None:
    # Opening starts a thread by a module whose lock a fork takes, too: in the other order each waited for the other.
    from concurrent.futures import ThreadPoolExecutor  # as late as opening imports it

    inside, pause = threading.Event(), threading.Event()
    submit = ThreadPoolExecutor.submit

    def watched(*arguments: Any) -> Any:
        inside.set()
        pause.wait(0.02)  # until the fork has begun
        return submit(*arguments)

    def use() -> None:
        with SynapClient(f"file://{tmp_path}/data", fsync="no") as client:
            client.kv.incr("n")

    with patch.object(ThreadPoolExecutor, "submit", watched):
        opener = threading.Thread(target=use, daemon=True)
        opener.start()
        assert inside.wait(PATIENCE)
        assert in_a_fork(lambda: "forked") == "forked"
        opener.join(PATIENCE)
        assert not opener.is_alive()


@forks
@alone
def test_what_is_told_of_trouble_by_a_log_s_thread_may_fork(tmp_path: Path) -> None:
    # Such as a handler of the logging module that alerts somebody.
    with SynapClient(f"file://{tmp_path}/data", fsync="no") as client:
        client.connect()
        said: List[str] = []
        told = threading.Event()

        def forking(*arguments: Any, **options: Any) -> Any:
            said.append(in_a_fork(lambda: "forked"))
            told.set()
            return append(*arguments, **options)

        append = Store.append
        with patch.object(Store, "append", forking):
            client.kv.set("a", 1)
            assert told.wait(PATIENCE)
        assert said[0] == "forked"


@forks
@alone
def test_a_forked_child_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with SynapClient(url=f"file://{tmp_path}/data") as client:
        client.kv.set("key", 1)
        said = in_a_fork(lambda: client.kv.get("key"))
        assert str(os.getpid()) in said
        assert client.kv.get("key").value == 1
    with SynapClient(url=f"file://{tmp_path}/data") as client:
        assert client.kv.get("key").value == 1


def test_clients_of_one_name_share_an_engine_as_long_as_one_is_open() -> None:
    with SynapClient(url="memory://shared") as first:
        first.kv.set("key", 1)
        with SynapClient(url="memory://shared") as second, SynapClient(url="memory://other") as other:
            assert second.kv.get("key").value == 1
            assert not other.kv.get("key").found
        assert first.kv.get("key").value == 1
    with SynapClient(url="memory://shared") as later:
        assert not later.kv.get("key").found


def test_clients_without_a_name_share_nothing() -> None:
    with SynapClient(url="memory://") as first, SynapClient(url="memory://") as second:
        first.kv.set("key", 1)
        assert not second.kv.get("key").found


def test_clients_of_one_process_share_a_directory(tmp_path: Path) -> None:
    with SynapClient(url=f"file://{tmp_path}/data") as first:
        with SynapClient(url=f"file://{tmp_path}/data") as second:
            first.kv.set("key", 1)
            assert second.kv.get("key").value == 1
        assert first.kv.get("key").value == 1


def test_a_directory_is_not_shared_with_a_client_that_asks_for_another_fsync(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/data"
    with SynapClient(url, fsync="no") as first, SynapClient(url, fsync="always") as second:
        first.kv.set("key", 1)
        with pytest.raises(SynapError, match="is open already with fsync='no', not 'always'") as caught:
            second.kv.set("key", 2)
        assert (caught.value.code, caught.value.details["option"]) == ("INVALID_REQUEST", "fsync")
        assert first.kv.get("key").value == 1
        first.close()
        assert second.kv.set("key", 3).success


def test_who_uses_memory_waits_for_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That is on the event loop, where an async client does so.
    opening, goes_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow(scheme: str, *arguments: Any) -> Any:
        if scheme == "file":
            opening.set()
            assert goes_on.wait(PATIENCE)
        return open_engine(scheme, *arguments)

    def use_memory() -> None:
        for url in ("memory://", "memory://named"):
            with SynapClient(url) as client:
                client.kv.set("key", 1)
        done.set()

    monkeypatch.setattr(inprocess, "open_engine", slow)
    with SynapClient(f"file://{tmp_path}/data") as client:
        opener = threading.Thread(target=client.connect, daemon=True)
        opener.start()
        assert opening.wait(PATIENCE)
        threading.Thread(target=use_memory, daemon=True).start()
        try:
            assert done.wait(PATIENCE)
        finally:
            goes_on.set()
            opener.join()


def test_a_program_that_ends_without_closing_ends_at_once_and_says_nothing(tmp_path: Path) -> None:
    program = f"""
        from synap import SynapClient

        memory = SynapClient(url="memory://")
        memory.stream.subscribe("room", print)
        memory.kv.set("key", 1, ttl=60)
        file = SynapClient(url="file://{tmp_path}/data")
        file.kv.set("key", 1)
        print("done")
    """
    assert run_program(program) == (0, "done\n", "")


def test_an_async_client_can_be_closed_as_the_interpreter_ends(tmp_path: Path) -> None:
    """That of a directory too, though no thread can be started then. A subscription that ended before says nothing."""
    program = f"""
        import asyncio, atexit
        from synap import AsyncSynapClient

        client = AsyncSynapClient(url="file://{tmp_path}/data")

        def close():
            asyncio.run(client.close())
            print("closed")

        async def main():
            await client.stream.subscribe("room", print)
            await client.kv.set("key", 1)

        atexit.register(close)
        asyncio.run(main())
    """
    assert run_program(program) == (0, "closed\n", "")
    with SynapClient(url=f"file://{tmp_path}/data") as client:
        assert client.kv.get("key").value == 1


def run_program(program: str) -> Tuple[int, str, str]:
    """Run a program of its own; returns how it ended, and what it wrote."""
    root = str(Path(synap.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no such signal")
def test_an_interrupted_call_leaves_no_answer_for_the_next() -> None:
    held = threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if b"held" in request.body:
                os.kill(os.getpid(), signal.SIGALRM)
                held.wait(PATIENCE)
                peer.answer(request, {"found": True, "value": "held", "ttl": None})
            else:
                peer.answer(request, {"found": True, "value": "right", "ttl": None, "exists": True})

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ScriptedService(script) as service:
            with SynapClient(url=service.url, transport="native") as client:
                client.kv.get("first")
                with pytest.raises(KeyboardInterrupt):
                    client.kv.get("held")
                held.set()
                assert client.kv.get("next").value == "right"
    finally:
        signal.signal(signal.SIGALRM, former)


def test_threads_that_wait_for_messages_keep_nobody_from_publishing() -> None:
    """More consumers than the pool has connections."""
    waiting = threading.Barrier(4)

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if b"timeout" in request.body:
                waiting.wait(PATIENCE)
                waiting.wait(PATIENCE)
                peer.answer(request, None)
            else:
                peer.answer(request, {"message_id": "1", "position": 1, "exists": True})

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, pool_size=2, transport="native", timeout=PATIENCE) as client:
            consumers = [
                threading.Thread(target=client.queue.consume, args=("queue",), kwargs={"timeout": PATIENCE})
                for _ in range(3)
            ]
            for consumer in consumers:
                consumer.start()
            waiting.wait(PATIENCE)  # all three wait at the service
            assert client.queue.publish("queue", 1).position == 1
            waiting.wait(PATIENCE)
            for consumer in consumers:
                consumer.join(PATIENCE)


def test_a_pool_that_stays_busy_is_said_to_be() -> None:
    held, release = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.hello()
        while True:
            request = peer.request()
            if b"held" in request.body:
                held.set()
                release.wait(PATIENCE)
            peer.answer(request, {"found": False, "value": None, "ttl": None, "exists": True})

    with ScriptedService(script) as service:
        with SynapClient(url=service.url, pool_size=1, transport="native") as client:
            client.connect()
            holder = threading.Thread(target=lambda: client.kv._call(c.KV_GET, c.KvGet("held"), PATIENCE))
            holder.start()
            assert held.wait(PATIENCE)
            busy = pytest.raises(SynapError, match="all connections are busy; nothing was sent")
            with impatient(client, 3), busy as caught:
                client.kv.set("other", 1)
            release.set()
            holder.join(PATIENCE)
    assert (caught.value.code, caught.value.may_have_happened) == ("TIMEOUT", False)
