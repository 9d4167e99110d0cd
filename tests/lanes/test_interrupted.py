"""An exception of a signal handler, such as Ctrl-C's, in the middle of a call to an engine in this process."""

from __future__ import annotations

import random
import signal
import sys
import threading
from pathlib import Path
from typing import Iterator, List

import pytest

from synap import SynapClient
from synap.host import Batch
from synap.host.log import Held
from synap.host.logged import LoggedHost
from synap.storage.commit import DiskLog
from tests.helpers.patience import PATIENCE

TIMES = 150


class Interrupt(BaseException):
    """What a handler raises."""


@pytest.fixture
def armed() -> Iterator[List[bool]]:
    """Interrupts this thread every millisecond or so; nothing is raised unless there is an item, which goes then."""
    armed: List[bool] = []
    over = threading.Event()
    thread, chance = threading.get_ident(), random.Random(1)

    def handle(number: int, frame: object) -> None:
        if armed:
            armed.clear()
            raise Interrupt

    def interrupt() -> None:
        while not over.wait(chance.uniform(0, 0.002)):
            signal.pthread_kill(thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    yield armed
    armed.clear()
    over.set()
    interrupting.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason="an exception may come between a block and the end of its `with`"
)
@pytest.mark.parametrize("url", ["memory://", "file://{}?always", "file://{}?everysec"])
def test_an_engine_goes_on_after_calls_that_were_interrupted(url: str, armed: List[bool], tmp_path: Path) -> None:
    url, _, fsync = url.format(tmp_path / "data").partition("?")
    with SynapClient(url=url, fsync=fsync or "always", timeout=PATIENCE) as client:
        client.connect()
        count = 0
        for _ in range(TIMES):
            try:
                armed.append(True)
                while True:
                    count += 1
                    client.kv.set("key", count)
                    assert client.kv.get("key").value == count
            except Interrupt:
                pass
        assert client.kv.get("key").value in (count - 1, count)
        client.kv.set("key", "end")
        assert client.kv.get("key").value == "end"
    if fsync:
        with SynapClient(url=url) as client:
            assert client.kv.get("key").value == "end"


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
