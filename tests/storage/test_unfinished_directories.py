"""A directory whose making was interrupted at any step is an empty one, or refused, or all of what it was to be.

The files are copied at each line of `synap.storage` that runs while a directory is made: so a killed process leaves
them. A power loss may leave older ones: a name that is not synced may be missing, a file that is not synced may be cut.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Set, Tuple

import pytest

import synap.storage
from synap.engine.engine import Engine
from synap.errors import SynapError
from synap.storage import backup, doctor, store, write_directory
from synap.storage.layout import DATABASE, LOCK, MARK, NEW, Damaged
from synap.storage.store import sync_directory
from synap.storage.write_directory import new_directory, write_engine
from tests.helpers.driver import Service, c, contents, contents_of
from tests.storage.conftest import put

Files = Dict[str, bytes]
SOURCE = os.path.dirname(synap.storage.__file__)
KEY = c.KvSet("key", b'"' + b"v" * 5000 + b'"')
EMPTY = contents(Engine(ids=lambda: 1))


class Steps:
    """The files of a directory at each line that ran, and those that a power loss may leave then."""

    def __init__(self, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.killed: List[Files] = []
        self.powerless: List[Files] = []
        self._synced: Files = {}
        self._mark = b""
        """The mark as it was synced last, wherever its name stands."""
        self._monkeypatch = monkeypatch

    def record(self, run: Callable[[], object]) -> None:
        self._synced = self._read()
        self._mark = self._synced.get(MARK, b"")
        self._look()
        fsync = os.fsync

        def synced_directory(directory: str) -> None:
            sync_directory(directory)
            self._look()
            self._synced = self.killed[-1]

        def synced_file(file: int) -> None:
            fsync(file)
            self._mark = self._read().get(MARK, b"")

        before = sys.gettrace()
        with self._monkeypatch.context() as patch:
            for module in (store, backup, write_directory):
                patch.setattr(module, "sync_directory", synced_directory, raising=False)
            patch.setattr(os, "fsync", synced_file)
            sys.settrace(self._trace)
            try:
                run()
            finally:
                sys.settrace(before)
        self._look()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        self._look()
        return self._trace

    def _read(self) -> Files:
        files = {}
        for entry in os.scandir(self.directory) if os.path.isdir(self.directory) else ():
            if entry.is_file() and not entry.name.endswith(("-shm", ".lock")):
                files[entry.name] = Path(entry.path).read_bytes()
        return files

    def _look(self) -> None:
        files = self._read()
        if self.killed and files == self.killed[-1]:
            return
        self.killed.append(files)
        marks = {self._synced.get(MARK), files.get(MARK)}
        if files.get(MARK) != self._mark:
            marks |= {b"", bytes(len(files[MARK])), files[MARK][:512]} if MARK in files else set()
        for others, found in itertools.product((self._synced, files), marks):
            loss = {name: content for name, content in others.items() if name != MARK}
            self.powerless.append(loss if found is None else {**loss, MARK: found})


def shapes(found: List[Files], seen: Set[FrozenSet[Tuple[Any, ...]]]) -> Iterator[Files]:
    """Yield those that differ from the others in more than what is drawn by lot."""
    for files in found:
        shape = frozenset((name, len(content), content.count(0) // 64) for name, content in files.items())
        if shape not in seen:
            seen.add(shape)
            yield files


def test_a_first_start_that_was_interrupted_at_any_step_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is."""
    directory = str(tmp_path / "data")
    seen: Set[FrozenSet[Tuple[Any, ...]]] = set()
    todo: List[Files] = [{}]
    while todo:
        files = todo.pop()
        put(directory, files)
        steps = Steps(directory, monkeypatch)
        try:
            steps.record(lambda: Service(directory).close())
        except SynapError as error:
            pytest.fail(f"{sorted(files)}: {error.message}")
        assert contents_of(directory) == EMPTY
        with Service(directory) as service:
            service.do(KEY)
        with Service(directory) as service:
            assert service.do(c.KvGet("key")).found
        assert set(os.listdir(directory)) == {DATABASE, MARK, LOCK}
        todo += shapes(steps.killed + steps.powerless, seen)
    assert len(seen) > 12


def test_the_doctor_takes_it_for_a_directory_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(tmp_path)
    monkeypatch.setattr(os, "replace", lambda old, new: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.create(directory)
    assert sorted(os.listdir(directory)) == [NEW, MARK]
    with pytest.raises(SynapError, match="holds no data"):
        doctor.check(directory)
    assert sorted(os.listdir(directory)) == [NEW, MARK]


@pytest.fixture
def data(tmp_path: Path) -> str:
    directory = str(tmp_path / "original")
    with Service(directory) as service:
        service.do(KEY)
        service.do(c.QueuePublish("q", b"1"))
    return directory


@pytest.mark.parametrize("how", ["import", "repair", "backup", "receive"])
def test_what_was_to_be_brought_from_elsewhere_is_never_there_in_part(
    data: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused where its mark is there and it is not; without one, nothing counts yet."""
    directory = str(tmp_path / "target")
    whole = contents_of(data)
    engine = Engine(ids=lambda: 1)
    synap.storage.recovery.recover(data, engine, 0.0)

    def make() -> None:
        if how == "import":
            with new_directory(directory):
                write_engine(directory, engine)
        elif how == "repair":
            doctor.repair(data, directory)
        elif how == "backup":
            backup.copy(data, directory)
        else:
            backup.receive(list(backup.stream(data)), directory)

    steps = Steps(directory, monkeypatch)
    steps.record(make)
    assert contents_of(directory) == whole
    outcomes: Set[str] = set()
    scratch = str(tmp_path / "found")
    for files in shapes(steps.killed + steps.powerless, set()):
        put(scratch, files)
        try:
            Service(scratch).close()
        except Damaged:
            outcomes.add("refused")
            continue
        found = contents_of(scratch)
        outcomes.add("whole" if found == whole else "empty")
        assert found == whole or (found == EMPTY and MARK not in files and DATABASE not in files), files.keys()
    assert outcomes == {"refused", "whole", "empty"}
