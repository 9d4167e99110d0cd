"""The mark: a file with the last commit that the log must reach.

A log that was cut, or whose last part was changed, looks like one that ends earlier: SQLite takes the first frame of
its write-ahead log that does not match its checksum for the end. So the number of the last commit that anybody was
told about is kept beside it, written after the commit is safe and before the answer goes out. It is not synced, which
would double the cost of a commit: what a dying process wrote is there, and after a power loss it is at most older
than it could be, which makes the check weaker, never wrong.

Where commits are answered before they are synced, the machine may lose what the mark still names. So it holds two
numbers: what was written must be there as long as the machine has not been restarted (its boot id tells), what was
synced always.

Two slots of 512 bytes are written in turn, so that a torn write leaves the other one.

    offset  size  what
    0       4     "synm"
    4       16    identity of the database
    20      8     last commit written and answered
    28      8     last commit synced
    36      16    boot id of the machine, zeros where it has none
    52      4     CRC-32 of the 52 bytes before
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import closing, suppress
from typing import NamedTuple, Optional

from synap import forks
from synap.storage.layout import MARK, check_files, damage
from synap.storage.lock import give_back, in_use, take

_SLOT = struct.Struct(">4s16sQQ16sI")
_HEAD, _CRC = struct.Struct(">4s16sQQ16s"), struct.Struct(">I")
"""The same in two parts."""
_STRIDE = 512
_SIZE = 2 * _STRIDE
_MAGIC = b"synm"
_PLACED = hasattr(os, "pwrite")  # not on Windows


class Promise(NamedTuple):
    """The content of a mark: which database it belongs to, and the numbers of its last commits."""

    identity: bytes
    written: int
    synced: int
    boot: bytes

    def reaches(self) -> int:
        """The number that the log must reach now."""
        return self.written if self.boot == boot_id() and any(self.boot) else self.synced


def boot_id() -> bytes:
    """Return what changes whenever the machine is started; zeros where that can't be known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)


def _encode(promise: Promise) -> bytes:
    head = _HEAD.pack(_MAGIC, *promise)
    return head + _CRC.pack(zlib.crc32(head))


def _decode(data: bytes) -> Optional[Promise]:
    if len(data) < _SLOT.size:
        return None
    magic, identity, written, synced, boot, crc = _SLOT.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(data[: _SLOT.size - 4]) != crc:
        return None
    return Promise(identity, written, synced, boot)


def read_mark(directory: str) -> Optional[Promise]:
    """Read the mark of a directory; None where there is none. Raises `Damaged` where neither slot can be read."""
    check_files(directory, MARK)
    try:
        with open(os.path.join(directory, MARK), "rb") as file:
            data = file.read(_SIZE)
    except FileNotFoundError:
        return None
    slots = [slot for slot in (_decode(data), _decode(data[_STRIDE:])) if slot is not None]
    if not slots:
        raise damage(directory, MARK, "bytes 0 to 1023", "neither of its two slots can be read")
    return max(slots, key=lambda slot: slot.written)


class Mark:
    """The mark of a directory that is in use. It is locked, too: the file of the lock may have been removed.

    Raises `Locked` where somebody else has it.
    """

    def __init__(self, directory: str, identity: bytes) -> None:
        self.path = os.path.join(directory, MARK)
        self._identity = identity
        self._boot = boot_id()
        self._slot = 0
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(self.path, flags, 0o600)
        try:
            take(self._file)
        except OSError:
            self.forked()
            raise in_use(directory, {}) from None
        forks.watch(self)

    def put(self, written: int, synced: int) -> None:
        """Write which commits the log must reach. Not synced. Raises OSError."""
        self._slot ^= 1
        self._write(_encode(Promise(self._identity, written, synced, self._boot)), self._slot * _STRIDE)

    def settle(self, number: int) -> None:
        """Write that everything up to `number` is synced, to both slots, and sync the file. Raises OSError."""
        slot = _encode(Promise(self._identity, number, number, self._boot)).ljust(_STRIDE, b"\0")
        self._write(slot + slot, 0)
        os.fsync(self._file)

    def _write(self, data: bytes, offset: int) -> None:
        if _PLACED:
            os.pwrite(self._file, data, offset)
        else:
            os.lseek(self._file, offset, os.SEEK_SET)
            os.write(self._file, data)

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        if self._file >= 0:
            with suppress(OSError):
                give_back(self._file)
            self.forked()

    def forked(self) -> None:
        """In a forked child: close its copy of the file, and with it of the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def write_mark(directory: str, identity: bytes, number: int) -> None:
    """Write the mark of a directory that isn't in use, all of whose commits are synced."""
    with closing(Mark(directory, identity)) as mark:
        mark.settle(number)
