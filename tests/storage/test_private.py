"""Files that are written for one person: nobody else reads them, and no trap that was laid under their name is used."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Callable, List

import pytest

from synap import SynapClient
from synap.errors import SynapError
from synap.server import keyfile
from synap.server.audit import Audit
from synap.server.grants import Quota
from synap.storage import backup, private
from synap.storage.layout import DATABASE
from tests.helpers.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")


@pytest.fixture(autouse=True)
def _careless() -> object:
    """Everybody may read what this process makes, unless it says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    with SynapClient(url=f"file://{directory}") as client:
        client.kv.set("a", 1)
    return directory


def exported(tmp_path: Path, target: Path) -> None:
    from synap.cli.data import open_output

    with open_output(str(target)) as opened:
        opened.write(b"secret")


def keyed(tmp_path: Path, target: Path) -> None:
    keyfile.add(target, "a", keyfile.new_key(), ["admin"], Quota())


def audited(tmp_path: Path, target: Path) -> None:
    Audit(str(target)).done({"key": "a", "address": "", "lane": ""}, "backup", "ok")


WRITERS = [exported, keyed, audited]


@pytest.mark.parametrize("write", WRITERS)
def test_files_are_their_owner_s_alone(tmp_path: Path, write: Callable[[Path, Path], None]) -> None:
    write(tmp_path, tmp_path / "file")
    assert mode(tmp_path / "file") == 0o600
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_links_are_not_followed(tmp_path: Path, write: Callable[[Path, Path], None], there: bool) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_text("")
    link = tmp_path / "file"
    link.symlink_to(victim)
    with pytest.raises(SynapError, match=r"link|can't be written") as caught:
        write(tmp_path, link)
    assert caught.value.code == "INVALID_REQUEST"
    assert link.is_symlink()
    assert victim.exists() is there
    assert not there or victim.read_text() == ""


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(SynapError, match="no file"):
            exported(tmp_path, place)


def test_a_file_that_is_replaced_is_made_anew(tmp_path: Path) -> None:
    target, other = tmp_path / "file", tmp_path / "other"
    target.write_text("before")
    os.link(target, other)
    exported(tmp_path, target)
    assert mode(target) == 0o600
    assert other.read_text() == "before", "whoever has the old file open, or linked, doesn't see the new one"


def test_a_file_of_keys_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keyed(tmp_path, path)
    path.chmod(0o640)
    keyfile.add(path, "b", keyfile.new_key(), ["admin"], Quota())
    keyfile.remove(path, "a")
    assert mode(path) == 0o640


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(ZeroDivisionError), private.replacing(str(target)):
        raise ZeroDivisionError
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_of_a_data_directory_or_a_copy_is_for_others(tmp_path: Path) -> None:
    directory, target = data(tmp_path), tmp_path / "copy"
    backup.copy(str(directory), str(target))
    received = tmp_path / "received"
    backup.receive(backup.stream(str(directory)), str(received))
    for folder in (directory, target, received):
        assert mode(folder) == 0o700
        assert mode(folder / DATABASE) == 0o600
        assert {mode(file) for file in folder.iterdir()} == {0o600}


def test_a_copy_is_its_owner_s_from_its_first_byte(tmp_path: Path) -> None:
    directory = data(tmp_path)
    seen: List[int] = []

    def look(done: int, total: int) -> None:
        seen.extend(mode(file) for file in target.iterdir())

    target = tmp_path / "copy"
    target.mkdir(0o777)
    backup.copy(str(directory), str(target), progress=look)
    assert set(seen) == {0o600}


@pytest.mark.parametrize("name", ["synap.lock", "synap.mark"])
def test_a_link_laid_in_a_directory_is_not_followed(tmp_path: Path, name: str) -> None:
    directory, victim = tmp_path / "data", tmp_path / "victim"
    directory.mkdir()
    victim.write_text("precious")
    (directory / name).symlink_to(victim)
    with pytest.raises(SynapError):
        with SynapClient(url=f"file://{directory}") as client:
            client.kv.set("a", 1)
    assert victim.read_text() == "precious"


def test_copies_that_were_never_given_away_go_at_the_next_start(tmp_path: Path) -> None:
    directory = data(tmp_path)
    pieces = backup.stream(str(directory))
    next(pieces)
    (left,) = directory.glob("*.copy")
    (directory / f"{left.name}-journal").write_bytes(b"")
    (directory / "mine.copy").write_bytes(b"not ours")
    with SynapClient(url=f"file://{directory}") as client:
        assert client.kv.get("a").value == 1
    assert sorted(file.name for file in directory.glob("*.copy*")) == ["mine.copy"]
    pieces.close()


def test_two_who_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file"

    def write(letter: bytes) -> None:
        for _ in range(20):
            with private.replacing(str(target)) as opened:
                opened.write(letter * 10_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(target.read_bytes())) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_nobody_s_change_of_a_file_of_keys_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for number in range(8):
        keyfile.add(path, f"old-{number}", keyfile.new_key(), ["admin"], Quota())
    one = (
        "import sys\n"
        "from synap.server import keyfile\n"
        "from synap.server.grants import Quota\n"
        "path, me = sys.argv[1:]\n"
        "sys.stdin.readline()\n"
        "for number in range(4):\n"
        "    keyfile.add(path, f'new-{me}-{number}', keyfile.new_key(), ['admin'], Quota())\n"
        "    if number < 2: keyfile.remove(path, f'old-{int(me) * 2 + number}')\n"
    )
    command = [sys.executable, "-W", "error", "-c", one, str(path)]
    running = [subprocess.Popen([*command, str(me)], stdin=subprocess.PIPE, text=True) for me in range(4)]
    for process in running:  # all begin at once
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    names = {access.name for access in keyfile.read(path).values()}
    assert names == {f"new-{me}-{number}" for me in range(4) for number in range(4)}
    assert os.listdir(tmp_path) == ["keys.toml"]


def test_a_file_of_keys_that_couldn_t_be_changed_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    with pytest.raises(SynapError):
        keyfile.add(path, "no name", keyfile.new_key(), ["admin"], Quota())
    with pytest.raises(SynapError):
        keyfile.remove(path, "a")
    assert not path.exists()
    keyfile.add(path, "a", keyfile.new_key(), ["admin"], Quota())
    before = path.read_bytes()
    with pytest.raises(SynapError):
        keyfile.add(path, "a", keyfile.new_key(), ["admin"], Quota())
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_where_no_file_of_keys_may_be_made_that_is_said() -> None:
    program = """
import os, sys
import synap.cli.keys
from synap.cli.app import run
if os.getuid() == 0:
    os.setuid(65534)
sys.exit(run(["keys", "new", "a", "--grant", "admin", "--file", sys.argv[1]]))
"""
    with tempfile.TemporaryDirectory(prefix="synap-test-") as place:
        os.chmod(place, 0o555)
        path = os.path.join(place, "keys.toml")
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, timeout=PATIENCE, text=True)
        os.chmod(place, 0o755)
    assert done.stderr == f"synap: [FAILED] Permission denied: {path}\n"
