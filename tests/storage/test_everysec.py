"""`fsync=everysec`: the sync comes once in its time, however steadily writes come."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from synap.storage import commit
from tests.helpers.driver import Service, c


def test_steady_writes_do_not_put_the_sync_off(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "SYNC_EVERY", 0.1)
    synced = threading.Event()
    with Service(str(tmp_path / "data"), fsync="everysec") as service:
        force = service.log.store.force

        def note() -> None:
            force()
            synced.set()

        monkeypatch.setattr(service.log.store, "force", note)
        for _ in range(2):  # also when it was done once
            synced.clear()
            give_up = time.monotonic() + 30
            number = 0
            while not synced.is_set() and time.monotonic() < give_up:
                service.do(c.KvSet(f"key{number % 10}", b"%d" % number))
                number += 1
                synced.wait(0.002)
            assert synced.is_set()
