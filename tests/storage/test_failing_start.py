"""A disk that fails when a directory is opened: it is served for reading, and the reason is told."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any, List, Sequence

import pytest

from synap import SynapClient
from synap.errors import SynapError
from synap.storage.store import Store
from tests.helpers.driver import Service, c
from tests.storage.test_trouble import FSYNC, FULL, TEXTS, WRITE, refused, resumed, tells_fsync

FAILURES = [
    pytest.param(FSYNC, "fsync_failed", id="fsync"),
    pytest.param(WRITE, "io_error", id="write", marks=tells_fsync),
    pytest.param(FULL, "disk_full", id="full"),
]


RESERVE = 1024 * 1024


class Probes:
    """Fails the statements that try whether something can be written."""

    def __init__(self, execute: Any) -> None:
        self._execute = execute
        self.fails = 0
        self.count = 0

    def execute(self, store: Store, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        if self.fails and "zeroblob" in sql:
            self.count += 1
            error = sqlite3.OperationalError(TEXTS[self.fails])
            if sys.version_info >= (3, 11):
                error.sqlite_errorcode = self.fails
            raise error
        rows: List[Any] = self._execute(store, sql, parameters, safe=safe)
        return rows


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    probes = Probes(Store.execute)

    def execute(store: Store, sql: str, parameters: Sequence[Any] = (), *, safe: bool = False) -> List[Any]:
        return probes.execute(store, sql, parameters, safe=safe)

    monkeypatch.setattr(Store, "execute", execute)
    return probes


@pytest.fixture
def directory(tmp_path: Any) -> str:
    directory = str(tmp_path / "data")
    with Service(directory) as service:
        service.do(c.KvSet("k", b"1"))
    return directory


@pytest.mark.parametrize(("fails", "reason"), FAILURES)
def test_a_client_reads_and_is_told_why_it_can_not_write(
    directory: str, probes: Probes, fails: int, reason: str
) -> None:
    probes.fails = fails
    with SynapClient(f"file://{directory}", retries=0) as client:
        assert client.kv.get("k").value == 1
        with pytest.raises(SynapError) as caught:
            client.kv.set("k", 2)
        assert caught.value.code == "SERVICE_UNAVAILABLE"
        assert caught.value.details["reason"] == reason
    probes.fails = 0
    with Service(directory) as service:
        service.do(c.KvSet("k", b"3"))


@pytest.mark.parametrize(("fails", "reason"), FAILURES)
def test_a_host_is_told_why_nothing_can_be_written_and_goes_on_once_that_is_over(
    directory: str, probes: Probes, fails: int, reason: str
) -> None:
    probes.fails = fails
    with Service(directory, reserve=RESERVE) as service:
        assert service.do(c.KvGet("k")).value == b"1"
        assert refused(service, c.KvSet("k", b"2")).details["reason"] == reason
        probes.fails = 0
        if reason != "fsync_failed":
            resumed(service)
            service.do(c.KvSet("k", b"2"))


def tells(service: Service, reason: str) -> None:
    service.wait_until(
        lambda: service.host.unavailable is not None and service.host.unavailable.details["reason"] == reason
    )


@tells_fsync
def test_a_disk_that_fails_is_not_said_to_be_full_and_is_logged_once(
    directory: str, probes: Probes, caplog: pytest.LogCaptureFixture
) -> None:
    probes.fails = WRITE
    with Service(directory, reserve=RESERVE) as service:
        service.wait_until(lambda: probes.count > 3)
        told = [record.getMessage() for record in caplog.records if record.name == "synap.storage"]
    assert len(told) == 1
    assert "disk I/O error" in told[0]


@tells_fsync
def test_the_reason_that_is_told_is_the_one_that_holds(directory: str, probes: Probes) -> None:
    probes.fails = FULL
    with Service(directory, reserve=RESERVE) as service:
        for fails, reason in [(FULL, "disk_full"), (WRITE, "io_error"), (FULL, "disk_full"), (WRITE, "io_error")]:
            probes.fails = fails
            tells(service, reason)
            assert refused(service, c.KvSet("k", b"2")).details["reason"] == reason
        probes.fails = 0
        resumed(service)
        service.do(c.KvSet("k", b"2"))
