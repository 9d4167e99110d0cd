"""The thread on which the main thread's calls to a directory are made."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import List

import pytest

from synap import SynapClient
from synap.lanes.inprocess.uninterrupted import Uninterrupted
from synap.lanes.io.threads import apart
from tests.helpers.patience import PATIENCE


class Owner:
    """Has one of them."""

    def __init__(self) -> None:
        self.run = Uninterrupted(self)


def engines() -> List[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "synap-engine"]


def fails() -> None:
    raise ValueError("it failed")


def test_a_call_of_the_main_thread_is_made_on_another_and_one_of_another_there() -> None:
    owner = Owner()
    assert owner.run(threading.current_thread).name == "synap-engine"
    other = apart(lambda: owner.run(threading.get_ident) == threading.get_ident(), name="other")
    assert other.result(PATIENCE)
    with pytest.raises(ValueError, match="it failed"):
        owner.run(fails)
    owner.run.end()
    assert not engines()
    assert owner.run(threading.current_thread) is threading.current_thread()


def test_it_ends_with_its_owner_and_keeps_nothing_of_what_it_did() -> None:
    owner = Owner()
    owner.run(lambda kept: None, owner)
    (thread,) = engines()
    del owner
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_is_asked_of_it_as_it_ends_is_done_once() -> None:
    owner = Owner()
    done: List[int] = []
    run = owner.run
    run(done.append, 1)
    errands = run._errands

    class Queue:
        get_nowait = staticmethod(errands.get_nowait)

        @staticmethod
        def put(errand: object) -> None:
            run._errands = errands
            apart(run.end, name="other").result(PATIENCE)
            errands.put(errand)  # type: ignore[arg-type]

    run._errands = Queue()  # type: ignore[assignment]
    run(done.append, 2)
    assert done == [1, 2]


def test_the_call_is_made_here_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert Owner().run(threading.current_thread) is threading.main_thread()


def test_a_client_of_the_memory_needs_none_and_one_of_a_directory_leaves_none(tmp_path: Path) -> None:
    with SynapClient("memory://") as memory, SynapClient(f"file://{tmp_path / 'data'}", timeout=PATIENCE) as client:
        memory.kv.set("key", 1)
        assert not engines()
        client.kv.set("key", 1)
        assert len(engines()) == 1
    assert not engines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_one_of_its_own(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'data'}"
    client = SynapClient(url, timeout=PATIENCE)
    client.kv.set("key", 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.read(read, 1)  # the parent has left the directory
        try:
            os._exit(0 if client.kv.get("key").value == 1 else 1)
        finally:
            os._exit(2)
    client.close()
    os.write(write, b"1")
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)
