"""`fsync=everysec`: the sync comes once in its time, however steadily writes come."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, List

import pytest

from synap.storage import commit, writer
from tests.helpers.driver import Service, c
from tests.helpers.patience import PATIENCE
from tests.storage.everysec import LOADS, run


def test_steady_writes_do_not_put_the_sync_off(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 0.1)
    synced = threading.Event()
    with Service(str(tmp_path / "data"), fsync="everysec") as service:
        force = service.log.store.force

        def note() -> None:
            force()
            synced.set()

        monkeypatch.setattr(service.log.store, "force", note)
        for _ in range(2):  # also when it was done once
            synced.clear()
            give_up = time.monotonic() + PATIENCE
            number = 0
            while not synced.is_set() and time.monotonic() < give_up:
                service.do(c.KvSet(f"key{number % 10}", b"%d" % number))
                number += 1
                synced.wait(0.002)
            assert synced.is_set()


def test_what_waits_behind_a_large_commit_has_waited_since_it_was_answered(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or more than a moment's answers could be lost with the process."""
    ahead = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0], sleep=time.sleep)
    monkeypatch.setattr(commit, "time", clock)
    monkeypatch.setattr(writer, "time", clock)
    monkeypatch.setattr(writer, "GROUP", 1)  # a commit for each turn
    monkeypatch.setattr(commit, "LATE", 100.0)
    begun = [threading.Event() for _ in range(3)]
    go = [threading.Event() for _ in range(3)]
    numbers: List[int] = []
    with Service(str(tmp_path / "data"), fsync="everysec") as service:
        append = service.log.store.append

        def slow(seq: int, body: bytearray, *, safe: bool) -> None:
            number = len(numbers)
            numbers.append(number)
            if number < 3:
                begun[number].set()
                assert go[number].wait(PATIENCE)
            append(seq, body, safe=safe)

        monkeypatch.setattr(service.log.store, "append", slow)
        try:
            service.do(c.KvSet("first", b"1"))
            assert begun[0].wait(PATIENCE)
            service.do(c.KvSet("second", b"1"))
            service.do(c.KvSet("third", b"1"))
            ahead[0] += 1000
            go[0].set()
            assert begun[1].wait(PATIENCE)
            assert service.host.stalled
            go[1].set()
            assert begun[2].wait(PATIENCE)
            assert service.host.stalled, "the third was answered before the first was written"
        finally:
            for event in go:
                event.set()
        service.wait_until(lambda: not service.host.stalled)


@pytest.mark.parametrize(("fsync", "load"), [*(("everysec", load) for load in LOADS), ("no", "100 under way")])
def test_a_kill_takes_the_newest_answers_of_each_caller_only(fsync: str, load: str) -> None:
    outcome = run(LOADS[load], fsync, 2000)
    for caller in outcome.callers:
        kept = [there for _, there in caller]
        assert kept == sorted(kept, reverse=True), "an answer is lost, and a later one is not"
    assert any(there for caller in outcome.callers for _, there in caller)
