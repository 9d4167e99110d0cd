"""An exception of a signal handler, such as Ctrl-C's, in the middle of a call to an engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Deque, List

import pytest

from synap import SynapClient
from synap.host import Batch
from synap.host.log import Held
from synap.host.logged import LoggedHost
from synap.storage.commit import DiskLog
from tests.helpers.patience import PATIENCE


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
