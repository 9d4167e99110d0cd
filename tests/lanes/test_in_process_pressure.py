"""Callers of an engine in this process that write faster than its disk are kept waiting, as those of a service are."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Dict, Type, Union

import pytest

from synap import AsyncSynapClient, SynapClient
from synap.host import EngineHost
from synap.host.inprocess import _shared
from synap.storage.commit import STALL
from synap.storage.store import Store
from tests.helpers.patience import PATIENCE

VALUE = "x" * 100_000
COUNT = 2 * STALL // len(VALUE)

Client = Union[Type[SynapClient], Type[AsyncSynapClient]]


class Slow:
    """A disk that writes once it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = threading.Event()
        append = Store.append

        def wait(store: Store, *arguments: Any, **options: Any) -> None:
            assert self.writes.wait(PATIENCE)
            append(store, *arguments, **options)

        monkeypatch.setattr(Store, "append", wait)


def write(client: Client, options: Dict[str, Any]) -> None:
    """Write one value after the other."""
    if client is SynapClient:
        with SynapClient(**options) as one:
            for number in range(COUNT):
                one.kv.set(f"k{number}", VALUE)
            assert one.kv.get(f"k{COUNT - 1}").value == VALUE
        return

    async def write_on() -> None:
        async with AsyncSynapClient(**options) as one:
            for number in range(COUNT):
                await one.kv.set(f"k{number}", VALUE)

    asyncio.run(write_on())


@pytest.mark.parametrize("client", [SynapClient, AsyncSynapClient])
@pytest.mark.parametrize("fsync", ["everysec", "no"])
def test_who_writes_faster_than_the_disk_has_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client, fsync: str
) -> None:
    slow = Slow(monkeypatch)
    url = f"file://{tmp_path / 'data'}"
    options: Dict[str, Any] = {"url": url, "fsync": fsync, "timeout": PATIENCE}
    with SynapClient(**options) as holder:
        holder.connect()
        [host] = [local.host for name, local in _shared.items() if name == f"file://{(tmp_path / 'data').resolve()}"]
        assert isinstance(host, EngineHost)
        writer = threading.Thread(target=write, args=(client, options), daemon=True)
        writer.start()
        pause = threading.Event()
        try:
            while writer.is_alive() and not host._unread:
                pause.wait(0.01)
            assert writer.is_alive()
            assert host.log is not None
            assert host.log.stalled
            assert len(host.engine.keys.values) * len(VALUE) <= STALL + 2 * len(VALUE)
            assert holder.kv.get("k0").value == VALUE, "reads go on"
        finally:
            slow.writes.set()
        writer.join(PATIENCE)
        assert not writer.is_alive()
        assert len(host.engine.keys.values) == COUNT
