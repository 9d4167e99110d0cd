"""An exception of a signal handler, such as Ctrl-C's, in the middle of a call to an engine in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Deque, List

import pytest

from synap import SynapClient
from synap.commands import COMMANDS
from synap.engine.engine import Engine
from synap.engine.records import KEY
from synap.errors import SynapError
from synap.host import Batch, EngineHost, Log
from synap.host.log import Held
from synap.host.logged import LoggedHost
from synap.lanes.io.threads import Lock, Mailbox, apart
from synap.storage.commit import DiskLog
from tests.helpers.driver import Client
from tests.helpers.patience import PATIENCE
from tests.helpers.scripted import Peer, ScriptedService, name_of


class Interrupt(BaseException):
    """What a handler raises."""


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_change_that_the_log_had_not_got_is_written_in_the_next_turn(
    fsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: DiskLog, batch: Batch, alone: bool) -> bool:
        raise Interrupt

    url = f"file://{tmp_path / 'data'}"
    with SynapClient(url=url, fsync=fsync, timeout=PATIENCE) as client:
        client.kv.set("key", 1)
        with monkeypatch.context() as patched:
            patched.setattr(DiskLog, "submit", interrupted)
            with pytest.raises(Interrupt):
                client.kv.set("key", 2)
        assert client.kv.get("key").value == 2
        client.kv.set("other", 3)
    with SynapClient(url=url) as client:
        assert [client.kv.get(key).value for key in ("key", "other")] == [2, 3]


def test_what_is_read_next_waits_for_a_change_that_the_log_had_not_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the exception came before the change was among those that are waited for."""

    class Interrupted(Deque[Batch]):
        interrupts = False

        def append(self, batch: Batch) -> None:
            if self.interrupts:
                Interrupted.interrupts = False
                raise Interrupt
            super().append(batch)

    pending: List[bool] = []
    submit = DiskLog.submit

    def looked_at(self: DiskLog, batch: Batch, alone: bool) -> bool:
        pending.append(batch in self._host.pending)
        return submit(self, batch, alone)

    monkeypatch.setattr("synap.host.logged.deque", Interrupted)
    with SynapClient(url=f"file://{tmp_path / 'data'}", timeout=PATIENCE) as client:
        client.kv.set("key", 1)
        monkeypatch.setattr(DiskLog, "submit", looked_at)
        Interrupted.interrupts = True
        with pytest.raises(Interrupt):
            client.kv.set("key", 2)
        assert client.kv.get("key").value == 2
        assert pending == [True]


class Interrupting(Log):
    """Raises what a handler does, once, and keeps what it gets."""

    def __init__(self) -> None:
        self.batches: List[Batch] = []
        self.interrupts = True

    def submit(self, batch: Batch, alone: bool) -> bool:
        if self.interrupts:
            self.interrupts = False
            raise Interrupt
        self.batches.append(batch)
        return False


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("holds", [True, False])
def test_a_change_that_the_log_had_not_got_when_it_failed_is_undone_where_all_are_and_else_written(
    holds: bool, noted: bool
) -> None:
    log = Interrupting()
    log.holds = holds
    host = EngineHost(Engine(ids=lambda: 1), log=log)
    host.execute(Client(host), 1, COMMANDS["kv.set"], b'{"key":"key","value":1}')
    with pytest.raises(Interrupt):
        host.end_turn()
    if not noted:  # the exception came before the change was among those that are waited for
        host.pending.clear()
    host.failed(SynapError("SERVICE_UNAVAILABLE", "the disk is full"))
    host.recovered()
    assert bool(host.engine.keys.values) is not holds
    assert [record[:2] for batch in log.batches for record in batch.records] == ([] if holds else [(KEY, "key")])


def test_a_session_whose_output_was_left_behind_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: LoggedHost) -> List[Held]:
        self.touched = []
        raise Interrupt

    with SynapClient(url=f"file://{tmp_path / 'data'}", timeout=PATIENCE) as client:
        client.kv.set("key", 1)
        with monkeypatch.context() as patched:
            patched.setattr(LoggedHost, "_take", interrupted)
            with pytest.raises(Interrupt):
                client.kv.set("key", 2)
        assert client.kv.get("key").value == 2


# ------------------------------------------------------------------------------------------ the sync client's own work

PLACES = 2000
"""More places than any call here has."""

HELD = "this Python may leave a lock held at its `with`"
"""From 3.14 on `__enter__` is called by an instruction of its own, behind which a signal handler may run."""


def interrupted(place: int, work: Callable[[], object]) -> bool:
    """Run `work` with an exception at one of the places where a signal handler may run; returns whether it has so many.

    Those are where a function of Python's begins, and where one in C has returned.
    """
    left = place

    def profile(frame: object, event: str, about: object) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Interrupt

    sys.setprofile(profile)
    try:
        work()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return left < 0


def at_each_place(work: Callable[[], object], check: Callable[[], None]) -> None:
    """Interrupt `work` at each of its places, and see each time that all goes on."""
    for place in range(PLACES):
        if not interrupted(place, work):
            return
        check()
    raise AssertionError("it never got through")


def answering(peer: Peer) -> None:
    peer.hello()
    while True:
        request = peer.request()
        answers = {"queue.consume": None, "kv.get": {"found": True, "value": 1, "ttl": None}}
        peer.answer(request, answers.get(name_of(request)))


@pytest.mark.skipif(sys.version_info < (3, 10), reason=HELD)
@pytest.mark.parametrize("waits", [False, True])
def test_no_place_of_the_pool_is_lost_wherever_an_exception_comes(waits: bool) -> None:
    def check() -> None:
        assert client.kv.get("key").value == 1

    with ScriptedService(answering) as service:
        client = SynapClient(service.url, transport="native", pool_size=1, timeout=PATIENCE, spin=False)
        with client:
            check()
            at_each_place(lambda: client.queue.consume("q", timeout=PATIENCE) if waits else client.kv.get("key"), check)
            lane: Any = client._calls.lane
            assert len(lane._slots) == 1
            assert not lane._waiting


@pytest.mark.skipif(not (3, 10) <= sys.version_info < (3, 14), reason=HELD)
def test_a_mailbox_and_a_lock_stay_free_wherever_an_exception_comes() -> None:
    def locked() -> None:
        with lock:
            pass

    def both() -> bool:
        locked()
        return box.put(1)

    def check() -> None:
        assert apart(both, name="other").result(PATIENCE)

    box, lock = Mailbox[int](PLACES * 4), Lock()
    for work in (locked, lambda: box.put(1), box.poll, lambda: [box.put(1), box.get()]):
        at_each_place(work, check)
