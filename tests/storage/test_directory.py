"""One process has a directory, and what can't be used is said plainly."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from typing import Any, Iterator

import pytest

from synap.storage import Locked, Unusable
from synap.storage.layout import DATABASE, FORMAT, LOCK, MARK
from synap.storage.rows import seal_map
from synap.storage.store import IDENTITY
from tests.helpers.driver import Service, c
from tests.helpers.patience import PATIENCE

HOLD = """
import sys
from tests.helpers.driver import Service
service = Service(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""

FORK = """
import os, sys
from tests.helpers.driver import Service, c

service = Service(sys.argv[1])
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(write)
    os.read(read, 1)
    os._exit(0)
os.close(read)
service.close()
with Service(sys.argv[1]) as again:
    assert again.do(c.KvSet("a", b"1")).success
os.close(write)
assert os.waitpid(pid, 0)[1] == 0
print("well")
"""
"""A process of its own: the one that runs the tests has threads, with which it must not fork."""


@pytest.fixture
def directory(tmp_path: Any) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def holder(directory: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


def test_a_start_on_an_empty_directory_says_so_once(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    """So that whoever starts on another one than that of the data, or of the backup, can see it."""
    with caplog.at_level(logging.INFO, "synap.storage"):
        Service(directory).close()
        assert caplog.messages == [f"{directory} was no data directory, and is an empty one now"]
        Service(directory).close()
    assert len(caplog.messages) == 1


def test_a_second_process_is_told_which_one_has_it(directory: str, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(Locked) as caught:
        Service(directory)
    assert f"process {holder.pid} on" in caught.value.message
    assert caught.value.details["pid"] == holder.pid
    assert caught.value.code == "SERVICE_UNAVAILABLE"


@pytest.mark.skipif(sys.platform == "win32", reason="files in use can't be removed there")
def test_a_lock_whose_file_was_removed_still_holds(directory: str, holder: subprocess.Popen[bytes]) -> None:
    os.unlink(os.path.join(directory, LOCK))
    with pytest.raises(Locked, match="is in use by another process"):
        Service(directory)
    holder.kill()
    holder.wait()
    Service(directory).close()


def test_a_second_one_in_the_same_process_is_told_so(directory: str) -> None:
    with Service(directory), pytest.raises(Locked, match="this process itself"):
        Service(directory)


def test_a_killed_process_leaves_no_lock(directory: str, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    with Service(directory) as service:
        assert service.do(c.KvSet("a", b"1")).success


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(directory: str) -> None:
    ran = subprocess.run([sys.executable, "-c", FORK, directory], capture_output=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stdout) == (0, b"well\n"), ran.stderr.decode()


def test_a_file_is_not_a_directory(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    with pytest.raises(Unusable, match="is a file; data needs a directory of its own"):
        Service(str(path))


def test_a_directory_below_a_file_can_not_be_made(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(Unusable, match="can't be"):
        Service(str(tmp_path / "file" / "data"))


def as_somebody_else(directory: str) -> str:
    """Open a directory as a user who has no rights to it; returns what that user is told."""
    program = f"""
import os
from tests.helpers.driver import Service
from synap.storage import Unusable
if os.getuid() == 0:
    os.setuid(65534)
try:
    Service({directory!r})
except Unusable as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def reachable() -> Iterator[str]:
    """A directory that any user can get to, and nobody else can write beside."""
    with tempfile.TemporaryDirectory(prefix="synap-test-") as place:
        os.chmod(place, 0o755)
        yield os.path.join(place, "data")


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_directory_that_may_not_be_written_is_said_to_be_one(reachable: str) -> None:
    Service(reachable).close()
    os.chmod(reachable, 0o555)
    for name in os.listdir(reachable):
        os.chmod(os.path.join(reachable, name), 0o444)
    told = as_somebody_else(reachable)
    os.chmod(reachable, 0o755)
    assert f"{reachable} can't be used" in told
    assert "must be allowed to read and write it" in told


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_a_directory_that_can_not_be_made_is_said_to_be_one(reachable: str) -> None:
    told = as_somebody_else(reachable)
    assert f"{reachable} can't be made: Permission denied" in told


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
@pytest.mark.parametrize("name", [".", LOCK, DATABASE, MARK])
def test_what_somebody_else_may_not_write_is_named(reachable: str, name: str) -> None:
    """Such as what a start by root has left."""
    Service(reachable).close()
    os.chmod(reachable, 0o777)
    for other in os.listdir(reachable):
        os.chmod(os.path.join(reachable, other), 0o666)
    place = os.path.normpath(os.path.join(reachable, name))
    os.chmod(place, 0o755 if name == "." else 0o644)
    told = as_somebody_else(reachable)
    os.chmod(reachable, 0o755)
    assert told.startswith(f"{place} can't be used: user ")
    assert "must be allowed to read and write it" in told


def test_a_read_only_file_system_is_said_to_be_one(tmp_path: Any) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if made.returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        with pytest.raises(Unusable, match="read-only file system"):
            Service(str(place))
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_directory_of_a_newer_version_is_refused_and_left_alone(directory: str) -> None:
    Service(directory).close()
    path = os.path.join(directory, DATABASE)
    connection = sqlite3.connect(path, isolation_level=None)
    identity = [FORMAT + 1, b"i" * 16, b"s" * 32, 0.0, "something that came later"]
    connection.execute("UPDATE meta SET body=? WHERE id=?", (seal_map(IDENTITY, identity), IDENTITY))
    connection.execute("ALTER TABLE log ADD COLUMN later TEXT")
    connection.close()
    with open(path, "rb") as file:
        before = file.read()
    with pytest.raises(Unusable, match=f"newer version .format {FORMAT + 1}, this one knows {FORMAT}"):
        Service(directory)
    with open(path, "rb") as file:
        assert file.read() == before


def test_another_programs_database_is_not_touched(directory: str) -> None:
    os.mkdir(directory)
    path = os.path.join(directory, DATABASE)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes(name TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(Unusable, match="it is no database of synap"):
        Service(directory)


def test_a_database_that_was_never_finished_is_made_anew(directory: str) -> None:
    os.mkdir(directory)
    with open(os.path.join(directory, "synap.db.new"), "wb") as file:
        file.write(b"half a database")
    with Service(directory) as service:
        assert service.do(c.KvSet("a", b"1")).success
    assert not os.path.exists(os.path.join(directory, "synap.db.new"))


def test_an_unknown_mode_is_refused(directory: str) -> None:
    with pytest.raises(Unusable, match="fsync must be one of always, everysec, no, got 'sometimes'"):
        Service(directory, fsync="sometimes")


def test_progress_is_told_while_a_directory_is_read(directory: str) -> None:
    with Service(directory) as service:
        for number in range(50):
            service.do(c.KvSet(f"k{number}", b"1"))
    told = []
    with Service(directory, progress=lambda done, total: told.append((done, total))):
        pass
    assert len(told) == 50
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)


def test_the_files_are_for_their_owner_only(directory: str) -> None:
    Service(directory).close()
    if os.name != "nt":
        assert os.stat(directory).st_mode & 0o077 == 0
        assert os.stat(os.path.join(directory, DATABASE)).st_mode & 0o077 == 0
        assert os.stat(os.path.join(directory, MARK)).st_mode & 0o077 == 0
